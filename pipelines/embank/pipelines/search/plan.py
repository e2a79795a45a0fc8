"""What a search is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args

from embank.pipelines.config.run import Config, parse_config
from embank.search import SAMPLERS
from embank.tables import ConfigError
from embank.tables.wording import nearest_or_all

Metric = Literal["auc", "logloss"]

SUPERNET_SPACES = ("widths", "rows")
"""Scored on a supernet: how wide the rows of each feature are; and besides, how many rows it has."""

TRAINING_SPACES = ("methods", "unified", "full")
"""Trained, trial by trial: the method of each feature; one table for all, with the lookups of each; and methods, dims
and learning rates of all."""

SPACES = (*SUPERNET_SPACES, *TRAINING_SPACES)


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """A search.

    Args:
        config: the configuration, as plain dicts; what is searched replaces parts of it.
        space: one of `SPACES`.
        options: of the space, as a SPACE.yaml holds them.
        space_file: that SPACE.yaml, which messages name; "" where there is none.
        sampler: one of `embank.search.SAMPLERS`.
        budgets: serving bytes / plain bytes; each is a study of its own, unless `front`. None searches without a limit.
        front: one study with two objectives, the score and the bytes.
        num_trials: of each study.
        storage: a file, or a URL.
        name: of the studies in it, to which the budget is added; "" takes one from data, model and space.
        seed: of the sampler.
        metric: what is searched by, on validation.
        max_rows: of validation; None takes all.
        num_retrained: candidates that are trained anew for each budget; 0 cuts the best one out of the supernet
            instead.
        train_seeds: each of them is trained with.
        workers: processes that score or train at a time.
        supernet: a run directory of one; None trains it in the search's own.

    Raises:
        ConfigError: what can't be.
    """

    config: Mapping[str, Any]
    space: str = "widths"
    options: Mapping[str, Any] = field(default_factory=dict)
    space_file: str = ""
    sampler: str = "ea"
    budgets: Sequence[float | None] = (None,)
    front: bool = False
    num_trials: int = 600
    storage: str
    name: str = ""
    seed: int = 0
    metric: Metric = "auc"
    max_rows: int | None = None
    num_retrained: int = 5
    train_seeds: Sequence[int] = (0,)
    workers: int = 1
    supernet: str | None = None

    def __post_init__(self) -> None:
        for value, known, option in (
            (self.space, SPACES, "--space"),
            (self.sampler, SAMPLERS, "--sampler"),
            (self.metric, get_args(Metric), "--metric"),
        ):
            if value not in known:
                raise ConfigError(f"{option} is '{value}'; {nearest_or_all(value, known, label='there are')}")
        for budget in self.budgets:
            if budget is not None and not (isfinite(budget) and 0 < budget <= 1):
                raise ConfigError(
                    f"--budget holds {budget:g}; a budget is serving bytes / bytes of the plain fp32 tables and lies "
                    "in (0, 1]"
                )
        least = {
            "--trials": self.num_trials,
            "--workers": self.workers,
            "--max-rows": 1 if self.max_rows is None else self.max_rows,
        }
        for option, number in least.items():
            if number < 1:
                raise ConfigError(f"{option} is {number}; it must be at least 1")
        if self.num_retrained < 0:
            raise ConfigError(f"--retrain is {self.num_retrained}; it must be 0 or more")
        if not self.budgets or not self.train_seeds:
            raise ConfigError("--budget or --train-seeds is empty; give at least one, separated by commas")
        if (lowest := min(self.train_seeds)) < 0:
            raise ConfigError(f"--train-seeds holds {lowest}; a seed must be 0 or more")
        suffixes = [budget_suffix(budget) for budget in self.budgets]
        if double := next((s for s in suffixes if suffixes.count(s) > 1), None):
            raise ConfigError(f"--budget holds {double[1:]} twice (to 6 digits, as studies are named); give it once")
        if self.trains and self.sampler == "profile":
            raise ConfigError(
                "--sampler profile measures one table at a time, which takes a supernet; with --space "
                f"{self.space} use tpe, gp, ea or random"
            )

    @property
    def parsed(self) -> Config:
        """The configuration."""
        return parse_config(self.config)

    @property
    def told_space(self) -> str:
        """How messages call the space."""
        return f"the space '{self.space_file}'" if self.space_file else "the space"

    @property
    def trains(self) -> bool:
        """Whether each trial is a training, and not the score of a mask on a supernet."""
        return self.space in TRAINING_SPACES

    def study_names(self) -> dict[float | None, str]:
        """The study of each budget; with `front` they share one."""
        config = self.parsed
        data = Path(config.data.path).name
        name = self.name or f"{data}-{config.model['name']}-{self.space}"
        return {budget: f"{name}-front" if self.front else f"{name}{budget_suffix(budget)}" for budget in self.budgets}


def budget_suffix(budget: float | None) -> str:
    """How a budget is written at the end of names of studies and files."""
    return "" if budget is None else f"-{budget:g}"
