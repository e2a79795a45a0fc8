"""Rows on a grid: whole numbers of 8 or 16 bits times the row's own step. What `low_precision` and `alpt` serve."""

from abc import abstractmethod
from typing import Self

import torch
from torch import Tensor

from embank.compression.parts.grid import (
    clamp_codes,
    fitting_exponents,
    gather_codes,
    high_codes,
    pack_codes,
    power_of_two,
)
from embank.tables import Coded, Held


class GridRows(Coded):
    """int16 codes of the first rows and int8 codes of the others.

    Args:
        codes_RD: whole numbers within the range of their bits.
        num_wide: rows below it have 16 bits, the others 8.
    """

    wide: Tensor
    narrow: Tensor

    def __init__(self, codes_RD: Tensor, *, num_wide: int) -> None:
        super().__init__()
        wide_RD, narrow_RD = pack_codes(codes_RD, num_wide=num_wide)
        self.register_buffer("wide", wide_RD)
        self.register_buffer("narrow", narrow_RD)

    def take(self, rows_N: Tensor) -> Tensor:
        return gather_codes(self.wide, self.narrow, rows_N) * self.steps_of(rows_N)[:, None]

    @abstractmethod
    def steps_of(self, rows_N: Tensor) -> Tensor:
        """Step of each row, fp32 [N]."""


class PowerOfTwoRows(GridRows):
    """Codes and, of each row, an int8 exponent: its step is 2 to that power.

    Example:
        >>> coded = PowerOfTwoRows.encode(torch.tensor([[0.5, -0.25, 0.3]]))
        >>> coded.narrow, coded.exponents  # 0.5 is 64 steps of 2**-7
        (tensor([[ 64, -32,  38]], dtype=torch.int8), tensor([-7], dtype=torch.int8))
        >>> coded.take(torch.tensor([0]))
        tensor([[ 0.5000, -0.2500,  0.2969]])
    """

    held = Held(uncounted=("exponents",))
    exponents: Tensor

    def __init__(self, rows_RD: Tensor, *, num_wide: int) -> None:
        rows_RD = rows_RD.detach()
        exponents_R1 = fitting_exponents(rows_RD, high_codes(torch.arange(rows_RD.shape[0]), num_wide=num_wide))
        # Whole already, unless written from outside.
        super().__init__((rows_RD / power_of_two(exponents_R1)).round(), num_wide=num_wide)
        self.register_buffer("exponents", exponents_R1[:, 0].to(torch.int8))

    @classmethod
    def encode(cls, rows_RD: Tensor) -> Self:
        return cls(rows_RD, num_wide=0)

    @classmethod
    def nbytes_of(cls, num_rows: int, dim: int) -> int:
        return num_rows * (dim + 1)

    def steps_of(self, rows_N: Tensor) -> Tensor:
        return power_of_two(self.exponents.index_select(0, rows_N))


class SteppedRows(GridRows):
    """Codes and, of each row, an fp32 step.

    Args:
        rows_RX: rows, their step as the last column.
        num_wide: see `GridRows`.
    """

    steps: Tensor

    def __init__(self, rows_RX: Tensor, *, num_wide: int) -> None:
        rows_RX = rows_RX.detach()
        high_R1 = high_codes(torch.arange(rows_RX.shape[0]), num_wide=num_wide)
        super().__init__(clamp_codes((rows_RX[:, :-1] / rows_RX[:, -1:]).round(), high_R1), num_wide=num_wide)
        self.register_buffer("steps", rows_RX[:, -1].clone())

    def steps_of(self, rows_N: Tensor) -> Tensor:
        return self.steps.index_select(0, rows_N)
