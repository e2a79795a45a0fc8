"""How the rows of a matrix lie in host memory, for who reads them there."""

from enum import IntEnum
from typing import NamedTuple

from torch import Tensor


class Numbers(IntEnum):
    """How a number of a row is held: by its bits, bf16 apart from fp16. The compiled lookup knows them, too."""

    FP32 = 32
    FP16 = 16
    BF16 = -16
    INT8 = 8
    INT6 = 6
    INT4 = 4
    INT3 = 3
    INT2 = 2


class RowLayout(NamedTuple):
    """Rows one after the other at equal distances.

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


class CodeLayout(NamedTuple):
    """Rows of some centroids each, whose numbers are a stream of bits, those of the first rows and of the others apart.

    Attributes:
        centroids: as rows, those of one codebook after those of the other.
        num_rows: rows that all of it has.
        num_books, num_codes: codebooks, and centroids of each.
        head, tail: codes, uint8, see `embank.compression.parts.bits.pack_values`.
        num_head: rows that are in the first stream.
        head_bits, tail_bits: of a code.
    """

    centroids: RowLayout
    num_rows: int
    num_books: int
    num_codes: int
    head: Tensor
    tail: Tensor
    num_head: int
    head_bits: int
    tail_bits: int


class SparseLayout(NamedTuple):
    """Rows of values that are not zero, and the places of these, see `embank.compression.parts.sparse`.

    Attributes:
        values: as rows of one number.
        num_rows: rows that the places tell of.
        dim: numbers of a row.
        low_bits: 0 of a bitmap; of a list how many bits of a place are in `fine`.
        fine: words of a bitmap, or the list.
        counts: int32 or int64, places before each eighth word, or each value of the high bits.
    """

    values: RowLayout
    num_rows: int
    dim: int
    low_bits: int
    fine: Tensor
    counts: Tensor


Layout = RowLayout | CodeLayout | SparseLayout
