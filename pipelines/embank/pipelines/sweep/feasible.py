"""Whether a method reaches a budget, and its floor if not: without training and without a single row."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from embank.pipelines.config.run import Config, to_plain
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import id_counts, table_specs
from embank.tables import BudgetError, build_method

_DECADES = 12
_NUM_BUDGETS = 900 * _DECADES + 1


class Feasibility:
    """Builds the methods of a configuration's tables, which refuse what they can't reach.

    Args:
        data: the prepared folder.
    """

    def __init__(self, data: Path) -> None:
        self.data, self.schema = data, Schema.load(data)
        self.counts = id_counts(self.schema, data=data)
        self.floors: dict[str, float | None] = {}

    def refusal(self, config: Config) -> str | None:
        """Why the budget can't be kept; None if it can."""
        error = self._error(config)
        return None if error is None else str(error)

    def _error(self, config: Config) -> BudgetError | None:
        try:
            for spec in table_specs(config, self.schema, data=self.data, counts=self.counts):
                build_method(spec)
        except BudgetError as error:
            return error
        return None

    def floor(self, config: Config) -> float | None:
        """The smallest budget of 3 digits, for all tables together, that the method reaches; None if it reaches none.

        It doesn't depend on the configuration's own budget.
        """

        def reaches(budget: float) -> bool:
            default = replace(config.tables.default, budget=budget)
            return self.refusal(replace(config, tables=replace(config.tables, default=default))) is None

        key = repr(
            to_plain(replace(config, tables=replace(config.tables, default=replace(config.tables.default, budget=1.0))))
        )
        if key not in self.floors:
            error = self._error(config)
            self.floors[key] = smallest(reaches, near=None if error is None else error.floor)
        return self.floors[key]


def smallest(reaches: Callable[[float], bool], *, near: float | None = None) -> float | None:
    """The smallest number of 3 digits in [1e-12, 1] from which on `reaches` holds.

    Args:
        reaches: holds from some number on.
        near: is tried first, rounded up; where it isn't the one, all are bisected.
    """
    if near is not None:
        index = bisect_left(range(_NUM_BUDGETS), near, key=_budget)
        if 0 < index < _NUM_BUDGETS and reaches(_budget(index)) and not reaches(_budget(index - 1)):
            return _budget(index)
    index = bisect_left(range(_NUM_BUDGETS), True, key=lambda index: reaches(_budget(index)))
    return None if index == _NUM_BUDGETS else _budget(index)


def _budget(index: int) -> float:
    """The budgets of 3 digits from 1e-12 on, in order: 1.00e-12, 1.01e-12, ..., 0.999, 1."""
    decade, digits = divmod(index, 900)
    return float(f"{100 + digits}e{decade - _DECADES - 2}")
