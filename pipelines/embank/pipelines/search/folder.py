"""The search's directory."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from embank.pipelines.config.changes import refuse_changed_config
from embank.pipelines.config.run import Config, to_plain
from embank.pipelines.runs.folder import LOCK, RunFolder, training_in
from embank.pipelines.runs.records import RESUME
from embank.pipelines.search.plan import SearchPlan, budget_suffix
from embank.tables import CheckpointError, ConfigError
from embank.tables.storage.atomic import replace_text
from embank.tables.storage.yaml_text import read_yaml

JOURNAL = "study.journal"

_FIXED = ("space", "options", "sampler", "front", "seed", "metric", "max_rows", "name", "storage")
"""What a search that is resumed must be asked for again."""


class SearchFolder:
    """Paths and records of a search.

    search.yaml          what was asked for
    supernet/            the supernet's run directory, unless another one was given
    shapes.yaml          with whole configurations, what the profile of the supernet keeps of each table
    study.journal        the trials, unless they are stored elsewhere
    runs/NAME/SEED       candidates that were trained anew; with spaces that train, runs/trial-N of each trial
    configs/, logs/      their configurations, and what they printed
    candidates.csv, results.md, pareto.png, history.png, importance.png, slices.png
    best-bundle/         with --retrain 0, the best candidate as a bundle; best-0.1-bundle with several budgets
    best.yaml            the best configuration, for `embank train`; best-0.1.yaml where there are several budgets
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path = Path(path)
        self.record, self.supernet = path / "search.yaml", path / "supernet"
        self.shapes, self.logs = path / "shapes.yaml", path / "logs"
        self.csv, self.markdown = path / "candidates.csv", path / "results.md"
        self.pareto, self.history = path / "pareto.png", path / "history.png"
        self.importance, self.slices = path / "importance.png", path / "slices.png"

    @contextmanager
    def opened(self, plan: SearchPlan, *, resume: bool) -> Iterator[None]:
        """Takes the folder for a search, for as long as the context lasts.

        Raises:
            ConfigError: it holds something else, or another search; or another process searches here.
            CheckpointError: there is nothing to resume.
        """
        if resume:
            self._refuse_changes(plan)
        else:
            self._refuse_used()
        with training_in(self.path):
            if not resume:
                self._refuse_used()  # another process may have been here since
            record = {**_plain(asdict(plan)), "config": to_plain(plan.parsed)}
            replace_text(self.record, yaml.safe_dump(record, sort_keys=False), cure=RESUME)
            yield

    def _refuse_used(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"'{self.path}' is a file; choose another --out")
        if self.record.is_file():
            raise ConfigError(
                f"'{self.path}' already holds a search; go on with --resume, or choose another --out (nothing was "
                "changed)"
            )
        if self.path.is_dir() and any(entry.name != LOCK for entry in self.path.iterdir()):
            raise ConfigError(
                f"'{self.path}' is not empty and holds no search; choose another --out (nothing was changed)"
            )

    def _refuse_changes(self, plan: SearchPlan) -> None:
        if not self.record.is_file():
            raise CheckpointError(f"'{self.path}' holds no search to resume; start it without --resume")
        before = read_yaml(self.record, origin=f"'{self.record}'", error=CheckpointError)
        if not isinstance(before, dict) or not isinstance(before.get("config"), dict):
            raise CheckpointError(f"'{self.record}' is damaged; restore it or start the search again in another --out")
        now = _plain(asdict(plan))
        for key in _FIXED:
            if before.get(key) != now[key]:
                raise ConfigError(
                    f"the search in '{self.path}' has {key} {before.get(key)!r}, this one {now[key]!r}; resume it with "
                    "the same, or start another one in another --out"
                )
        refuse_changed_config(self.path, before["config"], to_plain(plan.parsed))

    def run(self, name: str) -> RunFolder:
        """The directory of a training."""
        return RunFolder(self.path / "runs" / name)

    def log(self, name: str) -> Path:
        """What a training prints."""
        return self.logs / f"{name.replace('/', '_')}.log"

    def write_config(self, name: str, config: Config) -> Path:
        """Writes the configuration of a training."""
        path = self.path / "configs" / f"{name.replace('/', '_')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, yaml.safe_dump(to_plain(config), sort_keys=False), cure=RESUME)
        return path

    def best(self, budget: float | None, *, is_only: bool) -> Path:
        """Where the best configuration of a budget goes."""
        return self.path / f"best{'' if is_only else budget_suffix(budget)}.yaml"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Lists for tuples, as YAML reads them back."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
