"""Matrices that lie in one piece of memory, as those of a bundle's file do: rows of all of them in one call.

Legend: K matrices, R_k rows of one, W numbers of a row, B ids of each.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from embank.tables.method.together import Array
from embank.tables.serving.codecs.fbgemm import MANY, FbgemmTables, is_there

FEW = 8
"""Ids of each matrix up to which numbers are quicker worked on by NumPy, whose calls take less; beyond by torch."""

_NUMBERS_IN_CACHE = 1 << 16
"""Numbers, of all matrices together, that stay in a core's cache. Calls of Python take longer than what is done with
an eighth of it."""

_LEAST_WIDTH = 4
"""Numbers of a row from which on FBGEMM is faster."""


def block_of(*, num_matrices: int, width: int) -> int:
    """Ids of each matrix for `in_blocks`.

    Args:
        num_matrices: that are asked together.
        width: numbers that are made of an id on the way.
    """
    return max(1, _NUMBERS_IN_CACHE // (num_matrices * max(1, width)))


def in_blocks(take: Callable[[Array], Tensor], *, block: int) -> Callable[[Array], Tensor]:
    """The same, so many ids of each matrix at a time: what is made of them on the way stays in a core's cache."""

    def taken(rows_KB: Array) -> Tensor:
        num_ids = rows_KB.shape[1]
        if num_ids <= block:
            return take(rows_KB)
        first_bKD = take(rows_KB[:, :block])
        out_BKD = first_bKD.new_empty(num_ids, *first_bKD.shape[1:])
        out_BKD[:block] = first_bKD
        for start in range(block, num_ids, block):
            out_BKD[start : start + block] = take(rows_KB[:, start : start + block])
        return out_BKD

    return taken


def place_of(rows_RW: Tensor) -> tuple[int, int, int, int]:
    """What matrices have in common whose rows one matrix can give: memory, width, from row to row how many numbers
    (more than the width where rows are padded), and where between two rows they begin."""
    stride = max(1, rows_RW.stride(0))
    return rows_RW.untyped_storage().data_ptr(), rows_RW.shape[1], stride, int(rows_RW.storage_offset()) % stride


_FBGEMM_KINDS = {torch.float32: "fp32", torch.float16: "fp16"}


class Joined:
    """Several matrices of one place (`place_of`) as one.

    Between them may lie others, whose numbers this matrix shows as well, and nobody asks for.

    Args:
        matrices: [R_k, W] each, W at least 1.

    Attributes:
        rows: [R, W], from the first row of any to the last one.
        first_K1: the first row of each.

    Example:
        >>> memory = torch.arange(12.0)
        >>> joined = Joined([memory[8:].view(2, 2), memory[:4].view(2, 2)])
        >>> joined.take(np.array([[1], [0]]))
        tensor([[[10., 11.],
                 [ 0.,  1.]]])
    """

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        width, starts = matrices[0].shape[1], [int(matrix.storage_offset()) for matrix in matrices]
        first, stride = min(starts), max(1, matrices[0].stride(0))
        first_K = [(start - first) // stride for start in starts]
        num_rows = max(own + len(matrix) for own, matrix in zip(first_K, matrices, strict=True))
        self.rows = matrices[0].detach().as_strided((num_rows, width), (stride, 1), first)
        self.first_K1: Array = np.array(first_K, dtype=np.int64)[:, None]
        plain = self.rows.view(torch.int16) if self.rows.dtype == torch.bfloat16 else self.rows  # NumPy has none
        self._array: Array = plain.numpy()
        self._is_whole = self.rows.is_contiguous()  # of others NumPy's `take` would make a copy first
        kind = _FBGEMM_KINDS.get(self.rows.dtype)
        self._fbgemm: FbgemmTables | None = None
        if self._is_whole and kind is not None and width >= _LEAST_WIDTH:
            starts_K = torch.from_numpy(self.first_K1.ravel()) * (width * self.rows.element_size())
            self._fbgemm = FbgemmTables(starts_K, kind=kind, width=width)

    @cached_property
    def stream(self) -> Array:
        """All numbers one after the other, of matrices without padding."""
        return self._array.reshape(-1)

    def picked(self, rows_KB: Array) -> Array:
        """Rows [B, K, W] of rows [K, B] of each, as they are held; of fp16 and bf16 see `take`."""
        places_BK = (rows_KB + self.first_K1).T
        return self._array.take(places_BK, 0) if self._is_whole else self._array[places_BK]

    def take(self, rows_KB: Array) -> Tensor:
        """Rows fp32 [B, K, W] of rows [K, B] of each, where the matrices are floats: by FBGEMM's operator for many, if
        this process has FBGEMM."""
        dtype = self.rows.dtype
        if rows_KB.shape[1] > MANY and self._fbgemm is not None and is_there():
            return self._fbgemm.take(self.rows.flatten().view(torch.uint8), rows_KB)
        rows_BKW = torch.from_numpy(self.picked(rows_KB))
        if dtype == torch.float32:
            return rows_BKW
        return (rows_BKW if dtype == torch.float16 else rows_BKW.view(dtype)).float()
