"""Random values of Optuna's distributions, from a generator of Python's: anywhere, or near another value."""

import math
import random
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from embank.tables import ConfigError


def draw_value(distribution: BaseDistribution, rng: random.Random) -> Any:
    """A value, each as likely; of a logarithmic distribution each order of magnitude.

    Raises:
        ConfigError: a distribution of a class that is not Optuna's.
    """
    if isinstance(distribution, CategoricalDistribution):
        return rng.choice(distribution.choices)
    if isinstance(distribution, IntDistribution):
        low, high = distribution.low, distribution.high
        if distribution.log:
            drawn = round(math.exp(rng.uniform(math.log(low - 0.5), math.log(high + 0.5))))
            return min(high, max(low, drawn))
        return low + distribution.step * rng.randrange((high - low) // distribution.step + 1)
    if isinstance(distribution, FloatDistribution):
        bottom, top = distribution.low, distribution.high
        if distribution.step is not None:
            count = round((top - bottom) / distribution.step)
            return min(top, bottom + distribution.step * rng.randint(0, count))
        if distribution.log:
            return min(top, max(bottom, math.exp(rng.uniform(math.log(bottom), math.log(top)))))
        return rng.uniform(bottom, top)
    raise ConfigError(
        f"{type(distribution).__name__} is no distribution that is known; use Optuna's float, int or categorical"
    )


def near_value(distribution: BaseDistribution, value: Any, rng: random.Random) -> Any:
    """A value at most an eighth of the range away, on the distribution's own scale; of categories any."""
    if not isinstance(distribution, IntDistribution | FloatDistribution):
        return draw_value(distribution, rng)
    low, high = float(distribution.low), float(distribution.high)
    if distribution.log:
        moved = float(value) * (high / low) ** (rng.uniform(-1, 1) / 8)
    else:
        moved = float(value) + max((high - low) / 8, float(distribution.step or 0)) * rng.uniform(-1, 1)
    moved = min(high, max(low, moved))
    if distribution.step is not None and not distribution.log:
        steps = round((moved - low) / distribution.step)
        moved = min(high, low + steps * distribution.step)
    return round(moved) if isinstance(distribution, IntDistribution) else moved
