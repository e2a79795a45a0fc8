"""The sweep's directory."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from embank.pipelines.sweep.plan import Job, Plan
from embank.pipelines.training.config import parse_config, to_plain
from embank.pipelines.training.records import write_atomic
from embank.pipelines.training.run_folder import LOCK, RunFolder, hold_lock, refuse_changed_config
from embank.tables import CheckpointError, ConfigError


class SweepFolder:
    """Paths and records of a sweep.

    sweep.yaml           what was asked for
    runs/MODEL/METHOD/BUDGET/[POINT/]SEED    run directories, see `RunFolder`
    configs/             their configurations
    logs/                what they printed
    leaderboard.csv, leaderboard.md, pareto.png
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path = Path(path)
        self.record = path / "sweep.yaml"
        self.csv, self.markdown, self.plot = path / "leaderboard.csv", path / "leaderboard.md", path / "pareto.png"

    @contextmanager
    def opened(self, plan: Plan, *, resume: bool) -> Iterator[None]:
        """Takes the folder for a sweep, for as long as the context lasts.

        Raises:
            ConfigError: it holds something else, or a sweep of another configuration; or another process sweeps here.
            CheckpointError: there is nothing to resume.
        """
        plain = to_plain(parse_config(plan.config))
        if resume:
            refuse_changed_config(self.path, self._read()["config"], plain)
        else:
            self._refuse_used()
        with hold_lock(self.path):
            record = {
                "methods": list(plan.methods),
                "budgets": list(plan.budgets),
                "seeds": list(plan.seeds),
                "models": list(plan.models),
                "grid": dict(plan.grid),
                "grid_budget": plan.grid_budget,
                "config": plain,
            }
            write_atomic(self.record, yaml.safe_dump(record, sort_keys=False))
            yield

    def _refuse_used(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"'{self.path}' is a file; choose another --out")
        if self.record.is_file():
            raise ConfigError(
                f"'{self.path}' already holds a sweep; go on with --resume, or choose another --out (nothing was changed)"
            )
        if self.path.is_dir() and any(entry.name != LOCK for entry in self.path.iterdir()):
            raise ConfigError(
                f"'{self.path}' is not empty and holds no sweep; choose another --out (nothing was changed)"
            )

    def _read(self) -> Mapping[str, Any]:
        if not self.record.is_file():
            raise CheckpointError(f"'{self.path}' holds no sweep to resume; start it without --resume")
        try:
            record = yaml.safe_load(self.record.read_text())
        except yaml.YAMLError:
            record = None
        if not isinstance(record, dict) or "config" not in record:
            raise CheckpointError(f"'{self.record}' is damaged; restore it or start the sweep again in another --out")
        return record

    def run(self, job: Job) -> RunFolder:
        """The directory of a run."""
        return RunFolder(self.path / "runs" / job.name)

    def log(self, job: Job) -> Path:
        """What a run prints."""
        return self.path / "logs" / f"{job.name.replace('/', '_')}.log"

    def write_config(self, job: Job, plan: Plan) -> Path:
        """Writes the configuration of a run."""
        path = self.path / "configs" / f"{job.name.replace('/', '_')}.yaml"
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, yaml.safe_dump(to_plain(plan.config_of(job)), sort_keys=False))
        return path
