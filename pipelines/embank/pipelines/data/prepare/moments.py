"""Mean and standard deviation of streamed values, the same whatever the input was chunked into."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass
class Moments:
    """Count, mean, sum of squared deviations and ends, merged block by block.

    Source: T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    smallest: float = math.inf
    largest: float = -math.inf

    def add(self, values_N: npt.NDArray[np.float64]) -> None:
        """Take in values; nan is left out."""
        values_N = values_N[~np.isnan(values_N)]
        if not values_N.size:
            return
        count, mean = len(values_N), float(values_N.mean())
        squares = float(np.square(values_N - mean).sum())
        delta, total = mean - self.mean, self.count + count
        self.squares += squares + delta * delta * self.count * count / total
        self.mean += delta * count / total
        self.count = total
        self.smallest = min(self.smallest, float(values_N.min()))
        self.largest = max(self.largest, float(values_N.max()))
        if self.is_constant:  # without what rounding has added
            self.mean, self.squares = self.largest, 0.0

    @property
    def is_constant(self) -> bool:
        """Whether all values so far are equal."""
        return self.smallest == self.largest

    @property
    def std(self) -> float:
        """Standard deviation (of the population); 1 when all values are equal, so that it can divide."""
        deviation = math.sqrt(self.squares / self.count) if self.count else 0.0
        return deviation if deviation > 0 else 1.0
