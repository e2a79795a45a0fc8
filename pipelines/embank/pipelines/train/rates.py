"""A learning rate for rows where the configuration leaves it open (`train.table_lr: auto`).

It is found by short trainings of the very configuration, each judged on validation. A run keeps to what was found: the
rate stands in its configuration from then on.
"""

from collections.abc import Callable, Mapping

from embank.pipelines.config.sections import FIRST_TABLE_LR

FACTOR = 2.5
"""How far the first neighbours of a rate are from it."""
BOUNDS = (1e-4, 2.0)
TRIAL_STEPS = 2000
"""Steps of a trial at most; shorter trainings are tried in full."""


def climb(
    score: Callable[[float], float],
    *,
    start: float = FIRST_TABLE_LR,
    factor: float = FACTOR,
    bounds: tuple[float, float] = BOUNDS,
) -> Mapping[float, float]:
    """Scores of rates around the best one, in the order in which they were tried.

    Neighbours a factor apart are tried until both of the best rate's are worse or out of bounds; then those half as far
    from it.

    Args:
        score: of a rate; called once for each.
        start: the first rate.
        factor: between neighbours.
        bounds: least and largest rate.

    Example:
        >>> from math import log
        >>> dict(climb(lambda rate: round(-abs(log(rate / 0.1)), 1)))
        {0.02: -1.6, 0.05: -0.7, 0.12: -0.2, 0.31: -1.1, 0.2: -0.7, 0.079: -0.2}
    """
    tried: dict[float, float] = {}

    def rate_at(place: float) -> float:
        return float(f"{start * factor**place:.2g}")

    def value_at(place: float) -> float:
        rate = rate_at(place)
        if not bounds[0] <= rate <= bounds[1]:
            return float("-inf")
        if rate not in tried:
            tried[rate] = score(rate)
        return tried[rate]

    best, value = 0.0, value_at(0.0)
    for step in (1.0, 0.5):
        goes_on = True
        while goes_on:
            above = value_at(best + step)
            found = best + step if above > value else best - step if value_at(best - step) > value else best
            goes_on = found != best and step == 1.0
            best, value = found, value_at(found)
    return tried
