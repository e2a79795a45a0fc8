"""Rows as small whole numbers, an fp16 step and offset for each group of them: `int8`, `int6`, `int4`, `int3`, `int2`.

A number is offset + step * code, codes 0 .. 2**bits - 1. A group is as many consecutive rows as have 64 numbers: one
row from dim 64 on, four at dim 16, 64 at dim 1. So step and offset take half a bit a number or less.

Source: Guan et al., "Post-training 4-bit quantization on embedding tables" (arXiv:1911.02079). Its greedy search cuts a
row's range at either end for the least squared error; here the same cuts are tried for all groups at once, on a grid,
and the error is that of the step and offset as fp16 has them.

Legend: G groups, n numbers of a group, K cuts.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from embank.compression.parts.bits import bits_at, numbers_of_bytes, pack_values, packed_nbytes, read_rows
from embank.tables import Coded, ConfigError, Held
from embank.tables.method.together import Array
from embank.tables.serving.codecs.chunks import row_chunks
from embank.tables.serving.codecs.fbgemm import MANY, FusedRows, is_there
from embank.tables.serving.codecs.halves import wider_than_fp16
from embank.tables.serving.codecs.joined import FEW, Joined, block_of, in_blocks, place_of
from embank.tables.serving.codecs.layout import Numbers, RowLayout

_GROUP = 64
_CUTS = (0.0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.26, 0.32)
_APART = 2
_LEAST_NORMAL, _LEAST_FP16 = 2.0**-14, 2.0**-24
_NUMBERS_PER_CHUNK = 1 << 18  # what the search makes of them stays in a cache
_TYPES = [torch.uint8, torch.float16, torch.float16]
_FUSED_BLOCK = 1 << 17  # rows of all tables that are given to FBGEMM at once
_FUSED_MULTIPLE = 4  # of which a row has to have a multiple of numbers for FBGEMM
_FEW_SCALES = 512  # that NumPy makes fp32 sooner than torch


def rows_per_group(dim: int) -> int:
    """Rows that share a step.

    Example:
        >>> [rows_per_group(dim) for dim in (1, 6, 16, 64, 2048)]
        [64, 11, 4, 1, 1]
    """
    return -(-_GROUP // max(1, dim))


@cache
def cuts(bits: int) -> tuple[tuple[float, float], ...]:
    """Shares of a group's range that are tried as cut off its lower and its upper end. Fine steps need no cut."""
    tried = {8: _CUTS[:1], 6: _CUTS[:3]}.get(bits, _CUTS)
    return tuple((a, b) for i, a in enumerate(tried) for j, b in enumerate(tried) if abs(i - j) <= _APART)


class AffineRows(Coded):
    """Codes at their exact bits, row after row without padding, and an fp16 step and offset for each group of rows."""

    held = Held(facts=("dim", "group"), sizes=("dim",))
    bits: ClassVar[int]
    codes: Tensor
    steps: Tensor
    offsets: Tensor

    def __init__(self, rows_RD: Tensor) -> None:
        super().__init__()
        rows_RD = rows_RD.detach()
        self.dim = rows_RD.shape[1]
        self.group = rows_per_group(self.dim)
        streams, steps, offsets = [], [], []
        for chunk in row_chunks(rows_RD, multiple=8 * self.group, numbers=_NUMBERS_PER_CHUNK):  # whole bytes
            whole = len(chunk) // self.group * self.group
            parts = [chunk[:whole].reshape(-1, self.group * self.dim), chunk[whole:].reshape(1, -1)]
            fits = [fitted(numbers_Gn, bits=self.bits) for numbers_Gn in parts if numbers_Gn.numel()]
            streams.append(pack_values(torch.cat([codes_Gn.reshape(-1) for codes_Gn, _, _ in fits]), bits=self.bits))
            steps += [step_G for _, step_G, _ in fits]
            offsets += [offset_G for _, _, offset_G in fits]
        self.register_buffer("codes", torch.cat([torch.empty(0, dtype=torch.uint8), *streams]))
        self.register_buffer("steps", torch.cat([torch.empty(0, dtype=torch.float16), *steps]))
        self.register_buffer("offsets", torch.cat([torch.empty(0, dtype=torch.float16), *offsets]))

    @classmethod
    def encode(cls, rows_RD: Tensor) -> Self:
        return cls(rows_RD)

    @classmethod
    def nbytes_of(cls, num_rows: int, dim: int) -> int:
        return packed_nbytes(num_rows * dim, cls.bits) + 4 * -(-num_rows // rows_per_group(dim))

    def layout(self) -> RowLayout | None:
        row_bits = self.dim * self.bits
        held, scales = (self.codes, self.steps, self.offsets), (self.steps, self.offsets)
        types = [tensor.dtype for tensor in held if tensor.is_contiguous()]
        if not self.codes.numel() or self.codes.device.type != "cpu" or types != _TYPES:
            return None
        num_rows = min(8 * self.codes.numel() // row_bits, *(self.group * scale.numel() for scale in scales))
        return RowLayout(
            Numbers(self.bits),
            self.codes,
            num_rows=num_rows,
            width=self.dim,
            stride_bits=row_bits,
            steps=scales[0],
            offsets=scales[1],
            group=self.group,
            scale_stride_bytes=scales[0].element_size(),
        )

    def joint_place(self) -> Hashable | None:
        if not self.codes.numel() or not self.codes.is_contiguous():
            return None
        scales = [place_of(scale.unsqueeze(1)) for scale in (self.steps, self.offsets)]
        return self.dim, place_of(self._code_bytes()), *scales

    def _code_bytes(self) -> Tensor:
        """Codes [R, bytes of a row] where a row begins with a byte, else [bytes, 1]."""
        row_bits = self.dim * self.bits
        return self.codes.view(-1, 1 if row_bits % 8 else row_bits // 8)

    def num_joint_rows(self) -> int:
        return 8 * self.codes.numel() // (self.dim * self.bits)

    @classmethod
    def joined(cls, matrices: Sequence[Self]) -> Callable[[Array], Tensor]:
        codes, scales = _Codes(matrices), _Scales(matrices)
        dim, num_tables = matrices[0].dim, len(matrices)

        def take(rows_KB: Array) -> Tensor:
            steps_BK1, offsets_BK1 = scales(rows_KB)
            return decoded(codes.floats(rows_KB), steps_BK1, offsets_BK1)

        in_cache = in_blocks(take, block=block_of(num_matrices=num_tables, width=dim))
        if not codes.is_by_byte or dim % _FUSED_MULTIPLE:
            return in_cache
        fused = FusedRows(bits=cls.bits, width=dim, num_tables=num_tables)

        def take_many(rows_KB: Array) -> Tensor:
            return fused.take(codes.bytes(rows_KB), *scales.halves(rows_KB))

        by_fbgemm = in_blocks(take_many, block=max(1, _FUSED_BLOCK // num_tables))
        return lambda rows_KB: (by_fbgemm if rows_KB.shape[1] > MANY and is_there() else in_cache)(rows_KB)

    @classmethod
    def rows_per_block(cls, dim: int) -> int:
        return 8 * rows_per_group(dim)  # whole bytes

    def take(self, rows_N: Tensor) -> Tensor:
        group_N = rows_N if self.group == 1 else rows_N // self.group
        codes_ND = read_rows(self.codes, rows_N, dim=self.dim, bits=self.bits)
        steps_N1 = self.steps.index_select(0, group_N).float().unsqueeze(1)
        offsets_N1 = self.offsets.index_select(0, group_N).float().unsqueeze(1)
        return codes_ND.float() * steps_N1 + offsets_N1


def decoded(codes_BKD: Array, steps_BK1: Array, offsets_BK1: Array) -> Tensor:
    """Offset + step * code, fp32 [B, K, D], in the memory of the codes; all of them fp32."""
    if len(codes_BKD) > FEW:
        many_BKD = torch.from_numpy(codes_BKD)
        return many_BKD.mul_(torch.from_numpy(steps_BK1)).add_(torch.from_numpy(offsets_BK1))
    codes_BKD *= steps_BK1
    codes_BKD += offsets_BK1
    return torch.from_numpy(codes_BKD)


class _Scales:
    """Steps and offsets of several matrices, by one call where they lie in one piece of memory."""

    def __init__(self, matrices: Sequence[AffineRows]) -> None:
        both = [[getattr(matrix, name).unsqueeze(1) for matrix in matrices] for name in ("steps", "offsets")]
        group = matrices[0].group
        is_power = not group & (group - 1)
        self._group_of = np.right_shift if is_power else np.floor_divide  # a shift takes half as long
        self._operand = np.array(group.bit_length() - 1 if is_power else group)
        is_one = place_of(both[0][0]) == place_of(both[1][0])
        self._joined = [Joined([*both[0], *both[1]])] if is_one else [Joined(own) for own in both]
        self._first_2K1 = self._joined[0].first_K1.reshape(len(both), -1, 1) if is_one else None

    def __call__(self, rows_KB: Array) -> tuple[Array, Array]:
        """Steps and offsets fp32 [B, K, 1] of rows."""
        groups_KB = self._group_of(rows_KB, self._operand)
        if self._first_2K1 is None:
            steps_BK1, offsets_BK1 = (_float(joined.picked(groups_KB)) for joined in self._joined)
            return steps_BK1, offsets_BK1
        places_2BK1 = (groups_KB + self._first_2K1).transpose(0, 2, 1)[..., None]
        both_2BK1 = _float(self._joined[0].stream.take(places_2BK1))
        return both_2BK1[0], both_2BK1[1]

    def halves(self, rows_KB: Array) -> tuple[Array, Array]:
        """Steps and offsets fp16 [K B] of rows, matrix after matrix."""
        groups_KB = self._group_of(rows_KB, self._operand)
        first = [joined.first_K1 for joined in self._joined] if self._first_2K1 is None else self._first_2K1
        streams = [self._joined[0].stream, self._joined[-1].stream]
        steps_N, offsets_N = (
            stream.take((groups_KB + own_K1).ravel()) for stream, own_K1 in zip(streams, first, strict=True)
        )
        return steps_N, offsets_N


def _float(scales: Array) -> Array:
    """The same in fp32; torch needs a longer call and a tenth of the time for each number."""
    return scales.astype(np.float32) if scales.size <= _FEW_SCALES else torch.from_numpy(scales).float().numpy()


class _Codes:
    """Codes of several matrices."""

    def __init__(self, matrices: Sequence[AffineRows]) -> None:
        self._dim, self._bits = matrices[0].dim, matrices[0].bits
        self._codes = Joined([matrix._code_bytes() for matrix in matrices])
        row_bits = self._dim * self._bits
        self.is_by_byte = not row_bits % 8 and self._bits in (2, 4, 8)
        is_part = self.is_by_byte and self._bits < 8
        self._numbers = numbers_of_bytes(self._bits) if is_part else None
        # Otherwise where a row and its numbers begin: in bits, and a row of bytes in those.
        self._first_bit_K1 = self._codes.first_K1 * (8 if row_bits % 8 else row_bits)
        self._bit_D = np.arange(0, row_bits, self._bits)

    def floats(self, rows_KB: Array) -> Array:
        """Codes as fp32 [B, K, D]."""
        if not self.is_by_byte:
            first_bit_BK1 = (rows_KB * (self._dim * self._bits) + self._first_bit_K1).T[..., None]
            return bits_at(self._codes.stream, first_bit_BK1 + self._bit_D, bits=self._bits).astype(np.float32)
        bytes_BKW = self._codes.picked(rows_KB)
        if self._numbers is None:
            return bytes_BKW.astype(np.float32)
        return self._numbers.take(bytes_BKW).view(np.float32)

    def bytes(self, rows_KB: Array) -> Array:
        """Bytes [K B, C] of rows that have whole ones, matrix after matrix."""
        return self._codes.rows.numpy().take((rows_KB + self._codes.first_K1).ravel(), 0)


def fitted(numbers_Gn: Tensor, *, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 [G, n], steps and offsets fp16 [G] with the least squared error of all cuts; of equal ones the first.

    Raises:
        ConfigError: a step or an offset is beyond fp16.
    """
    top = (1 << bits) - 1
    low_G, high_G = numbers_Gn.aminmax(dim=1)
    span_G = high_G - low_G
    best_G = torch.full_like(low_G, float("inf"))
    step_G, offset_G = (torch.zeros_like(low_G, dtype=torch.float16) for _ in range(2))
    for below, above in cuts(bits):
        offset = (low_G + below * span_G).half()
        for step in _rounded((span_G - (below + above) * span_G) / top):
            error_G = (_decoded(numbers_Gn, step, offset, top=top) - numbers_Gn).square_().sum(1)
            is_better_G = error_G < best_G  # never where fp16 overflowed: the error is infinite or no number then
            best_G = torch.where(is_better_G, error_G, best_G)
            step_G, offset_G = torch.where(is_better_G, step, step_G), torch.where(is_better_G, offset, offset_G)
    if not bool(best_G.isfinite().all()):
        largest = float(numbers_Gn.abs().max())
        raise ConfigError(
            f"rows reach {largest:.4g}, more than steps and offsets in fp16 hold; use codec {wider_than_fp16(largest)}"
        )
    return _codes(numbers_Gn, step_G, offset_G, top=top).to(torch.uint8), step_G, offset_G


def _rounded(step_G: Tensor) -> list[Tensor]:
    """Steps in fp16. Below its normal numbers they are coarse: one that was rounded down would end short of the range,
    or be 0 and lose all, so those are tried rounded up too."""
    is_coarse_G = (step_G > 0) & (step_G < _LEAST_NORMAL)
    if not bool(is_coarse_G.any()):
        return [step_G.half()]
    return [step_G.half(), torch.where(is_coarse_G, (step_G / _LEAST_FP16).ceil() * _LEAST_FP16, step_G).half()]


def _codes(numbers_Gn: Tensor, step_G: Tensor, offset_G: Tensor, *, top: int) -> Tensor:
    step_G = step_G.float()
    inverse_G = torch.where(step_G > 0, 1 / step_G, 0.0)
    return (numbers_Gn - offset_G.float()[:, None]).mul_(inverse_G[:, None]).round_().clamp_(0, top)


def _decoded(numbers_Gn: Tensor, step_G: Tensor, offset_G: Tensor, *, top: int) -> Tensor:
    codes_Gn = _codes(numbers_Gn, step_G, offset_G, top=top)
    return codes_Gn.mul_(step_G.float()[:, None]).add_(offset_G.float()[:, None])


class Int8(AffineRows):
    """Whole numbers of 8 bits: .27 of the bytes at dim 16.

    Example:
        >>> coded = Int8.encode(torch.tensor([[0.0, 0.5, 1.0]]))
        >>> coded.take(torch.tensor([0])), coded.nbytes()
        (tensor([[0.0000, 0.5020, 1.0000]]), 7)
    """

    bits = 8


class Int6(AffineRows):
    """Whole numbers of 6 bits: .20 of the bytes at dim 16.

    Example:
        >>> Int6.nbytes_of(1000, 16) / (4 * 1000 * 16)
        0.203125
    """

    bits = 6


class Int4(AffineRows):
    """Whole numbers of 4 bits: .14 of the bytes at dim 16, as a rule at no loss of AUC.

    Example:
        >>> coded = Int4.encode(torch.tensor([[0.0, 0.5, 1.5]]))
        >>> coded.take(torch.tensor([0])), coded.nbytes()
        (tensor([[0.0000, 0.4999, 1.4996]]), 6)
    """

    bits = 4


class Int3(AffineRows):
    """Whole numbers of 3 bits: .11 of the bytes at dim 16, for a little AUC.

    Example:
        >>> Int3.nbytes_of(1000, 16) / (4 * 1000 * 16)
        0.109375
    """

    bits = 3


class Int2(AffineRows):
    """Whole numbers of 2 bits: .08 of the bytes at dim 16, at a loss that is seen.

    Example:
        >>> Int2.nbytes_of(1000, 16) / (4 * 1000 * 16)
        0.078125
    """

    bits = 2
