"""Low-precision rows: 8 or 16 bits per number, rounded at random after each update.

Source: Zhang, Yang, Yuen, "Training with Low-precision Embedding Tables", NeurIPS workshop on Systems for ML, 2018,
update in fp32 and store half-precision floats rounded at random; with whole numbers it is the low-precision training of
Li et al., AAAI 2023, and method 8 of Zhang et al., PVLDB 17(4), 2023.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from embank.compression.codecs.grids import PowerOfTwoRows
from embank.compression.fitting.grids import PowersOfTwo
from embank.compression.parts.grid import Bits, fitting_exponents, high_codes, num_wide_rows, power_of_two
from embank.tables import Method, Served, TableSpec, Traits, option_class, own_table
from embank.tables.rows.rounding import noise, round_stochastically

_EXPONENT_NBYTES = 1


@option_class
class LowPrecisionConfig:
    """Options of low-precision rows.

    Args:
        bits: 8 or 16 for every row. None takes 16 for as many rows as the budget holds, from the most frequent id on,
            and 8 for the others; without a budget 8 for all.
    """

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

    Example:
        >>> table = build_table(method="low_precision", num_embeddings=1000, embedding_dim=8)
        >>> table.nbytes("serving") / table.spec.plain_nbytes
        0.28125
    """

    Config = LowPrecisionConfig
    traits = Traits(whole_rows=True, fitting=PowersOfTwo())

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        self.num_wide = num_wide_rows(spec, bits=self.options.bits, step_nbytes=_EXPONENT_NBYTES)
        self.physical = (own_table(spec, projection=PowerOfTwoGrid(num_wide=self.num_wide)),)

    def served(self, rows: Mapping[str, Tensor]) -> Served:
        return Served.of_rows(PowerOfTwoRows(rows[self.spec.name], num_wide=self.num_wide))


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
