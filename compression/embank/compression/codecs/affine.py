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

import torch
from torch import Tensor

from embank.compression.parts.bits import pack_values, packed_nbytes, read_rows, read_values
from embank.tables import Coded, ConfigError, Held
from embank.tables.serving.codecs.chunks import row_chunks
from embank.tables.serving.codecs.joined import Joined, joint_or_each, place_of

_GROUP = 64
_CUTS = (0.0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.26, 0.32)
_APART = 2
_LEAST_NORMAL, _LEAST_FP16 = 2.0**-14, 2.0**-24
_NUMBERS_PER_CHUNK = 1 << 18  # what the search makes of them stays in a cache


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

    def joint_place(self) -> Hashable | None:
        if not self.codes.numel():
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
    def joined(cls, matrices: Sequence[Self]) -> Callable[[Tensor], Tensor]:
        dim, group, begins_with_byte = matrices[0].dim, matrices[0].group, not matrices[0].dim * cls.bits % 8
        codes = Joined([matrix._code_bytes() for matrix in matrices])
        steps = Joined([matrix.steps.unsqueeze(1) for matrix in matrices])
        offsets = Joined([matrix.offsets.unsqueeze(1) for matrix in matrices])
        stream, columns_D = codes.rows.flatten(), torch.arange(dim)

        def take(rows_KB: Tensor) -> Tensor:
            if begins_with_byte:
                codes_ND = read_rows(stream, codes.places(rows_KB), dim=dim, bits=cls.bits)
            else:
                places_BKD = rows_KB.t().unsqueeze(2) * dim + columns_D
                codes_ND = read_values(stream, places_BKD, bits=cls.bits, first_byte=codes.first_K1).flatten(0, 1)
            groups_KB = rows_KB // group if group > 1 else rows_KB
            steps_N1 = steps.rows.index_select(0, steps.places(groups_KB)).float()
            offsets_N1 = offsets.rows.index_select(0, offsets.places(groups_KB)).float()
            return codes_ND.float() * steps_N1 + offsets_N1

        return joint_or_each(take, [matrix.take for matrix in matrices])

    @classmethod
    def rows_per_block(cls, dim: int) -> int:
        return 8 * rows_per_group(dim)  # whole bytes

    def take(self, rows_N: Tensor) -> Tensor:
        group_N = rows_N if self.group == 1 else rows_N // self.group
        codes_ND = read_rows(self.codes, rows_N, dim=self.dim, bits=self.bits)
        steps_N1 = self.steps.index_select(0, group_N).float().unsqueeze(1)
        offsets_N1 = self.offsets.index_select(0, group_N).float().unsqueeze(1)
        return codes_ND.float() * steps_N1 + offsets_N1


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
        raise ConfigError(
            f"rows reach {float(numbers_Gn.abs().max()):.4g}, more than the fp16 offsets of int{bits} hold; use codec "
            "'fp32' or 'bf16'"
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
