"""What a process that works on a study needs to know: plain values, so that it can be sent to another process."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial

from embank.pipelines.search.plan import SearchPlan
from embank.pipelines.train.interrupt import StopRequest
from embank.search.spaces import Candidate, Space

Objective = Callable[[Candidate, optuna.Trial], float]
Told = Callable[[optuna.Study, FrozenTrial], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A study that a process works on.

    Args:
        plan: the search.
        budget: of this study; None without a limit, or with two objectives.
        out: the search's directory.
        supernet: the run directory of the supernet; None where each trial trains.
        num_threads: of torch, for each process.
    """

    plan: SearchPlan
    budget: float | None
    out: Path
    supernet: Path | None
    num_threads: int

    @property
    def study_name(self) -> str:
        """Of the job's study."""
        return self.plan.study_names()[self.plan.budgets[0] if self.plan.front else self.budget]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How the candidates of a space are scored.

    Args:
        space: what is searched.
        objective: the score of a candidate.
        identity: what must be alike when a study is resumed, besides space and sampler.
        pruner: of studies with one objective; None where candidates are not given up half-way.
        candidates: scored first.
    """

    space: Space
    objective: Objective
    identity: Mapping[str, Any]
    pruner: BasePruner | None = None
    candidates: tuple[Candidate, ...] = field(default=())


SettingOf = Callable[[Job, StopRequest], AbstractContextManager[Setting]]
