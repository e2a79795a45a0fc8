"""What the codecs share that hold rows as floating point numbers of one type: how several are taken at once."""

from collections.abc import Callable, Hashable, Sequence
from typing import Self

from torch import Tensor

from embank.tables.method.together import Array
from embank.tables.serving.codecs.base import Coded
from embank.tables.serving.codecs.joined import Joined, place_of


class FloatRows(Coded):
    """Rows [R, D] of one type, in the buffer `rows`."""

    rows: Tensor

    def joint_place(self) -> Hashable | None:
        return place_of(self.rows) if self.rows.numel() and self.rows.stride(1) == 1 else None

    def num_joint_rows(self) -> int:
        return len(self.rows)

    @classmethod
    def joined(cls, matrices: Sequence[Self]) -> Callable[[Array], Tensor]:
        return Joined([matrix.rows for matrix in matrices]).take

    @classmethod
    def rows_per_block(cls, dim: int) -> int:
        return 1
