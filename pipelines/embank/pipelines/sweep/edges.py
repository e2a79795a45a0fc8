"""Choices at the edge of a grid: a better value may lie beyond it."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from embank.pipelines.config.file import set_key
from embank.pipelines.config.run import parse_config
from embank.pipelines.sweep.plan import Plan, point_of
from embank.tables import ConfigError

_FACTOR = 10.0
"""Beyond a zero, or a single step, there is no ratio to go on with."""


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
    """

    key: str
    value: float
    is_largest: bool
    following: float
    lines: Sequence[str]
    num_lines: int

    def __str__(self) -> str:
        end = "largest" if self.is_largest else "smallest"
        few = f" ({', '.join(self.lines[:3])}{', ...' if len(self.lines) > 3 else ''})"
        return (
            f"{self.key}={self.value:g}, the {end} value of its grid, was chosen by {len(self.lines)} of "
            f"{self.num_lines} lines{few}: try {self.key}={self.following:g} as well"
        )


def edges(plan: Plan, chosen: Mapping[str, str]) -> list[Edge]:
    """Choices beyond which a value is left to try.

    Values that are no numbers have no edge, nor has an end beyond which the configuration takes no value.

    Args:
        plan: with a grid.
        chosen: by line that was tuned, the point of the grid that validation chose.
    """
    found = []
    for key, values in plan.grid.items():
        numbers = sorted(value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool))
        if len(numbers) < 2 or len(numbers) < len(values):
            continue
        for ordered in (numbers[::-1], numbers):
            inner, end = ordered[-2:]
            following = _beyond(inner, end)
            if following is None or not _is_taken(plan, key, following):
                continue
            lines = [line for line, point in chosen.items() if point_of(point, plan.grid).get(key) == end]
            if lines:
                found.append(
                    Edge(
                        key=key,
                        value=end,
                        is_largest=end > inner,
                        following=following,
                        lines=lines,
                        num_lines=len(chosen),
                    )
                )
    return found


def _beyond(inner: float, end: float) -> float | None:
    """The value after `end` in the direction from `inner`: by their ratio where both are above 0, else by their
    distance; None where it would pass 0."""
    if inner > 0 and end > 0:
        beyond = end * end / inner
    elif end == 0:
        return None
    else:
        beyond = end * _FACTOR if inner == 0 else end + (end - inner)
    if isinstance(inner, int) and isinstance(end, int):
        return round(beyond) if round(beyond) != end else None
    return float(f"{beyond:.3g}")


def _is_taken(plan: Plan, key: str, value: float) -> bool:
    """Whether the configuration takes a value of a key."""
    raw: dict[str, Any] = deepcopy(dict(plan.config))
    try:
        set_key(raw, f"{key}={value!r}")
        parse_config(raw)
    except ConfigError:
        return False
    return True
