"""Rows on a grid of integers times a step: rounding without bias, and how many rows get 16 bits.

Legend: U rows that were just updated, high the largest code, 2 ** (bits - 1) - 1; the smallest is -high - 1.
"""

from typing import Literal

import torch
from torch import Tensor

from embank.compression.budget.floors import floor_error
from embank.tables import TableSpec
from embank.tables.rows.rounding import noise as noise
from embank.tables.rows.rounding import round_stochastically as round_stochastically

Bits = Literal[8, 16]

HIGH = {8: 2**7 - 1, 16: 2**15 - 1}
"""Largest code by bits."""


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
    if spec.budget is not None and floor_nbytes > spec.budget * spec.plain_nbytes:
        needs = f"{dim * (bits or 8) // 8} bytes of codes and {step_nbytes} of a step for each row"
        raise floor_error(spec, needs=needs, floor_nbytes=floor_nbytes)
    if bits is not None:
        return num_rows if bits == 16 else 0
    if spec.budget is None:
        return 0
    return min(num_rows, int((spec.budget * spec.plain_nbytes - floor_nbytes) // dim))


def pack_codes(codes_RD: Tensor, *, num_wide: int) -> tuple[Tensor, Tensor]:
    """int16 codes of the first rows and int8 codes of the others."""
    return codes_RD[:num_wide].to(torch.int16), codes_RD[num_wide:].to(torch.int8)


def gather_codes(wide_RD: Tensor, narrow_RD: Tensor, ids_N: Tensor) -> Tensor:
    """Codes of rows as float32 [N, D]; see `pack_codes`."""
    num_wide = wide_RD.shape[0]
    is_wide_N = ids_N < num_wide
    codes_ND = torch.empty(ids_N.numel(), wide_RD.shape[1], dtype=torch.float32, device=wide_RD.device)
    codes_ND[is_wide_N] = wide_RD[ids_N[is_wide_N]].float()
    codes_ND[~is_wide_N] = narrow_RD[ids_N[~is_wide_N] - num_wide].float()
    return codes_ND
