"""Matrices that lie in one piece of memory, as those of a bundle's file do: rows of all of them in one call.

Legend: K matrices, R_k rows of one, W numbers of a row, B ids of each.
"""

import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from embank.tables.method.together import Array

FEW = 8
"""Ids of each matrix up to which numbers are quicker worked on by NumPy, whose calls take less; beyond by torch."""

_FEW_FOR_FBGEMM = 128
"""Ids of each matrix up to which NumPy takes plain rows as fast as FBGEMM."""

_LEAST_WIDTH = 4
"""Numbers of a row from which on FBGEMM is faster."""


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


def one_by_one(takes: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[Array], Tensor]:
    """What asks each matrix for its rows [B, D] of ids [B]."""

    def taken(rows_KB: Array) -> Tensor:
        return torch.stack([take(rows_B) for take, rows_B in zip(takes, torch.from_numpy(rows_KB), strict=True)], dim=1)

    return taken


def place_of(rows_RW: Tensor) -> tuple[int, int, int, int]:
    """What matrices have in common whose rows one matrix can give: memory, width, from row to row how many numbers
    (more than the width where rows are padded), and where between two rows they begin."""
    stride = max(1, rows_RW.stride(0))
    return rows_RW.untyped_storage().data_ptr(), rows_RW.shape[1], stride, int(rows_RW.storage_offset()) % stride


_FBGEMM_TYPES = {torch.float32: 0, torch.float16: 1}
"""`SparseType.as_int()`; the placement 3 is `EmbeddingLocation.HOST`."""


class _FbgemmConstants(NamedTuple):
    """What FBGEMM's operator is told of the matrices: bytes, where each begins, its type and its columns."""

    weights: Tensor
    starts_K: Tensor
    placements_K: Tensor
    kinds_K: Tensor
    columns_K: Tensor
    nothing: Tensor


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
        self._is_for_fbgemm = self._is_whole and self.rows.dtype in _FBGEMM_TYPES and width >= _LEAST_WIDTH
        self._fbgemm: _FbgemmConstants | None = None

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
        if rows_KB.shape[1] > _FEW_FOR_FBGEMM and self._is_for_fbgemm and "fbgemm_gpu" in sys.modules:
            return self._taken_by_fbgemm(rows_KB)
        rows_BKW = torch.from_numpy(self.picked(rows_KB))
        if dtype == torch.float32:
            return rows_BKW
        return (rows_BKW if dtype == torch.float16 else rows_BKW.view(dtype)).float()

    def _taken_by_fbgemm(self, rows_KB: Array) -> Tensor:
        """A pool of one row each, [B, K W] seen as [B, K, W]."""
        (num_matrices, batch_size), width = rows_KB.shape, self.rows.shape[1]
        kind, row_nbytes = _FBGEMM_TYPES[self.rows.dtype], width * self.rows.element_size()
        constants = self._fbgemm
        if constants is None:
            constants = self._fbgemm = _FbgemmConstants(
                weights=self.rows.flatten().view(torch.uint8),
                starts_K=torch.from_numpy(self.first_K1.ravel()) * row_nbytes,
                placements_K=torch.full((num_matrices,), 3, dtype=torch.int32),
                kinds_K=torch.full((num_matrices,), kind, dtype=torch.uint8),
                columns_K=torch.arange(num_matrices + 1, dtype=torch.int32) * width,
                nothing=torch.empty(0, dtype=torch.uint8),
            )
        small = np.int32 if max(len(self.rows), rows_KB.size) < 2**31 else np.int64  # half of what is to be read
        rows_BE: Tensor = torch.ops.fbgemm.int_nbit_split_embedding_codegen_lookup_function(
            dev_weights=constants.weights,
            uvm_weights=constants.nothing,
            weights_placements=constants.placements_K,
            weights_offsets=constants.starts_K,
            weights_tys=constants.kinds_K,
            D_offsets=constants.columns_K,
            total_D=num_matrices * width,
            max_int2_D=0,
            max_int4_D=0,
            max_int8_D=0,
            max_float16_D=width if self.rows.dtype == torch.float16 else 0,
            max_float32_D=width if self.rows.dtype == torch.float32 else 0,
            indices=torch.from_numpy(rows_KB.astype(small).ravel()),
            offsets=torch.from_numpy(np.arange(rows_KB.size + 1, dtype=small)),
            pooling_mode=0,
            indice_weights=None,
            output_dtype=0,
            row_alignment=1,
        )
        return rows_BE.view(batch_size, num_matrices, width)
