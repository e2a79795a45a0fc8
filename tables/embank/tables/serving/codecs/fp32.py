"""Rows as they are."""

from collections.abc import Callable, Hashable, Sequence
from typing import Self

from torch import Tensor

from embank.tables.serving.codecs.base import Coded
from embank.tables.serving.codecs.joined import Joined, place_of


class Fp32(Coded):
    """fp32 rows, without padding.

    Args:
        rows_RD: the rows; the codec shares their memory.
    """

    rows: Tensor

    def __init__(self, rows_RD: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows_RD.detach())

    @classmethod
    def encode(cls, rows_RD: Tensor) -> Self:
        return cls(rows_RD)

    @classmethod
    def nbytes_of(cls, num_rows: int, dim: int) -> int:
        return 4 * num_rows * dim

    def joint_place(self) -> Hashable | None:
        return place_of(self.rows) if self.rows.numel() and self.rows.stride(1) == 1 else None

    def num_joint_rows(self) -> int:
        return len(self.rows)

    @classmethod
    def joined(cls, matrices: Sequence[Self]) -> Callable[[Tensor], Tensor]:
        return Joined([matrix.rows for matrix in matrices]).take

    @classmethod
    def rows_per_block(cls, dim: int) -> int:
        return 1

    def take(self, rows_N: Tensor) -> Tensor:
        rows_RD = self._buffers["rows"]  # in half a microsecond less than `self.rows`
        assert rows_RD is not None
        return rows_RD.index_select(0, rows_N)

    def first(self, num_rows: int) -> Tensor:
        return self.rows[:num_rows]
