"""Matrices that lie in one piece of memory, as those of a bundle's file do: rows of all of them in one call.

Legend: K matrices, R_k rows of one, W numbers of a row, B ids of each, N = B K.
"""

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_FEW = 512
"""Ids of each matrix up to which one call for all of them is faster than a call for each: beyond, the rows of one after
the other stay in a core's cache."""


def joint_or_each(
    joint: Callable[[Tensor], Tensor], each: Sequence[Callable[[Tensor], Tensor]]
) -> Callable[[Tensor], Tensor]:
    """What takes rows [B K, D] of ids [K, B] the faster way.

    Args:
        joint: takes all at once.
        each: takes rows [B, D] of ids [B] of one matrix.
    """

    def taken(rows_KB: Tensor) -> Tensor:
        if rows_KB.shape[1] <= _FEW:
            return joint(rows_KB)
        return torch.stack([take(rows_B) for take, rows_B in zip(each, rows_KB, strict=True)], dim=1).flatten(0, 1)

    return taken


def place_of(rows_RW: Tensor) -> tuple[int, int, int, int]:
    """What matrices have in common whose rows one matrix can give: memory, width, from row to row how many numbers
    (more than the width where rows are padded), and where between two rows they begin."""
    stride = max(1, rows_RW.stride(0))
    return rows_RW.untyped_storage().data_ptr(), rows_RW.shape[1], stride, int(rows_RW.storage_offset()) % stride


_FEW_FOR_FBGEMM = 256
"""Ids of each matrix up to which `index_select` is as fast."""

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
        >>> joined.rows.index_select(0, joined.places(torch.tensor([[1], [0]])))
        tensor([[10., 11.],
                [ 0.,  1.]])
    """

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        width, starts = matrices[0].shape[1], [int(matrix.storage_offset()) for matrix in matrices]
        first, stride = min(starts), max(1, matrices[0].stride(0))
        first_K = [(start - first) // stride for start in starts]
        num_rows = max(own + len(matrix) for own, matrix in zip(first_K, matrices, strict=True))
        self.rows = matrices[0].as_strided((num_rows, width), (stride, 1), first)
        self.first_K1 = torch.tensor(first_K)[:, None]
        self._fbgemm: _FbgemmConstants | None = None

    def take(self, rows_KB: Tensor) -> Tensor:
        """Rows fp32 [N, W] of rows [K, B] of each, where the matrices are fp32 or fp16: by FBGEMM's operator for many,
        if this process has FBGEMM."""
        is_plain = self.rows.dtype in _FBGEMM_TYPES and self.rows.is_contiguous()
        if rows_KB.shape[1] > _FEW_FOR_FBGEMM and is_plain and "fbgemm_gpu" in sys.modules:
            return self._taken_by_fbgemm(rows_KB)
        return self.rows.index_select(0, self.places(rows_KB)).float()

    def _taken_by_fbgemm(self, rows_KB: Tensor) -> Tensor:
        """A pool of one row each, [B, K W] seen as [N, W]."""
        (num_matrices, batch_size), width = rows_KB.shape, self.rows.shape[1]
        kind, row_nbytes = _FBGEMM_TYPES[self.rows.dtype], width * self.rows.element_size()
        constants = self._fbgemm
        if constants is None:
            constants = self._fbgemm = _FbgemmConstants(
                weights=self.rows.flatten().view(torch.uint8),
                starts_K=self.first_K1.flatten() * row_nbytes,
                placements_K=torch.full((num_matrices,), 3, dtype=torch.int32),
                kinds_K=torch.full((num_matrices,), kind, dtype=torch.uint8),
                columns_K=torch.arange(num_matrices + 1, dtype=torch.int32) * width,
                nothing=torch.empty(0, dtype=torch.uint8),
            )
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
            indices=rows_KB.flatten(),
            offsets=torch.arange(rows_KB.numel() + 1),
            pooling_mode=0,
            indice_weights=None,
            output_dtype=0,
            row_alignment=1,
        )
        return rows_BE.view(batch_size * num_matrices, width)

    def places(self, rows_KB: Tensor) -> Tensor:
        """Rows [N] of the one matrix for rows of each: those of the first id of all matrices come first."""
        return (rows_KB + self.first_K1).t().flatten()
