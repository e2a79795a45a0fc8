"""Kneser-Ney against a slow twin of dictionaries, and against itself: probabilities that add up to 1."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from embank.pipelines.lm.kneser_ney import KneserNey, best_mixture
from embank.pipelines.lm.ngrams import CONTEXTS, Packing, seen_contexts
from embank.tables import ConfigError

pytestmark = pytest.mark.slow

V = 80
ZIPF = 1 / np.arange(1, V + 1)
STREAM = np.random.default_rng(0).choice(V, 700, p=ZIPF / ZIPF.sum())


def _twin(stream: list[int], context: tuple[int, ...], token: int, *, order: int) -> float:
    """Chen and Goodman's equations, word by word."""
    raw = Counter(tuple(stream[i : i + order]) for i in range(len(stream) - order + 1))
    counts: dict[int, Counter[tuple[int, ...]]] = {order: raw}
    for length in range(order - 1, 0, -1):
        counts[length] = Counter(gram[1:] for gram in counts[length + 1])

    def probability(length: int, history: tuple[int, ...]) -> float:
        if length == 0:
            return 1 / V
        below = probability(length - 1, history[1:])
        numbers = Counter(counts[length].values())
        share = numbers[1] / (numbers[1] + 2 * numbers[2])
        discount = {0: 0.0}
        for count in (1, 2, 3):
            discount[count] = count - (count + 1) * share * numbers[count + 1] / numbers[count]
        follow: dict[int, int] = {}
        for gram, count in counts[length].items():
            if gram[:-1] == history:
                follow[gram[-1]] = count
        if not follow:
            return below
        total = sum(follow.values())
        taken = sum(discount[min(c, 3)] for c in follow.values())
        count = follow.get(token, 0)
        return max(count - discount[min(count, 3)], 0) / total + taken / total * below

    return probability(order, context)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_it_is_its_twin(order: int) -> None:
    model = KneserNey(STREAM, vocab_size=V, order=order)
    text = np.array([0, 1, 2, 6, 3, 0, 0, 1, 5, 4, 2])
    places = np.arange(order - 1, len(text))
    found = model.probabilities(text, places)
    expected = [
        _twin(STREAM.tolist(), tuple(text[i - order + 1 : i].tolist()), int(text[i]), order=order) for i in places
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_probabilities_add_up() -> None:
    model = KneserNey(STREAM, vocab_size=V, order=4)
    for context in ([0, 1, 2], [6, 6, 6], [6, 0, 1], [5, 3, 4]):
        each = [model.probabilities(np.array([*context, token]), np.array([3]))[0] for token in range(V)]
        assert sum(each) == pytest.approx(1.0, abs=1e-12)
        assert min(each) > 0


def test_the_beginning_has_shorter_contexts() -> None:
    model, short = (KneserNey(STREAM, vocab_size=V, order=order) for order in (3, 1))
    assert model.probabilities(np.array([2, 1]), np.array([0])) == pytest.approx(
        model._interpolated(model.orders[0], np.array([2], dtype=np.uint64), np.array([1 / V]))
    )
    assert short.probabilities(np.array([2]), np.array([0]))[0] > 1 / V


def test_orders_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="6-grams of 4096 ids take 72 bits"):
        Packing(4096, 6)


def test_contexts_are_told_apart() -> None:
    train = np.array([1, 2, 3, 4, 5])
    text = np.array([1, 2, 3, 0, 3, 4, 0, 9, 9])
    classes = seen_contexts(train, text, np.arange(1, len(text)), vocab_size=10)
    names: list[Any] = [CONTEXTS[c] for c in classes]
    #       after 1     1 2       1 2 3     2 3 0     3 0 3     0 3 4     3 4 0     4 0 9
    assert names == ["unseen", "bigram", "trigram", "unseen", "unseen", "bigram", "unseen", "unseen"]


def test_mixtures_take_the_better_half() -> None:
    good, bad = np.full(50, 0.5), np.full(50, 0.1)
    assert best_mixture(good, bad) == 1.0
    assert best_mixture(bad, good) == 0.0
    halves = np.where(np.arange(50) % 2, 0.9, 0.01)
    assert best_mixture(halves, halves[::-1]) == pytest.approx(0.5)
