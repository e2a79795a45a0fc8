"""Narrower rows, equally narrow in every table: the baseline of the methods that choose dims (MDE, AutoDim,
OptEmbed)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from embank.compression.parts.projected import (
    Widening,
    held_dim,
    held_nbytes,
    narrow_table,
    refuse_below_floor,
    width_within,
    with_width,
)
from embank.tables import Method, PackedTable, TableSpec


@dataclass(frozen=True, kw_only=True)
class UniformDimConfig:
    """Options of equally narrow rows.

    Args:
        width: of the rows; None takes what the budget allows, or without a budget the whole embedding dim.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic, not a field

    width: int | None = None


class UniformDim(Method):
    """Rows of width d and one learned projection [d, D] per table, which is counted.

    The model keeps its dim, so that what changes is the table alone. Tables that would not become smaller (fewer than
    d D / (D - d) ids) stay plain.

    Raises:
        BudgetError: the budget does not hold rows of dim 1 and the projection.
        ConfigError: both a budget and a width, or a width outside 1 .. embedding_dim.
    """

    Config = UniformDimConfig

    def __init__(self, spec: TableSpec) -> None:
        super().__init__(spec)
        self.dim = width_within(spec, width=self.options().width)
        self.physical = (narrow_table(spec, self.dim),)
        self.widening = Widening(self.dim, spec.embedding_dim)

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        return (ids_N,)

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        logical_ND: Tensor = self.widening(rows[0])
        return logical_ND

    def pack(self, rows: Mapping[str, Tensor]) -> PackedTable:
        return self.widening.pack(rows[self.spec.name])

    @classmethod
    def allocate(cls, specs: Sequence[TableSpec], nbytes: int) -> list[TableSpec]:
        """The largest dim that all tables can have within the bytes (a table of a smaller embedding dim keeps that)."""
        refuse_below_floor(specs, nbytes)

        def total_nbytes(dim: int) -> int:
            return sum(held_nbytes(spec, min(dim, spec.embedding_dim)) for spec in specs)

        low, high = 1, max(spec.embedding_dim for spec in specs)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if total_nbytes(middle) <= nbytes else (low, middle - 1)
        return [with_width(spec, cls.Config, held_dim(spec, min(low, spec.embedding_dim))) for spec in specs]
