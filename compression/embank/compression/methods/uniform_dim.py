"""Narrower rows, equally narrow in every table: the baseline of the methods that choose dims (MDE, AutoDim,
OptEmbed)."""

from bisect import bisect_right
from collections.abc import Sequence

from embank.compression.fitting.widths import NarrowSvd
from embank.compression.parts.projected import NarrowRows, held_dim, held_nbytes, refuse_below_floor, with_width
from embank.tables import Allocation, TableSpec, Traits, option_class


@option_class
class UniformDimConfig:
    """Options of equally narrow rows.

    Args:
        width: of the rows; None takes what the budget allows, or without a budget the whole embedding dim.
    """

    width: int | None = None


class CommonWidth(Allocation):
    """The largest dim that all tables can have within the bytes (a table of a smaller embedding dim keeps that)."""

    def share(self, specs: Sequence[TableSpec], nbytes: int) -> list[TableSpec]:
        refuse_below_floor(specs, nbytes)

        def total_nbytes(dim: int) -> int:
            return sum(held_nbytes(spec, min(dim, spec.embedding_dim)) for spec in specs)

        dims = range(1, max(spec.embedding_dim for spec in specs) + 1)
        common = bisect_right(dims, nbytes, key=total_nbytes)  # dims begin at 1, which fits
        return [with_width(spec, UniformDimConfig, held_dim(spec, min(common, spec.embedding_dim))) for spec in specs]


class UniformDim(NarrowRows):
    """Rows of width d and one learned projection [d, D] per table, which is counted.

    The model keeps its dim, so that what changes is the table alone. Tables that would not become smaller (fewer than
    d D / (D - d) ids) stay plain.

    Raises:
        BudgetError: the budget does not hold rows of dim 1 and the projection.
        ConfigError: both a budget and a width, or a width outside 1 .. embedding_dim.

    Example:
        >>> table = build_table(method="uniform_dim", num_embeddings=1000, embedding_dim=8, budget=0.2)
        >>> table.nbytes("serving") / table.spec.plain_nbytes
        0.126
    """

    Config = UniformDimConfig
    traits = Traits(allocation=CommonWidth(), fitting=NarrowSvd())
