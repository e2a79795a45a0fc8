"""How the rows of a matrix lie in memory, for who reads them there."""

from enum import IntEnum
from typing import NamedTuple

from torch import Tensor


class Numbers(IntEnum):
    """How a number of a row is held: by its bits, bf16 apart from fp16. `lookup.cpp` knows them, too."""

    FP32 = 32
    FP16 = 16
    BF16 = -16
    INT8 = 8
    INT6 = 6
    INT4 = 4
    INT3 = 3
    INT2 = 2


class RowLayout(NamedTuple):
    """Rows in host memory, one after the other at equal distances.

    Attributes:
        numbers: how a number is held; of whole numbers the first ones of a byte in its lower bits, see
            `embank.compression.parts.bits.pack_values`.
        rows: from the first row on.
        num_rows: rows that all of it has.
        width: numbers of a row.
        stride_bits: from row to row.
        steps, offsets: fp16, from the first ones on, of whole numbers: a number is offset + step * code.
        group: rows that share a step and an offset.
        scale_stride_bytes: from step to step, and from offset to offset.
    """

    numbers: Numbers
    rows: Tensor
    num_rows: int
    width: int
    stride_bits: int
    steps: Tensor | None = None
    offsets: Tensor | None = None
    group: int = 1
    scale_stride_bytes: int = 0
