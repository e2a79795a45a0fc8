"""How many different values a column without a vocabulary has, in bounded memory.

Kept are the `KEPT` smallest distinct ids. While there are fewer, their number is the answer, exactly. Ids are hashes,
so they lie evenly in 0 .. 2**63 - 1: if the k-th smallest lies at a share u of that range, there are about (k - 1) / u
of them.

Source: the estimator is that of Beyer, Haas, Reinwald, Sismanis, Gemulla, "On Synopses for Distinct-Value Estimation
Under Multiset Operations", SIGMOD 2007, section 4.1: unbiased, with a standard deviation of 1 / sqrt(k - 2), 0.8%,
whatever the number.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from embank.tables.ids.token_space import NUM_TOKEN_IDS

Ids = npt.NDArray[np.int64]

KEPT = 16_384


class DistinctCount:
    """Counts the different ones among ids that come in parts; neither the order nor the parts matter."""

    def __init__(self) -> None:
        self._smallest: Ids = np.empty(0, dtype=np.int64)

    def add(self, ids_N: Ids) -> None:
        """Takes ids in, each in 0 .. 2**63 - 1 by `embank.tables.ids.token_hash`."""
        if self._smallest.size == KEPT:
            ids_N = ids_N[ids_N < self._smallest[-1]]
        if ids_N.size:
            self._smallest = np.unique(np.concatenate([self._smallest, ids_N]))[:KEPT]

    @property
    def is_exact(self) -> bool:
        """Whether `count` is no estimate."""
        return self._smallest.size < KEPT

    @property
    def count(self) -> int:
        """Different ids so far; below `KEPT` only if exact."""
        if self.is_exact:
            return int(self._smallest.size)
        return max(KEPT, round((KEPT - 1) * NUM_TOKEN_IDS / int(self._smallest[-1])))
