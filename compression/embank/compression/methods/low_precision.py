"""Low-precision rows: 8 or 16 bits per number, rounded at random after each update.

Source: Zhang, Yang, Yuen, "Training with Low-precision Embedding Tables", NeurIPS workshop on Systems for ML, 2018,
update in fp32 and store half-precision floats rounded at random; with whole numbers it is the low-precision training of
Li et al., AAAI 2023, and method 8 of Zhang et al., PVLDB 17(4), 2023.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from embank.compression.parts.grid import (
    Bits,
    gather_codes,
    high_codes,
    noise,
    num_wide_rows,
    pack_codes,
    round_stochastically,
)
from embank.tables import Method, PackedTable, PhysicalTable, TableSpec, default_init

_EXPONENT_NBYTES = 1
_MIN_EXPONENT, _MAX_EXPONENT = -126, 127
"""Powers of two that float32 holds as normal numbers, and int8 as exponents."""


@dataclass(frozen=True, kw_only=True)
class LowPrecisionConfig:
    """Options of low-precision rows.

    Args:
        bits: 8 or 16 for every row. None takes 16 for as many rows as the budget holds, from the most frequent id on,
            and 8 for the others; without a budget 8 for all.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic, not a field

    bits: Bits | None = None


class LowPrecision(Method):
    """Rows on a grid: whole numbers of 8 or 16 bits times a power of two that each row has of its own.

    After each update the touched rows are rounded to the grid at random, up or down with the probabilities that make it
    right on average. The power of two is the smallest with which the row's largest number fits, so nothing is ever
    clipped; it follows from the row, costs a byte, and changes only when the largest number crosses a power of two.
    Dividing by it is exact, and numbers on a grid are on every finer one: a row that is not updated, or only gets
    smaller, loses nothing.

    Where it differs from the public implementation (Hetu's EMC): that has one fixed step, .01 by default, for the whole
    table. With it, initial values of +-3e-4 round to 98% zeros, 16 bits are no finer than 8 (both step by .01), and one
    random number per row correlates the errors of its columns. Here the step follows the row, and random numbers are
    independent.

    What any grid does to small updates: one below half a step is lost by rounding to nearest, each time. Rounded at
    random it is a
    whole step, rarely: n updates of u move a number by n u on average, with a standard deviation of up to
    sqrt(n u s) for a step s. So a number drifts right once n u > s, and until then it is noise of about a step,
    1/127 to 1/64 of the row's largest number with 8 bits. One large number in a row coarsens the others; decaying
    learning rates (row-wise Adagrad) make a hot row's updates smaller while its step stays.

    Bytes: serving holds codes and exponents. Training holds rows in fp32 and the optimizer's state: it costs as much as
    the plain table's.

    Raises:
        BudgetError: the budget does not hold the codes and a byte per row.
    """

    Config = LowPrecisionConfig
    linear: ClassVar[bool] = True
    whole_rows: ClassVar[bool] = True

    def __init__(self, spec: TableSpec) -> None:
        super().__init__(spec)
        options: LowPrecisionConfig = self.options()
        self.num_wide = num_wide_rows(spec, bits=options.bits, step_nbytes=_EXPONENT_NBYTES)
        self.physical = (
            PhysicalTable(
                name=spec.name,
                num_embeddings=spec.num_embeddings,
                embedding_dim=spec.embedding_dim,
                init=default_init(spec),
                projection=PowerOfTwoGrid(num_wide=self.num_wide),
            ),
        )

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        return (ids_N,)

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        return rows[0]

    def pack(self, rows: Mapping[str, Tensor]) -> PackedTable:
        return PackedLowPrecision(rows[self.spec.name], num_wide=self.num_wide)


@dataclass(frozen=True, kw_only=True)
class PowerOfTwoGrid:
    """Rounds rows to their grids; see `RowProjection`.

    Args:
        num_wide: rows below it have 16 bits, the others 8.
    """

    num_wide: int

    def __call__(self, rows_UD: Tensor, rows_U: Tensor, *, seed: int) -> Tensor:
        step_U1 = power_of_two(fitting_exponents(rows_UD, high_codes(rows_U, num_wide=self.num_wide)))
        noise_UD = noise(rows_U, num_columns=rows_UD.shape[1], seed=seed)
        return round_stochastically(rows_UD / step_U1, noise_UD) * step_U1


class PackedLowPrecision(PackedTable):
    """int16 codes of the first rows, int8 codes of the others, and one int8 exponent per row."""

    uncounted: ClassVar[tuple[str, ...]] = ("exponents",)
    wide: Tensor
    narrow: Tensor
    exponents: Tensor

    def __init__(self, rows_RD: Tensor, *, num_wide: int) -> None:
        super().__init__()
        rows_RD = rows_RD.detach()
        numbers_R = torch.arange(rows_RD.shape[0])
        exponents_R1 = fitting_exponents(rows_RD, high_codes(numbers_R, num_wide=num_wide))
        codes_RD = (rows_RD / power_of_two(exponents_R1)).round()  # whole already, unless written from outside
        wide_RD, narrow_RD = pack_codes(codes_RD, num_wide=num_wide)
        self.register_buffer("wide", wide_RD)
        self.register_buffer("narrow", narrow_RD)
        self.register_buffer("exponents", exponents_R1[:, 0].to(torch.int8))

    def lookup(self, ids_N: Tensor) -> Tensor:
        return gather_codes(self.wide, self.narrow, ids_N) * power_of_two(self.exponents[ids_N])[:, None]


def fitting_exponents(rows_UD: Tensor, high_U1: Tensor) -> Tensor:
    """The smallest k with max |row| <= high * 2**k, int32 [U, 1], no smaller than a normal float32 allows."""
    largest_U1 = rows_UD.abs().amax(dim=1, keepdim=True)
    mantissa_U1, exponent_U1 = torch.frexp(largest_U1)  # largest = mantissa * 2**exponent, mantissa in [.5, 1)
    over_U1 = high_U1 + 1  # 2**(bits - 1)
    shift_U1 = torch.log2(over_U1).round().int()
    too_large_U1 = mantissa_U1 * over_U1 > high_U1
    return (exponent_U1.int() - shift_U1 + too_large_U1).clamp(_MIN_EXPONENT, _MAX_EXPONENT)


def power_of_two(exponents: Tensor) -> Tensor:
    """2**k exactly, float32, for whole k in -126 .. 127: written into the exponent's bits."""
    return ((exponents.int() + 127) << 23).view(torch.float32)
