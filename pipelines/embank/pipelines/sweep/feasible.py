"""Whether a method reaches a budget, and its floor if not: without training and without a single row."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from embank.pipelines.data.schema import Schema
from embank.pipelines.training.build import id_counts, table_specs
from embank.pipelines.training.config import Config
from embank.tables import BudgetError, build_method

HALVINGS = 12
"""Steps of the search for a floor: it is found to within a factor of about 1.002 per decade."""


class Feasibility:
    """Builds the methods of a configuration's tables, which refuse what they can't reach.

    Args:
        data: the prepared folder.
    """

    def __init__(self, data: Path) -> None:
        self.data, self.schema = data, Schema.load(data)
        self.counts = id_counts(self.schema, data=data)

    def refusal(self, config: Config) -> str | None:
        """Why the budget can't be kept; None if it can."""
        try:
            for spec in table_specs(config, self.schema, data=self.data, counts=self.counts):
                build_method(spec)
        except BudgetError as error:
            return str(error)
        return None

    def floor(self, config: Config) -> float | None:
        """The smallest budget of all tables together that the method reaches, rounded up to 3 digits; None if 1 is too small."""

        def reaches(budget: float) -> bool:
            default = replace(config.tables.default, budget=budget)
            return self.refusal(replace(config, tables=replace(config.tables, default=default))) is None

        budget = config.tables.default.budget
        assert budget is not None
        return smallest(reaches, above=budget)


def smallest(reaches: Callable[[float], bool], *, above: float) -> float | None:
    """The smallest number in (above, 1] that `reaches` holds for, by bisection of its logarithm, rounded up to 3 digits."""
    if not reaches(1.0):
        return None
    low, high = above, 1.0
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if reaches(middle) else (middle, high)
    rounded = float(f"{high:.3g}")
    return rounded if rounded >= high else float(f"{high * 1.005:.3g}")
