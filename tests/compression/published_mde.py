"""Dims of Mixed Dimension Embeddings as a public implementation finds them (EMC in Hetu), to compare with its results.

Not what `mde` does: powers of two leave up to 36% of a budget unused, and the projections are left out of the reported
ratio (they are in the ratio here).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from embank.tables import BudgetError

_BISECTIONS = 60


@dataclass(frozen=True, kw_only=True)
class PublishedDims:
    """What the solver finds.

    Args:
        alpha: exponent of the power rule.
        dims: of each table.
        ratio: numbers held, projections included, over those of the plain tables.
    """

    alpha: float
    dims: tuple[int, ...]
    ratio: float


def published_dims(num_embeddings: Sequence[int], *, embedding_dim: int, budget: float) -> PublishedDims:
    """The smallest exponent in [0, 1] whose dims keep the budget, by bisection.

    Raises:
        BudgetError: even exponent 1 exceeds the budget.
    """

    def ratio(alpha: float) -> float:
        dims = power_of_two_dims(num_embeddings, embedding_dim=embedding_dim, alpha=alpha)
        held = sum(
            n * d + (d * embedding_dim if d < embedding_dim else 0) for n, d in zip(num_embeddings, dims, strict=True)
        )
        return held / (embedding_dim * sum(num_embeddings))

    if ratio(1.0) > budget:
        raise BudgetError(f"the published rule has its floor at budget {ratio(1.0):.6g}; the budget is {budget}")
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if ratio(middle) <= budget else (middle, high)
    dims = power_of_two_dims(num_embeddings, embedding_dim=embedding_dim, alpha=high)
    return PublishedDims(alpha=high, dims=tuple(dims), ratio=ratio(high))


def power_of_two_dims(num_embeddings: Sequence[int], *, embedding_dim: int, alpha: float) -> list[int]:
    """max(1, D (n_min / n_i) ** alpha), rounded to a whole number and that to a power of two.

    Example:
        >>> power_of_two_dims([100, 10_000, 1_000_000], embedding_dim=16, alpha=0.3)
        [16, 4, 1]
    """
    smallest = min(num_embeddings)
    dims = [round(max(1.0, embedding_dim * (smallest / n) ** alpha)) for n in num_embeddings]
    return [2 ** round(math.log2(dim)) for dim in dims]
