"""Rows on a grid of integers times a step: rounding without bias, and how many rows get 16 bits.

Legend: U rows that were just updated, high the largest code, 2 ** (bits - 1) - 1; the smallest is -high - 1.
"""

from typing import Literal

import torch
from torch import Tensor

from embank.compression.budget.floors import refuse_small_budget
from embank.tables import TableSpec

Bits = Literal[8, 16]

HIGH = {8: 2**7 - 1, 16: 2**15 - 1}
"""Largest code by bits."""

_MIN_EXPONENT, _MAX_EXPONENT = -126, 127
"""Powers of two that float32 holds as normal numbers, and int8 as exponents."""


def clamp_codes(codes_UD: Tensor, high_U1: Tensor) -> Tensor:
    """Codes within -high - 1 .. high, high [U, 1] by row."""
    return torch.minimum(torch.maximum(codes_UD, -high_U1 - 1), high_U1)


def high_codes(rows_U: Tensor, *, num_wide: int) -> Tensor:
    """The largest code of each row, float32 [U, 1]: 16 bits below row `num_wide`, 8 bits from there on."""
    return torch.where(rows_U < num_wide, float(HIGH[16]), float(HIGH[8]))[:, None]


def num_wide_rows(spec: TableSpec, *, bits: Bits | None, step_nbytes: int) -> int:
    """How many rows, from the most frequent id on, have codes of 16 bits; the others have 8.

    Args:
        spec: of the table.
        bits: the option: all rows alike. None gives 16 bits to as many rows as the budget holds, none without a budget.
        step_nbytes: bytes of a row's step.

    Raises:
        BudgetError: the budget does not hold these bits, or 8 where they are open.
    """
    num_rows, dim = spec.num_embeddings, spec.embedding_dim
    floor_nbytes = num_rows * (dim * (bits or 8) // 8 + step_nbytes)
    needs = f"{dim * (bits or 8) // 8} bytes of codes and {step_nbytes} of a step for each row"
    refuse_small_budget(spec, needs=needs, floor_nbytes=floor_nbytes)
    if bits is not None:
        return num_rows if bits == 16 else 0
    if spec.budget is None:
        return 0
    return min(num_rows, int((spec.budget * spec.plain_nbytes - floor_nbytes) // dim))


def pack_codes(codes_RD: Tensor, *, num_wide: int) -> tuple[Tensor, Tensor]:
    """int16 codes of the first rows and int8 codes of the others."""
    return codes_RD[:num_wide].to(torch.int16), codes_RD[num_wide:].to(torch.int8)


def gather_codes(wide_RD: Tensor, narrow_RD: Tensor, rows_N: Tensor) -> Tensor:
    """Codes of rows as float32 [N, D]; see `pack_codes`."""
    num_wide = wide_RD.shape[0]
    if not num_wide:
        return narrow_RD.index_select(0, rows_N).float()
    if not narrow_RD.shape[0]:
        return wide_RD.index_select(0, rows_N).float()
    # Both parts are read for all rows and one is chosen: no branch on data, which could not be exported.
    wide_ND = wide_RD.index_select(0, rows_N.clamp(max=num_wide - 1))
    narrow_ND = narrow_RD.index_select(0, (rows_N - num_wide).clamp(min=0))
    return torch.where((rows_N < num_wide)[:, None], wide_ND, narrow_ND).float()


def fitting_exponents(rows_UD: Tensor, high_U1: Tensor) -> Tensor:
    """The smallest k with max |row| <= high * 2**k, int32 [U, 1], no smaller than a normal float32 allows.

    Example:
        >>> fitting_exponents(torch.tensor([[0.5], [127.0], [127.9]]), torch.full((3, 1), 127.0))
        tensor([[-7],
                [ 0],
                [ 1]], dtype=torch.int32)
    """
    largest_U1 = rows_UD.abs().amax(dim=1, keepdim=True)
    mantissa_U1, exponent_U1 = torch.frexp(largest_U1)  # largest = mantissa * 2**exponent, mantissa in [.5, 1)
    # With m 2**e the largest entry and high + 1 = 2**s, k = e - s gives it the code m 2**s, below 2**s. Where that is
    # above high, k is one more.
    over_U1 = high_U1 + 1  # 2**(bits - 1)
    shift_U1 = torch.log2(over_U1).round().int()
    too_large_U1 = mantissa_U1 * over_U1 > high_U1
    return (exponent_U1.int() - shift_U1 + too_large_U1).clamp(_MIN_EXPONENT, _MAX_EXPONENT)


def power_of_two(exponents: Tensor) -> Tensor:
    """2**k exactly, float32, for whole k in -126 .. 127: written into the exponent's bits.

    Example:
        >>> power_of_two(torch.tensor([-3, 0, 4]))
        tensor([ 0.1250,  1.0000, 16.0000])
    """
    return ((exponents.int() + 127) << 23).view(torch.float32)  # 23 bits of mantissa, all 0; exponents count from -127
