"""The best trials of a study, of one objective or several."""

from collections.abc import Sequence

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial


def best_trials(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection], count: int) -> list[FrozenTrial]:
    """The best trials, from the best on.

    Those that keep their constraints come first, then those that break them least. With several objectives the order
    is by fronts (Deb et al., NSGA-II, 2002), and within a front by crowding distance, the loneliest first.

    Args:
        trials: complete ones.
        directions: of the study.
        count: how many at most.
    """
    by_excess: dict[float, list[FrozenTrial]] = {}
    for trial in trials:
        by_excess.setdefault(sum(max(0.0, value) for value in trial.constraints.values()), []).append(trial)
    found: list[FrozenTrial] = []
    for _, level in sorted(by_excess.items()):
        if len(found) >= count:
            break
        losses = {trial.number: _losses(trial, directions) for trial in level}
        if len(directions) == 1:
            found += sorted(level, key=lambda trial: (losses[trial.number], trial.number))
        else:
            found += [trial for front in fronts(level, losses, count - len(found)) for trial in front]
    return found[:count]


def _losses(trial: FrozenTrial, directions: Sequence[StudyDirection]) -> tuple[float, ...]:
    """The values, the lower the better."""
    return tuple(
        -value if direction == StudyDirection.MAXIMIZE else value
        for value, direction in zip(trial.values, directions, strict=True)
    )


def fronts(trials: Sequence[FrozenTrial], losses: dict[int, tuple[float, ...]], count: int) -> list[list[FrozenTrial]]:
    """Fronts of trials of which none dominates another, from the best on, until they hold `count`; each in the order of
    crowding."""
    left = sorted(trials, key=lambda trial: (losses[trial.number], trial.number))
    found: list[list[FrozenTrial]] = []
    while left and sum(map(len, found)) < count:
        front: list[FrozenTrial] = []
        for trial in left:  # in rising order of the first loss, so that none is dominated by a later one
            if not any(_dominates(losses[other.number], losses[trial.number]) for other in front):
                front.append(trial)
        taken = {trial.number for trial in front}
        left = [trial for trial in left if trial.number not in taken]
        distances = crowding([losses[trial.number] for trial in front])
        found.append([front[k] for k in sorted(range(len(front)), key=lambda k: (-distances[k], front[k].number))])
    return found


def _dominates(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    return first != second and all(a <= b for a, b in zip(first, second, strict=True))


def crowding(losses: Sequence[tuple[float, ...]]) -> list[float]:
    """Crowding distance of each point of a front: the sum over objectives of the gap between its two neighbours, as a
    share of the range; infinite at the ends."""
    distances = [0.0] * len(losses)
    for axis in range(len(losses[0]) if losses else 0):
        order = sorted(range(len(losses)), key=lambda k: losses[k][axis])
        low, high = losses[order[0]][axis], losses[order[-1]][axis]
        distances[order[0]] = distances[order[-1]] = float("inf")
        if high > low:
            for before, k, after in zip(order, order[1:], order[2:], strict=False):
                distances[k] += (losses[after][axis] - losses[before][axis]) / (high - low)
    return distances
