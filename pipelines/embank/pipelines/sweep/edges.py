"""Choices at the edge of a grid, beyond which a better value may lie; and the points that are tried there."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any

from embank.pipelines.config.file import set_key
from embank.pipelines.config.run import parse_config
from embank.pipelines.sweep.plan import Plan, as_whole, numbers_of, point_at, point_of
from embank.tables import ConfigError

_FACTOR = 10.0
"""Beyond a zero, or a single step, there is no ratio to go on with."""
MOST_BEYOND = 6
"""Values of a key that are tried beyond its grid at most, on both sides together."""


@dataclass(frozen=True, kw_only=True)
class Edge:
    """Choices at one end of a key's values.

    Args:
        key: of the grid.
        value: the chosen one, the smallest or the largest.
        is_largest: which.
        following: the next value to try.
        lines: that chose it.
        num_lines: that chose among the values.
        is_given: whether the chosen value is one of the grid, not one that was tried beyond it.
        failed: values beyond it that were tried and have no score.
    """

    key: str
    value: float
    is_largest: bool
    following: float
    lines: Sequence[str]
    num_lines: int
    is_given: bool
    failed: Sequence[float] = ()

    def __str__(self) -> str:
        end = "largest" if self.is_largest else "smallest"
        few = f" ({', '.join(self.lines[:3])}{', ...' if len(self.lines) > 3 else ''})"
        among, scored = (
            ("of its grid", " that has a score") if self.is_given else ("that was tried", " and has a score")
        )
        among += scored if self.failed else ""
        failed = f"; {' and '.join(map(_shown, self.failed))} failed" if self.failed else ""
        return (
            f"{self.key}={_shown(self.value)}, the {end} value {among}, was chosen by {len(self.lines)} of "
            f"{self.num_lines} lines{few}: try {self.key}={_shown(self.following)} as well{failed}"
        )


def _shown(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def edges(
    plan: Plan,
    chosen: Mapping[str, str],
    tried: Mapping[str, Sequence[str]] | None = None,
    failed: Mapping[str, Sequence[str]] | None = None,
    *,
    reaches: Callable[[str, str], bool] = lambda line, point: True,
) -> list[Edge]:
    """Choices beyond which a value is left to try.

    Values that are no numbers have no edge, nor has an end beyond which the configuration takes no value, or the line's
    budget can't be reached. A value all of whose points failed says nothing of what lies there: the edge is that of the
    values with a score, and what to try lies on this side of those that failed.

    Args:
        plan: with a grid.
        chosen: by line that was tuned, the point that validation chose.
        tried: by line, the points that were tried, those of the grid or others.
        failed: by line, those of them that failed.
        reaches: whether a line reaches its budget at a point.
    """
    found: dict[tuple[str, float, bool, tuple[float, ...]], tuple[float, list[str]]] = {}
    for key in plan.grid:
        for line, point in chosen.items():
            points, lost = ((by_line or {}).get(line, ()) for by_line in (tried, failed))
            values, without = _scored(plan, key, points, failed=lost)
            for ordered in (values[::-1], values):
                own = point_of(point, plan.grid)
                if len(values) < 2 or own.get(key) != ordered[-1]:
                    continue
                beyond = tuple(value for value in without if (value > ordered[-1]) == (ordered is values))
                following = _following(plan, key, ordered, before=beyond)
                if following is not None and reaches(line, point_at({**own, key: following})):
                    found.setdefault((key, ordered[-1], ordered is values, beyond), (following, []))[1].append(line)
    return [
        Edge(
            key=key,
            value=end,
            is_largest=is_largest,
            following=following,
            lines=lines,
            num_lines=len(chosen),
            is_given=end in plan.grid[key],
            failed=beyond,
        )
        for (key, end, is_largest, beyond), (following, lines) in sorted(
            found.items(), key=lambda item: (list(plan.grid).index(item[0][0]), item[0][1])
        )
    ]


def around(plan: Plan, point: str, tried: Sequence[str], *, failed: Sequence[str] = ()) -> list[str]:
    """The neighbours of a point: for each key with numbers, the same with the next smaller and the next larger value
    that the grid or a point that was tried has, or with the one beyond them. A value all of whose points failed is no
    neighbour: the one beyond the others lies on this side of it.

    Args:
        plan: with a grid.
        point: whose neighbours; it has a score.
        tried: points that were tried, the grid's or others.
        failed: those of them that failed.
    """
    found, own = [], point_of(point, plan.grid)
    for key in plan.grid:
        values, without = _scored(plan, key, tried, failed=failed)
        num_values, most = len(values) + len(without), len(plan.grid[key]) + MOST_BEYOND
        if num_values < 2:
            continue
        for is_up in (False, True):
            ordered = values if is_up else values[::-1]
            place = ordered.index(own[key])
            if place < len(ordered) - 1:
                found.append(point_at({**own, key: ordered[place + 1]}))
                continue
            beyond = [value for value in without if (value > own[key]) == is_up]
            if len(values) == 1 and not beyond:  # only those that failed say how far values are from each other
                ordered = [*(without[-1:] if is_up else without[:1]), *ordered]
            value = _following(plan, key, ordered, before=beyond)
            if value is not None and num_values < most:
                found.append(point_at({**own, key: value}))
    return found


def _numbers(plan: Plan, key: str, tried: Sequence[str]) -> list[float]:
    """The values of a key, the smallest first; [] if they are not numbers all."""
    return numbers_of([*plan.grid[key], *(point_of(point, plan.grid)[key] for point in tried)])


def _scored(plan: Plan, key: str, tried: Sequence[str], *, failed: Sequence[str]) -> tuple[list[float], list[float]]:
    """The values of a key, the smallest first: those with a score, and those all of whose points failed."""
    values = _numbers(plan, key, tried)
    has_score = [point_of(point, plan.grid)[key] for point in tried if point not in failed]
    lost = [value for point in failed if (value := point_of(point, plan.grid)[key]) not in has_score]
    return [value for value in values if value not in lost], [value for value in values if value in lost]


def _following(plan: Plan, key: str, ordered: Sequence[float], *, before: Sequence[float] = ()) -> float | None:
    """The value after the last one; None where the configuration takes none.

    Args:
        plan: with a grid.
        key: of the grid.
        ordered: values, the last one last; a single one only where there is one before.
        before: values that failed, which it does not reach; where it would, it is between the last one and the nearest.
    """
    end = ordered[-1]
    nearest = min(before, key=lambda failed: abs(failed - end), default=None)
    inner = ordered[-2] if len(ordered) > 1 else nearest
    assert inner is not None
    is_whole = _is_whole(plan, key, inner, end)
    value = _beyond(inner, end, is_whole=is_whole) if len(ordered) > 1 else None
    if nearest is not None and (value is None or abs(value - end) >= abs(nearest - end)):
        value = _between(end, nearest, is_whole=is_whole)
    return value if value is not None and _is_taken(plan, key, value) else None


def _between(end: float, failed: float, *, is_whole: bool) -> float | None:
    """The middle of two values: by their ratio where both are above 0; None where there is none."""
    middle = sqrt(end) * sqrt(failed) if end > 0 and failed > 0 else (end + failed) / 2
    value = round(middle) if is_whole else as_whole(float(f"{middle:.3g}"))
    return value if min(end, failed) < value < max(end, failed) else None


def _is_whole(plan: Plan, key: str, inner: float, end: float) -> bool:
    """Whether a key takes whole numbers only: both are some, and none between them is taken."""
    if not (isinstance(inner, int) and isinstance(end, int)):
        return False
    middle = (inner + end) / 2
    return not _is_taken(plan, key, middle + 0.5 if middle.is_integer() else middle)


def _beyond(inner: float, end: float, *, is_whole: bool) -> float | None:
    """The value after `end` in the direction from `inner`: by their ratio where both are above 0, else by their
    distance; None where it would pass 0, or be infinite."""
    if inner > 0 and end > 0:
        beyond = end / inner * end
    elif end == 0:
        return None
    else:
        beyond = end * _FACTOR if inner == 0 else end + (end - inner)
    if not isfinite(beyond):
        return None
    if is_whole:
        return round(beyond) if round(beyond) != end else None
    rounded = (float(f"{beyond:.{digits}g}") for digits in range(3, 18))
    return next((as_whole(value) for value in rounded if value != end and (value > end) == (end > inner)), None)


def _is_taken(plan: Plan, key: str, value: float) -> bool:
    """Whether the configuration takes a value of a key."""
    raw: dict[str, Any] = deepcopy(dict(plan.config))
    try:
        set_key(raw, f"{key}={value!r}")
        parse_config(raw)
    except ConfigError:
        return False
    return True
