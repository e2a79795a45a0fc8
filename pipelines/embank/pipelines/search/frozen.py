"""Trials on a frozen supernet: a candidate is a mask, and costs one pass of the network over validation or less."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.pruners import BasePruner, MedianPruner

from embank.pipelines.config.run import Config
from embank.pipelines.data.schema import Schema
from embank.pipelines.search.fields import FieldSpace, field_space
from embank.pipelines.search.job import Job, Setting
from embank.pipelines.search.plan import SearchPlan
from embank.pipelines.search.scores import Scorer
from embank.pipelines.search.supernet import Supernet, open_supernet
from embank.pipelines.train.interrupt import StopRequest
from embank.search.spaces import Candidate
from embank.search.spaces.tables import RowLevels, Widths
from embank.tables import ConfigError
from embank.tables.wording import nearest_or_all

_ROW_LEVELS = 6
"""All rows, a half, ... a thirty-second."""

_OPTIONS = {"widths": 4, "row_levels": 1}
_NUM_UNPRUNED = 20
"""Trials before any is given up half-way."""


@contextmanager
def frozen_setting(job: Job, stop: StopRequest) -> Iterator[Setting]:
    """Scores on the job's supernet, for as long as the context lasts.

    Args:
        job: the study.
        stop: not looked at: a candidate takes a moment.

    Raises:
        ConfigError, CheckpointError, DataError: the supernet or the data can't be used.
    """
    assert job.supernet is not None
    plan, config = job.plan, job.plan.parsed
    space = space_of(plan, config)
    with open_supernet(job.supernet, config=config) as supernet:
        scorer = scorer_of(plan, supernet, config=config)
        is_hopeful = len(scorer.rungs) > 1 and not plan.front and plan.sampler != "profile"
        pruner: BasePruner | None = MedianPruner(n_startup_trials=_NUM_UNPRUNED) if is_hopeful else None
        yield Setting(
            space=space,
            objective=FrozenObjective(scorer, space, prunes=pruner is not None),
            identity={
                "supernet": supernet.checksum,
                "data": Schema.load(config.data.path).fingerprint[:16],
                "metric": plan.metric,
                "validation_rows": scorer.valid.num_rows,
            },
            pruner=pruner,
            candidates=tuple(first_candidates(space, budget=job.budget, plan=plan)),
        )


def scorer_of(plan: SearchPlan, supernet: Supernet, *, config: Config) -> Scorer:
    """The plan's scores on a supernet."""
    return Scorer(
        supernet,
        data=Path(config.data.path),
        metric=plan.metric,
        precision=config.train.precision,
        max_rows=plan.max_rows,
    )


def space_of(plan: SearchPlan, config: Config) -> FieldSpace:
    """The plan's space.

    Raises:
        ConfigError: an unknown option of it, or nothing to search.
    """
    for key in plan.options:
        if key not in _OPTIONS:
            raise ConfigError(f"the space has an option '{key}'; {nearest_or_all(key, _OPTIONS, label='it knows')}")
    default = _OPTIONS | ({"row_levels": _ROW_LEVELS} if plan.space == "rows" else {})
    widths: Widths = plan.options.get("widths", default["widths"])
    if widths != "log2" and not _is_whole(widths) and not (isinstance(widths, list) and all(map(_is_whole, widths))):
        raise ConfigError(f"the space has widths {widths!r}; give a whole number, a list of them, or log2")
    row_levels: RowLevels = plan.options.get("row_levels", default["row_levels"])
    if not _is_whole(row_levels) and not (isinstance(row_levels, list) and all(map(_is_number, row_levels))):
        raise ConfigError(f"the space has row_levels {row_levels!r}; give a whole number, or a list of shares of rows")
    return field_space(config, widths=widths, row_levels=row_levels)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def first_candidates(space: FieldSpace, *, budget: float | None, plan: SearchPlan) -> list[Candidate]:
    """What every search is measured by: uniform widths, and those of the MDE rule, that keep the budget."""
    budgets = [b for b in plan.budgets if b is not None] if plan.front else [] if budget is None else [budget]
    return [c for share in budgets for c in space.simple_candidates(space.allowed_nbytes(share)).values()]


class FrozenObjective:
    """The score of a candidate of a space on a supernet; each is computed once in a process.

    Args:
        scorer: on the supernet.
        space: of the candidates.
        prunes: ask the study's pruner between the rungs of the ladder.
    """

    def __init__(self, scorer: Scorer, space: FieldSpace, *, prunes: bool) -> None:
        self.scorer, self.space, self.prunes = scorer, space, prunes

    def __call__(self, candidate: Candidate, trial: optuna.Trial) -> float:
        def is_hopeless(rung: int, value: float) -> bool:
            trial.report(value, rung)
            return trial.should_prune()

        shapes = self.space.shapes(candidate)
        score = self.scorer(shapes, is_hopeless=is_hopeless) if self.prunes else self.scorer(shapes)
        if score is None:
            raise optuna.TrialPruned
        return score
