"""Interpolated modified Kneser-Ney smoothing: the n-gram baseline that a memory must be measured against.

Source: Chen and Goodman, An empirical study of smoothing techniques for language modeling, 1998, equations 11 to 17.
Orders below the highest count in how many contexts an n-gram stands, not how often.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embank.pipelines.lm.ngrams import Keys, Packing

ORDER = 5


@dataclass(frozen=True, kw_only=True)
class _Order:
    """Counts of one order: n-grams, and the contexts that they go on from."""

    keys: Keys
    counts: NDArray[np.int64]
    contexts: Keys
    totals: NDArray[np.int64]
    backoffs: NDArray[np.float64]  # weight of the shorter order in each context
    discounts: NDArray[np.float64]  # of counts 0, 1, 2, 3 and more


class KneserNey:
    """Probabilities of the next id given those before it.

    Args:
        train: ids to count.
        vocab_size: V.
        order: of the longest n-gram.

    Example:
        >>> model = KneserNey(np.array([1, 2, 1, 2, 1, 3]), vocab_size=4, order=2)
        >>> model.probabilities(np.array([1, 2]), np.array([1])).round(3)
        array([0.214])
    """

    def __init__(self, train: NDArray[Any], *, vocab_size: int, order: int = ORDER) -> None:
        self.vocab_size, self.packing = vocab_size, Packing(vocab_size, order)
        self.orders: list[_Order] = []
        keys, counts = np.unique(self.packing.keys(train, order), return_counts=True)
        for length in range(order, 0, -1):
            self.orders.append(self._order(keys, counts.astype(np.int64)))
            if length > 1:
                keys, counts = np.unique(self.packing.last(keys, length - 1), return_counts=True)
        self.orders.reverse()

    def _order(self, keys: Keys, counts: NDArray[np.int64]) -> _Order:
        discounts = _discounts(counts)
        contexts, place = np.unique(self.packing.context(keys), return_inverse=True)
        totals = np.bincount(place, weights=counts)
        taken = np.bincount(place, weights=discounts[np.minimum(counts, 3)])
        return _Order(
            keys=keys,
            counts=counts,
            contexts=contexts,
            totals=totals.astype(np.int64),
            backoffs=taken / totals,
            discounts=discounts,
        )

    def probabilities(self, stream: NDArray[Any], places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of the ids at some places of a stream, given those before them.

        Args:
            stream: ids.
            places: positions in it.
        """
        found = np.full(len(places), 1.0 / self.vocab_size)
        for length, order in enumerate(self.orders, start=1):
            keys = self.packing.keys(stream, length)
            first = places - (length - 1)
            has_context = first >= 0
            keys_here = keys[first[has_context]]
            found[has_context] = self._interpolated(order, keys_here, found[has_context])
        return found

    def _interpolated(self, order: _Order, keys: Keys, shorter: NDArray[np.float64]) -> NDArray[np.float64]:
        """One order's probabilities, from those of the order below; the same where the context is unseen."""
        context, is_known = _find(order.contexts, self.packing.context(keys))
        place, is_seen = _find(order.keys, keys)
        counts = np.where(is_seen, order.counts[place], 0)
        kept = np.maximum(counts - order.discounts[np.minimum(counts, 3)], 0.0)
        mixed = kept / order.totals[context] + order.backoffs[context] * shorter
        return np.where(is_known, mixed, shorter)


def _find(sorted_keys: Keys, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where keys are among sorted ones, and whether they are."""
    places = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return places, sorted_keys[places] == keys


def _discounts(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """What is taken from counts of 1, 2 and 3 or more; a half where too few n-grams tell."""
    n1, n2, n3, n4 = (int((counts == number).sum()) for number in (1, 2, 3, 4))
    if not n1 or not n2:
        return np.array([0.0, 0.5, 0.5, 0.5])
    share = n1 / (n1 + 2 * n2)
    one = 1 - 2 * share * n2 / n1
    two = 2 - 3 * share * n3 / n2
    three = 3 - 4 * share * n4 / n3 if n3 else two
    return np.array([0.0, *(float(np.clip(d, 0.0, most)) for d, most in ((one, 1), (two, 2), (three, 3)))])


def best_mixture(first_N: NDArray[np.float64], second_N: NDArray[np.float64]) -> float:
    """The weight of the first of two models that makes their mixture likeliest, to a twentieth.

    Args:
        first_N, second_N: probabilities that each gave to the same tokens.
    """
    weights = np.linspace(0.0, 1.0, 21)
    return float(max(weights, key=lambda w: float(np.log(w * first_N + (1 - w) * second_N).sum())))
