"""Rounding at random: what is lost in one update comes back in another, so that small updates move rows that have few
bits.

Gupta, Agrawal, Gopalakrishnan, Narayanan, "Deep Learning with Limited Numerical Precision", ICML 2015, section 3.
"""

import math

import torch
from torch import Tensor

from embank.tables.ids.hashing import mix64, salt64


def noise(rows_U: Tensor, *, num_columns: int, seed: int) -> Tensor:
    """Uniform numbers from [0, 1), independent for each element, from (seed, row, column) alone: shards draw what the
    whole table draws.

    (Hetu's kernels draw one number for all columns of a row: unbiased too, but the errors of a row add up instead of
    cancelling.)

    Args:
        rows_U: int64, row numbers.
        num_columns: of the whole table.
        seed: see `RowProjection`.

    Returns:
        float32 [U, num_columns], multiples of 2**-24.
    """
    elements_UD = rows_U[:, None] * num_columns + torch.arange(num_columns, device=rows_U.device)
    # The upper 24 of 64 mixed bits: as many as a float32 holds.
    return ((mix64(elements_UD, salt=salt64("noise", seed)) >> 40) & 0xFF_FFFF).float() * 2.0**-24


def round_stochastically(values_UD: Tensor, noise_UD: Tensor) -> Tensor:
    """Whole numbers next to the values, the upper one with the fraction as its probability: right on average.

    Whole numbers stay, whatever the noise. (floor(value + noise) would not do: the sum rounds up at times.)
    """
    lower_UD = values_UD.floor()
    return lower_UD + (noise_UD < values_UD - lower_UD)


def round_to(dtype: torch.dtype, values_UD: Tensor, noise_UD: Tensor) -> Tensor:
    """Values of a narrower type next to float32 values, right on average.

    Args:
        dtype: torch.float16 or torch.bfloat16.
        values_UD: float32; what is beyond the type's largest value becomes infinite.
        noise_UD: uniform from [0, 1).

    Returns:
        [U, D] of the type.
    """
    facts = torch.finfo(dtype)
    digits = -int(math.log2(facts.eps))
    # A value in [2**e, 2**(e + 1)) lies on a grid of step 2**(e - digits). Below the smallest normal value the step
    # stays; it must also be a normal float32, whose exponent is what the bits from 23 on hold.
    least = max(int(math.log2(facts.smallest_normal)), digits - 126)
    exponents_UD = torch.frexp(values_UD).exponent.to(torch.int32).sub_(1).clamp_(min=least)
    steps_UD = ((exponents_UD - digits + 127) << 23).view(torch.float32)
    return (round_stochastically(values_UD / steps_UD, noise_UD) * steps_UD).to(dtype)
