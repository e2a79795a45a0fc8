"""The sweep's directory."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from embank.pipelines.config.changes import refuse_changed_config
from embank.pipelines.config.run import parse_config, to_plain
from embank.pipelines.runs.folder import LOCK, RunFolder, training_in
from embank.pipelines.runs.records import CHECK, RESUME, sealed, unsealed
from embank.pipelines.sweep.plan import Case, Job, Plan
from embank.tables import CheckpointError, ConfigError
from embank.tables.storage.atomic import replace_text
from embank.tables.storage.yaml_text import read_yaml


class SweepFolder:
    """Paths and records of a sweep.

    sweep.yaml           what was asked for last, and all lines that were ever asked for
    runs/MODEL/METHOD/BUDGET/[POINT/]SEED    run directories, see `RunFolder`
    configs/             their configurations
    logs/                what they printed
    leaderboard.csv, leaderboard.md, pareto.png; with codecs composition.png
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path = Path(path)
        self.record = path / "sweep.yaml"
        self.codecs: list[str] = []
        """Those that were ever asked for, once the folder is opened."""
        self.widens = False
        """Whether grids are widened: since a sweep was first told to, once the folder is opened."""
        self.composition = path / "composition.png"
        self.csv, self.markdown, self.plot = path / "leaderboard.csv", path / "leaderboard.md", path / "pareto.png"

    @contextmanager
    def opened(self, plan: Plan, *, resume: bool) -> Iterator[list[Case]]:
        """Takes the folder for a sweep, for as long as the context lasts.

        Returns:
            All lines that were ever asked for here, in order, those of the plan included.

        Raises:
            ConfigError: it holds something else, or a sweep of another configuration; or another process sweeps here.
            CheckpointError: there is nothing to resume.
        """
        plain = to_plain(parse_config(plan.config))
        earlier: list[Case] = []
        if resume:
            before = self._read()
            refuse_changed_config(self.path, before["config"], plain)
            self._refuse_untuned(plan, grid=before.get("grid") or {})
            earlier = self._cases(before)
            self.codecs = self._codecs(before)
            self.widens = bool(before.get("widen", False))
        else:
            self._refuse_used()
        cases = list(dict.fromkeys([*earlier, *plan.cases()]))
        self.codecs = list(dict.fromkeys([*self.codecs, *plan.codecs]))
        self.widens |= plan.widen
        with training_in(self.path):
            if not resume:
                self._refuse_used()  # another process may have been here since
            record = {
                "methods": list(plan.methods),
                "budgets": list(plan.budgets),
                "seeds": list(plan.seeds),
                "models": list(plan.models),
                "grid": dict(plan.grid),
                "grid_budget": plan.grid_budget,
                "widen": self.widens,
                **({"codecs": self.codecs} if self.codecs else {}),
                "cases": [asdict(case) for case in cases],
                "config": plain,
            }
            checked = {CHECK: None, **sealed(record)}  # the checksum first: what is cut off at the end is noticed
            replace_text(self.record, yaml.safe_dump(checked, sort_keys=False), cure=RESUME)
            yield cases

    def _refuse_untuned(self, plan: Plan, *, grid: Mapping[str, Any]) -> None:
        """Refuses a plan without a grid whose lines were chosen from one: their runs would be others, and take the
        place of the better ones."""
        for case in () if plan.grid else plan.cases():
            points = [point for point in self.complete_runs(case) if point]
            if points:
                again = " ".join(f"--grid {key}={','.join(map(str, values))}" for key, values in grid.items())
                raise ConfigError(
                    f"{case.name} was chosen from a grid by an earlier command (it has runs at {points[0]}), and this "
                    "command has no --grid: it would be trained at the configuration's own values, and its runs would "
                    f"take the line's place. Give the grid ({again or 'as it was'}), leave the line out, or choose "
                    "another --out (nothing was changed)"
                )

    def _refuse_used(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"'{self.path}' is a file; choose another --out")
        if self.record.is_file():
            raise ConfigError(
                f"'{self.path}' already holds a sweep; go on with --resume, or choose another --out (nothing was "
                "changed)"
            )
        if self.path.is_dir() and any(entry.name != LOCK for entry in self.path.iterdir()):
            raise ConfigError(
                f"'{self.path}' is not empty and holds no sweep; choose another --out (nothing was changed)"
            )

    def _read(self) -> Mapping[str, Any]:
        if not self.record.is_file():
            raise CheckpointError(f"'{self.path}' holds no sweep to resume; start it without --resume")
        try:
            record = read_yaml(self.record, origin=f"'{self.record}'", error=CheckpointError)
        except CheckpointError as error:
            raise self._damaged() from error
        if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
            raise self._damaged()
        whole = unsealed(record)
        if whole is None:
            raise self._damaged()
        return whole

    def _cases(self, record: Mapping[str, Any]) -> list[Case]:
        try:
            return [
                Case(
                    model=str(case["model"]),
                    method=str(case["method"]),
                    budget=None if case["budget"] is None else float(case["budget"]),
                )
                for case in record.get("cases", [])
            ]
        except (TypeError, KeyError, ValueError) as error:
            raise self._damaged() from error

    def _codecs(self, record: Mapping[str, Any]) -> list[str]:
        codecs = record.get("codecs", [])
        if not isinstance(codecs, list) or not all(isinstance(codec, str) for codec in codecs):
            raise self._damaged()
        return codecs

    def _damaged(self) -> CheckpointError:
        return CheckpointError(f"'{self.record}' is damaged; restore it or start the sweep again in another --out")

    def complete_runs(self, case: Case) -> dict[str, dict[int, dict[str, Any]]]:
        """The results of a case's complete runs, by point of the grid and seed, whatever plan they were made for.

        Raises:
            CheckpointError: one is damaged.
        """
        found: dict[str, dict[int, dict[str, Any]]] = {}
        folder = self.path / "runs" / case.name
        for result in sorted([*folder.glob("*/result.json"), *folder.glob("*/*/result.json")]):
            run = RunFolder(result.parent)
            if run.is_run and run.path.name.isdecimal():
                point = "" if run.path.parent == folder else run.path.parent.name
                found.setdefault(point, {})[int(run.path.name)] = self.result_of(run)
        return found

    def result_of(self, run: RunFolder) -> dict[str, Any]:
        """The final figures of a complete run.

        Raises:
            CheckpointError: the file is damaged.
        """
        try:
            return run.read_result()
        except CheckpointError as error:
            raise CheckpointError(
                f"'{run.result}' is damaged or was altered; delete the folder '{run.path}', and --resume trains that "
                "run again"
            ) from error

    def run(self, job: Job) -> RunFolder:
        """The directory of a run."""
        return RunFolder(self.path / "runs" / job.name)

    def made_by(self, job: Job) -> str:
        """The versions that a run was begun with, for people."""
        try:
            return self.run(job).made_by()
        except CheckpointError:
            return "unknown versions (environment.json is damaged)"

    def log(self, job: Job, *, of: str = "") -> Path:
        """What a run prints, or other work on it."""
        return self.path / "logs" / f"{job.name.replace('/', '_')}{of and f'.{of}'}.log"

    def write_config(self, job: Job, plan: Plan) -> Path:
        """Writes the configuration of a run."""
        path = self.path / "configs" / f"{job.name.replace('/', '_')}.yaml"
        path.parent.mkdir(exist_ok=True)
        replace_text(path, yaml.safe_dump(to_plain(plan.config_of(job)), sort_keys=False), cure=RESUME)
        return path
