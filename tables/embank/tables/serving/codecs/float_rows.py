"""What the codecs share that hold rows as floating point numbers of one type: how several are taken at once."""

from collections.abc import Callable, Hashable, Sequence
from typing import Self

import torch
from torch import Tensor

from embank.tables.method.together import Array
from embank.tables.serving.codecs.base import Coded
from embank.tables.serving.codecs.joined import Joined, place_of
from embank.tables.serving.codecs.layout import Numbers, RowLayout

_NUMBERS = {torch.float32: Numbers.FP32, torch.float16: Numbers.FP16, torch.bfloat16: Numbers.BF16}


class FloatRows(Coded):
    """Rows [R, D] of one type, in the buffer `rows`."""

    rows: Tensor

    def layout(self) -> RowLayout | None:
        rows, numbers = self.rows, _NUMBERS.get(self.rows.dtype)
        if numbers is None or rows.device.type != "cpu" or not rows.numel() or rows.stride(1) != 1:
            return None
        stride = 8 * rows.stride(0) * rows.element_size()
        return RowLayout(numbers, rows, num_rows=len(rows), width=rows.shape[1], stride_bits=stride)

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
