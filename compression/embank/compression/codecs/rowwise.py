"""Rows as small whole numbers, each with a step and an offset of its own, as inference tables of FBGEMM and TorchRec
hold them: `int8_rowwise`, `int4_rowwise`, `int2_rowwise`.

A row is its step and its offset in fp16 and then its codes, the first numbers in the lower bits. The operator of FBGEMM
reads such rows where they lie, so many of them are looked up as fast as by that operator. Groups of rows that share a
step (`int8`) take fewer bytes: 17 in place of 20 at dim 16.

Source: Guan et al., "Post-training 4-bit quantization on embedding tables" (arXiv:1911.02079), section 3; the cuts are
those of `embank.compression.codecs.affine`.

Legend: R rows, D numbers of a row, C bytes of its codes, K matrices, B ids of each.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from embank.compression.codecs.affine import decoded, fitted
from embank.compression.parts.bits import numbers_of_bytes, pack_values, read_rows
from embank.tables import Coded, Held
from embank.tables.method.together import Array
from embank.tables.serving.codecs.chunks import row_chunks
from embank.tables.serving.codecs.fbgemm import MANY, FbgemmTables, is_there
from embank.tables.serving.codecs.halves import Fp16
from embank.tables.serving.codecs.joined import Joined, block_of, in_blocks, place_of
from embank.tables.serving.codecs.layout import Numbers, RowLayout

_SCALES = 4  # bytes of a step and an offset
_NUMBERS_PER_CHUNK = 1 << 18  # what the search makes of them stays in a cache
_FBGEMM_MULTIPLE = 4  # of which a row has to have a multiple of numbers for FBGEMM


class RowwiseRows(Coded):
    """Bytes of whole rows, uint8 [R, 4 + C]. Rows of so few numbers that fp16 takes no more are in that, [R, D]."""

    held = Held(facts=("dim",), sizes=("dim",))
    bits: ClassVar[int]
    rows: Tensor

    def __init__(self, rows_RD: Tensor) -> None:
        super().__init__()
        rows_RD = rows_RD.detach()
        num_rows, self.dim = rows_RD.shape
        if self._is_fp16(self.dim):
            self.register_buffer("rows", Fp16.encode(rows_RD).rows)
            return
        rows, start = torch.empty(num_rows, _SCALES + self._code_nbytes(self.dim), dtype=torch.uint8), 0
        for chunk_rD in row_chunks(rows_RD, numbers=_NUMBERS_PER_CHUNK):
            own_rW, start = rows[start : start + len(chunk_rD)], start + len(chunk_rD)
            codes_rD, steps_r, offsets_r = fitted(chunk_rD, bits=self.bits)
            own_rW[:, :_SCALES] = torch.stack([steps_r, offsets_r], dim=1).view(torch.uint8)
            whole = F.pad(codes_rD, (0, -self.dim % (8 // self.bits)))
            own_rW[:, _SCALES:] = pack_values(whole, bits=self.bits).view(len(own_rW), -1)
        self.register_buffer("rows", rows)

    @classmethod
    def encode(cls, rows_RD: Tensor) -> Self:
        return cls(rows_RD)

    @classmethod
    def _code_nbytes(cls, dim: int) -> int:
        return -(-dim * cls.bits // 8)

    @classmethod
    def _is_fp16(cls, dim: int) -> bool:
        return _SCALES + cls._code_nbytes(dim) >= 2 * dim

    @classmethod
    def nbytes_of(cls, num_rows: int, dim: int) -> int:
        return num_rows * (2 * dim if cls._is_fp16(dim) else _SCALES + cls._code_nbytes(dim))

    @classmethod
    def rows_per_block(cls, dim: int) -> int:
        return 1

    def take(self, rows_N: Tensor) -> Tensor:
        rows_NW = self.rows.index_select(0, rows_N)
        if self._is_fp16(self.dim):
            return rows_NW.float()
        scales_N2 = rows_NW[:, :_SCALES].reshape(-1).view(torch.float16).view(-1, 2).float()
        places_N = torch.arange(rows_NW.shape[0], device=rows_N.device)
        whole = self._code_nbytes(self.dim) * 8 // self.bits
        codes_ND = read_rows(rows_NW[:, _SCALES:].reshape(-1), places_N, dim=whole, bits=self.bits)[:, : self.dim]
        return codes_ND.float() * scales_N2[:, :1] + scales_N2[:, 1:]

    def fused(self) -> tuple[str, Tensor] | None:
        return None if self._is_fp16(self.dim) else (f"int{self.bits}", self.rows)

    def layout(self) -> RowLayout | None:
        rows = self.rows
        width, kind = (self.dim, torch.float16) if self._is_fp16(self.dim) else (self._row_nbytes, torch.uint8)
        is_whole = rows.dim() == 2 and rows.shape[1] == width and rows.dtype == kind  # a damaged bundle's may not be
        if rows.device.type != "cpu" or not rows.numel() or not rows.is_contiguous() or not is_whole:
            return None
        row_nbytes = rows.shape[1] * rows.element_size()
        if self._is_fp16(self.dim):
            return RowLayout(Numbers.FP16, rows, num_rows=len(rows), width=self.dim, stride_bits=8 * row_nbytes)
        memory = rows.flatten()
        return RowLayout(
            Numbers(self.bits),
            memory[_SCALES:],
            num_rows=len(rows),
            width=self.dim,
            stride_bits=8 * row_nbytes,
            steps=memory,
            offsets=memory[_SCALES // 2 :],
            scale_stride_bytes=row_nbytes,
        )

    def joint_place(self) -> Hashable | None:
        return (self.dim, place_of(self.rows)) if self.rows.numel() and self.rows.is_contiguous() else None

    @property
    def _row_nbytes(self) -> int:
        return _SCALES + self._code_nbytes(self.dim)

    def num_joint_rows(self) -> int:
        return len(self.rows)

    @classmethod
    def joined(cls, matrices: Sequence[Self]) -> Callable[[Array], Tensor]:
        dim, num_tables = matrices[0].dim, len(matrices)
        joined = Joined([matrix.rows for matrix in matrices])
        if cls._is_fp16(dim):
            return joined.take
        numbers = None if cls.bits == 8 else numbers_of_bytes(cls.bits)

        def take(rows_KB: Array) -> Tensor:
            rows_BKW = joined.picked(rows_KB)
            scales_BK2 = rows_BKW[..., :_SCALES].view(np.float16).astype(np.float32)
            codes_BKC = rows_BKW[..., _SCALES:]
            codes_BKD = codes_BKC.astype(np.float32) if numbers is None else numbers.take(codes_BKC).view(np.float32)
            if codes_BKD.shape[2] != dim:
                codes_BKD = np.ascontiguousarray(codes_BKD[..., :dim])
            return decoded(codes_BKD, scales_BK2[..., :1], scales_BK2[..., 1:])

        in_cache = in_blocks(take, block=block_of(num_matrices=num_tables, width=dim))
        if dim % _FBGEMM_MULTIPLE:
            return in_cache
        starts_K = torch.from_numpy(joined.first_K1.ravel()) * joined.rows.shape[1]
        tables, memory = FbgemmTables(starts_K, kind=f"int{cls.bits}", width=dim), joined.rows.flatten()

        def taken(rows_KB: Array) -> Tensor:
            by_fbgemm = rows_KB.shape[1] > MANY and is_there()
            return tables.take(memory, rows_KB) if by_fbgemm else in_cache(rows_KB)

        return taken


class Int8Rowwise(RowwiseRows):
    """FBGEMM's rows of 8 bits: .31 of the bytes at dim 16; many ids are looked up the fastest.

    Example:
        >>> coded = Int8Rowwise.encode(torch.tensor([[0.0, 0.5, 1.0, 0.25, 0.75]]))
        >>> coded.take(torch.tensor([0])), coded.nbytes()
        (tensor([[0.0000, 0.5020, 1.0000, 0.2510, 0.7490]]), 9)
    """

    bits = 8


class Int4Rowwise(RowwiseRows):
    """FBGEMM's rows of 4 bits: .19 of the bytes at dim 16.

    Example:
        >>> Int4Rowwise.nbytes_of(1000, 16) / (4 * 1000 * 16)
        0.1875
    """

    bits = 4


class Int2Rowwise(RowwiseRows):
    """FBGEMM's rows of 2 bits: .13 of the bytes at dim 16, at a loss that is seen.

    Example:
        >>> Int2Rowwise.nbytes_of(1000, 16) / (4 * 1000 * 16)
        0.125
    """

    bits = 2
