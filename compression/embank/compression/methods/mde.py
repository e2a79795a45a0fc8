"""Mixed Dimension Embeddings (Ginart et al., ISIT 2021, arXiv 1909.11810): narrower rows in larger tables."""

from collections.abc import Sequence

from embank.compression.fitting.widths import NarrowSvd
from embank.compression.parts.projected import NarrowRows, held_dim, held_nbytes, refuse_below_floor, with_width
from embank.tables import Allocation, TableSpec, Traits, option_class

_BISECTIONS = 50


@option_class
class MdeConfig:
    """Options of a mixed-dimension table.

    Args:
        width: of the rows; None takes what the budget allows (in a collection, what the power rule gives within the
            budget of all its tables), or without a budget the whole embedding dim.
    """

    width: int | None = None


class PowerRule(Allocation):
    """Dims by the power rule, the largest that fit, and the bytes that rounding left given out dim by dim."""

    def share(self, specs: Sequence[TableSpec], nbytes: int) -> list[TableSpec]:
        refuse_below_floor(specs, nbytes)
        sizes = ids_per_lookup(specs)
        low, high = 0.0, 2.0  # the rule's dims fall with its exponent; at 2 every dim is 1
        if _total_nbytes(specs, power_dims(specs, sizes, low)) <= nbytes:
            high = low
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            fits = _total_nbytes(specs, power_dims(specs, sizes, middle)) <= nbytes
            low, high = (low, middle) if fits else (middle, high)
        dims = top_up(specs, sizes, high, nbytes)
        return [with_width(spec, MdeConfig, dim) for spec, dim in zip(specs, dims, strict=True)]


class Mde(NarrowRows):
    """Rows of a width that fits the table's size, and one learned projection to the embedding dim, without a bias.

    Dims are shared out over a collection by `allocate`; a table on its own has the dim that its budget holds.
    Where it differs from the public implementation (Hetu's EMC): dims are not
    rounded to powers of two, which threw away up to 36% of the budget; what is left after the rule is given out one dim
    at a time; a projection is held only where it saves bytes; factors start so that their product has a plain table's
    spread.

    Raises:
        BudgetError: the budget does not hold rows of dim 1 and the projection.
        ConfigError: both a budget and a width, or a width outside 1 .. embedding_dim.

    Example:
        >>> table = build_table(method="mde", num_embeddings=1000, embedding_dim=8, budget=0.2)
        >>> table.nbytes("serving") / table.spec.plain_nbytes
        0.126
    """

    Config = MdeConfig
    traits = Traits(allocation=PowerRule(), fitting=NarrowSvd())


def ids_per_lookup(specs: Sequence[TableSpec]) -> list[float]:
    """n_i / k_i of the rule: ids of each table per lookup of it, in units of the most looked-up table's k.

    k is 1 for tables of one id per sample; a multi-valued feature, looked up more often, counts as a smaller table. It
    takes counts in every table; else k is 1 for all.
    """
    if any(spec.counts is None for spec in specs):
        return [float(spec.num_embeddings) for spec in specs]
    lookups = [max(1, int(spec.counts.sum())) for spec in specs if spec.counts is not None]
    return [spec.num_embeddings * max(lookups) / own for spec, own in zip(specs, lookups, strict=True)]


def ideal_dims(specs: Sequence[TableSpec], sizes: Sequence[float], exponent: float) -> list[float]:
    """The power rule before rounding.

    Up to an exponent of 1 it is the paper's, D (n_min / n_i) ** exponent: the smallest table keeps the whole dim.
    Tables of nearly one size can't get small by it, so from 1 to 2 all dims shrink together, to 0.
    """
    alpha, shrink = min(exponent, 1.0), min(1.0, 2.0 - exponent)
    smallest = min(sizes)
    return [shrink * spec.embedding_dim * (smallest / size) ** alpha for spec, size in zip(specs, sizes, strict=True)]


def power_dims(specs: Sequence[TableSpec], sizes: Sequence[float], exponent: float) -> list[int]:
    """Dims by the power rule, rounded, at least 1; whole where narrow rows would not save bytes."""
    ideal = ideal_dims(specs, sizes, exponent)
    return [held_dim(spec, max(1, round(dim))) for spec, dim in zip(specs, ideal, strict=True)]


def top_up(specs: Sequence[TableSpec], sizes: Sequence[float], exponent: float, nbytes: int) -> list[int]:
    """Raises dims one by one while bytes are left, first where they are furthest below the rule.

    Among tables of one embedding dim that are looked up equally often, dims still don't rise with size: of two with
    equal dims the smaller one is further below the rule, and its dim costs less.
    """
    ideal, dims = ideal_dims(specs, sizes, exponent), power_dims(specs, sizes, exponent)
    left = nbytes - _total_nbytes(specs, dims)

    def extra_nbytes(i: int) -> int:
        return held_nbytes(specs[i], dims[i] + 1) - held_nbytes(specs[i], dims[i])

    while True:
        possible = [i for i, spec in enumerate(specs) if dims[i] < spec.embedding_dim and extra_nbytes(i) <= left]
        if not possible:
            return dims
        chosen = max(possible, key=lambda i: ideal[i] - dims[i])
        left -= extra_nbytes(chosen)
        dims[chosen] = held_dim(specs[chosen], dims[chosen] + 1)


def _total_nbytes(specs: Sequence[TableSpec], dims: Sequence[int]) -> int:
    return sum(held_nbytes(spec, dim) for spec, dim in zip(specs, dims, strict=True))
