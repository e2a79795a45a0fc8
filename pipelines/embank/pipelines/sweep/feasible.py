"""Whether a method reaches a budget, and its floor if not: without training and without a single row."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from embank.pipelines.config.run import Config, to_plain
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import id_counts, table_specs
from embank.pipelines.sweep.plan import Case, Job, Plan
from embank.tables import BudgetError, ConfigError, build_method

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
        self.errors: dict[str, BudgetError | None] = {}

    def refusal(self, config: Config) -> str | None:
        """Why the budget can't be kept; None if it can."""
        error = self._error(config)
        return None if error is None else str(error)

    def _error(self, config: Config) -> BudgetError | None:
        key = _key(config)
        if key not in self.errors:
            self.errors[key] = self._built(config)
        return self.errors[key]

    def _built(self, config: Config) -> BudgetError | None:
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

        whole = replace(config, tables=replace(config.tables, default=replace(config.tables.default, budget=1.0)))
        key = _key(whole)
        if key not in self.floors:
            error = self._error(config)
            self.floors[key] = smallest(reaches, near=None if error is None else error.floor)
        return self.floors[key]


def _key(config: Config) -> str:
    """What tables depend on: a grid of learning rates has the tables of one run."""
    plain = to_plain(config)
    return repr({**plain, "train": {"embedding_l2": config.train.embedding_l2}})


@dataclass(frozen=True, kw_only=True)
class Infeasible:
    """A line whose budget no point of the grid reaches.

    Args:
        refusal: why, of the point with the smallest floor.
        floor: the smallest budget that a point reaches; None if there is none, or the line has no budget.
    """

    refusal: str
    floor: float | None


class Reach:
    """Which points of a grid reach the budgets of their lines. Each is looked at once.

    Args:
        plan: with or without a grid.
        feasibility: of the data.
    """

    def __init__(self, plan: Plan, feasibility: Feasibility) -> None:
        self.plan, self.feasibility = plan, feasibility
        self.refusals: dict[tuple[Case, str], str | None] = {}
        self.faults: dict[tuple[Case, str], ConfigError] = {}

    def __call__(self, job: Job) -> bool:
        """Whether a run's tables keep its line's budget, as far as they can be built: what else is wrong, the run
        says."""
        return self.refusal(job) is None

    def refusal(self, job: Job) -> str | None:
        """Why a run's tables can't keep its line's budget; None if they can."""
        key = job.case, job.point
        if key not in self.refusals:
            try:
                self.refusals[key] = self.feasibility.refusal(self.plan.config_of(job))
            except ConfigError as error:
                self.refusals[key], self.faults[key] = None, error
        return self.refusals[key]

    def points(self, case: Case) -> list[Job]:
        """The points of the grid that reach a line's budget, the first seed's runs."""
        return [job for job in self.plan.points(case) if self(job)]

    def left_out(self, case: Case) -> list[Job]:
        """The points of the grid that don't."""
        return [job for job in self.plan.points(case) if not self(job)]

    def infeasible(self, case: Case) -> Infeasible | None:
        """Why a line can't be trained; None if a point of the grid reaches its budget.

        Raises:
            ConfigError: no tables can be built at any point, and not for the budget alone.
        """
        reached, refused = self.points(case), self.left_out(case)
        faults = [self.faults[job.case, job.point] for job in reached if (job.case, job.point) in self.faults]
        if len(faults) < len(reached):
            return None
        if not refused:
            raise faults[0]
        floors = {
            job: None if case.budget is None else self.feasibility.floor(self.plan.config_of(job)) for job in refused
        }
        nearest = min(refused, key=lambda job: _or_none_last(floors[job]))
        return Infeasible(refusal=self.refusal(nearest) or "", floor=floors[nearest])


def _or_none_last(floor: float | None) -> float:
    return inf if floor is None else floor


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
