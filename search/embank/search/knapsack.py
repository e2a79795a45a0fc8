"""The exact multiple-choice knapsack, for every budget at once.

Legend: n points of a front, o options of a table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embank.tables import BudgetError, ConfigError


@dataclass(frozen=True, kw_only=True)
class _Step:
    """How the points of a front came from those before one table: whose point, and which option."""

    parents_n: NDArray[np.int64]
    options_n: NDArray[np.int64]


class KnapsackFront:
    """The best score at every number of bytes, and the options that have it.

    Attributes:
        nbytes_n: int64, rising: bytes at which a better score becomes possible.
        scores_n: float64, rising: those scores.
    """

    def __init__(
        self, names: Sequence[str], nbytes_n: NDArray[np.int64], scores_n: NDArray[np.float64], steps: Sequence[_Step]
    ) -> None:
        self.names, self.nbytes_n, self.scores_n, self._steps = tuple(names), nbytes_n, scores_n, steps

    def __len__(self) -> int:
        return len(self.nbytes_n)

    def at(self, nbytes: int) -> dict[str, int]:
        """For each table the option that the best choice within some bytes takes.

        Raises:
            BudgetError: the smallest options together have more; states their bytes.
        """
        point = int(np.searchsorted(self.nbytes_n, nbytes, side="right")) - 1
        if point < 0:
            raise BudgetError(
                f"{nbytes:,} bytes do not hold the smallest option of every table, {int(self.nbytes_n[0]):,} bytes; "
                "raise the budget"
            )
        return self.options_of(point)

    def options_of(self, point: int) -> dict[str, int]:
        """The options of one point of the front."""
        found: dict[str, int] = {}
        for name, step in zip(reversed(self.names), reversed(self._steps), strict=True):
            found[name] = int(step.options_n[point])
            point = int(step.parents_n[point])
        return {name: found[name] for name in self.names}


def profile_knapsack(options: Mapping[str, Sequence[tuple[int, float]]], *, nbytes: int | None = None) -> KnapsackFront:
    """One option for each table, with the largest sum of scores: for every budget, exactly.

    Args:
        options: by table, (serving bytes, score) of each option. Scores of a table are comparable among themselves,
            such as the model's score with that option while every other table is whole.
        nbytes: the largest budget of interest; None for all.

    Returns:
        The front. Its scores are sums over the tables of what an option has above the table's best one, so that 0 is
        every table at its best.

    Raises:
        ConfigError: there is no table, or one without an option.
        BudgetError: `nbytes` does not hold the smallest options.

    Source: Nemhauser and Ullmann (Management Science 15, 1969): table after table, every choice so far that has both
    more bytes and no better score than another can be dropped. A few thousand choices are left for 40 tables of 7
    options, 10**5 for 40 tables of 16.

    >>> front = profile_knapsack({"a": [(4, 0.70), (8, 0.74)], "b": [(10, 0.60), (30, 0.74)]})
    >>> front.at(20), front.at(34), len(front)
    ({'a': 1, 'b': 0}, {'a': 0, 'b': 1}, 4)
    """
    if not options:
        raise ConfigError("a knapsack needs at least one table")
    held_n, scores_n = np.zeros(1, dtype=np.int64), np.zeros(1)
    steps: list[_Step] = []
    floors = {name: min((cost for cost, _ in own), default=0) for name, own in options.items()}
    rest = sum(floors.values())
    if nbytes is not None and rest > nbytes:
        raise BudgetError(f"{nbytes:,} bytes do not hold the smallest option of every table, {rest:,} bytes")
    for name, own in options.items():
        if not own:
            raise ConfigError(f"table '{name}' has no option; give at least one")
        rest -= floors[name]
        held_n, scores_n, step = _added(held_n, scores_n, own, None if nbytes is None else nbytes - rest)
        steps.append(step)
    return KnapsackFront(list(options), held_n, scores_n, steps)


def _added(
    held_n: NDArray[np.int64], scores_n: NDArray[np.float64], own: Sequence[tuple[int, float]], limit: int | None
) -> tuple[NDArray[np.int64], NDArray[np.float64], _Step]:
    """A front with one table more."""
    costs_o = np.array([cost for cost, _ in own], dtype=np.int64)
    gains_o = np.array([score for _, score in own], dtype=np.float64)
    gains_o = gains_o - gains_o.max()
    num = len(held_n)
    held = (held_n + costs_o[:, None]).ravel()
    scores = (scores_n + gains_o[:, None]).ravel()
    order = np.lexsort((-scores, held))
    if limit is not None:
        order = order[: np.searchsorted(held[order], limit, side="right")]
    best = np.maximum.accumulate(scores[order])
    is_better = np.concatenate([[True], scores[order][1:] > best[:-1]])
    kept = order[is_better]
    return held[kept], scores[kept], _Step(parents_n=kept % num, options_n=kept // num)
