"""The run directory: what a run leaves behind, written so that a crash loses nothing that was reported."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from embank.tables.checkpoint import sync_entry
from embank.tables.errors import CheckpointError, ConfigError

_PACKAGES = ("embank", "torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "polars", "pyarrow", "numpy")


class RunFolder:
    """Paths and records of a run.

    config.yaml          the resolved configuration
    environment.json     versions, git commit, machine, fingerprint of the data
    metrics.jsonl        one JSON object per evaluation
    result.json          the final figures; exists when the run is complete
    checkpoints/step-*   see `embank.tables.checkpoint`; state.json says which is the best and which the last
    plots/*.png
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.result = path / "result.json"
        self.checkpoints = path / "checkpoints"
        self.plots = path / "plots"

    @property
    def is_run(self) -> bool:
        """Whether a run lives here."""
        return self.config.is_file()

    def create(self, config: Mapping[str, Any], *, fingerprint: str) -> None:
        """Starts a new run.

        Raises:
            ConfigError: the folder holds another run or other files.
        """
        if self.is_run:
            raise ConfigError(
                f"'{self.path}' already holds a run; continue it with --resume, or choose another --out (nothing was changed)"
            )
        own = {
            "checkpoints",
            "plots",
            "rows",
            self.environment.name,
            f".{self.environment.name}.tmp",
            f".{self.config.name}.tmp",
        }
        if self.path.is_dir() and any(entry.name not in own for entry in self.path.iterdir()):
            raise ConfigError(
                f"'{self.path}' is not empty and holds no run; choose another --out (nothing was changed)"
            )
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.plots.mkdir(exist_ok=True)
        write_atomic(self.environment, json.dumps(_environment(fingerprint), indent=1))
        write_atomic(self.config, yaml.safe_dump(dict(config), sort_keys=False))

    def read_config(self) -> dict[str, Any]:
        """The resolved configuration, as plain dicts.

        Raises:
            CheckpointError: no run lives here.
        """
        if not self.is_run:
            raise CheckpointError(
                f"'{self.path}' holds no run (no config.yaml); give the folder that `embank train --out` wrote"
            )
        loaded = yaml.safe_load(self.config.read_text())
        assert isinstance(loaded, dict)
        return loaded

    def refuse_changes(self, config: Mapping[str, Any], *, fingerprint: str) -> None:
        """Resuming needs the same configuration and data.

        Raises:
            ConfigError: names what differs, with both values.
        """
        old, new = dict(_flat(self.read_config())), dict(_flat(config))
        changed = [k for k in {**old, **new} if old.get(k) != new.get(k) and not k.startswith("train.checkpoint_")]
        if changed:
            key = changed[0]
            raise ConfigError(
                f"'{self.path}' was started with {key} = {old.get(key)!r}, the configuration now says {new.get(key)!r}; "
                "resume with the same configuration or start a new run in another --out"
            )
        before = json.loads(self.environment.read_text())["data_fingerprint"]
        if before != fingerprint:
            raise ConfigError(
                f"'{self.path}' was started on data with fingerprint {before[:12]}, the folder now has {fingerprint[:12]}: the ids "
                "mean something else. Restore the prepared folder or start a new run in another --out"
            )

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Adds a line and syncs it."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(dict(record)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read_metrics(self) -> list[dict[str, Any]]:
        """All records so far; a line that a crash cut short is left out."""
        if not self.metrics.is_file():
            return []
        records = []
        for line in self.metrics.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
        return records

    def keep_metrics(self, *, up_to_step: int) -> None:
        """Drops records after a step, and those of the test split: a resumed run makes them again."""
        kept = [r for r in self.read_metrics() if r["step"] <= up_to_step and r["split"] != "test"]
        write_atomic(self.metrics, "".join(json.dumps(record) + "\n" for record in kept))

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, in order."""
        if not self.checkpoints.is_dir():
            return []
        names = [p.name for p in self.checkpoints.iterdir() if p.name.startswith("step-")]
        return sorted(int(name.removeprefix("step-")) for name in names)

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint of a step."""
        return self.checkpoints / f"step-{step:09d}"

    def keep_checkpoints(self, steps: set[int]) -> None:
        """Removes all other checkpoints, and what a crash left of unfinished ones."""
        for path in self.checkpoints.iterdir():
            unfinished = path.name.startswith(".")
            if unfinished or int(path.name.removeprefix("step-")) not in steps:
                shutil.rmtree(path)

    def read_result(self) -> dict[str, Any]:
        """The final figures of a complete run.

        Raises:
            CheckpointError: the file is damaged.
        """
        try:
            result = json.loads(self.result.read_text())
        except ValueError as error:
            raise CheckpointError(
                f"'{self.result}' is damaged ({error}); remove it and resume the run to make it again"
            ) from error
        assert isinstance(result, dict)
        return result

    def plot(self) -> None:
        """Draws the learning curves."""
        from embank.pipelines.training.plots import plot_learning_curves  # matplotlib takes a second to import

        config = self.read_config()
        title = f"{config['model']['name']}, tables: {config['tables']['method']}, {config['data']['path']}"
        plot_learning_curves(self.read_metrics(), self.plots / "learning_curves.png", title=title)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes the final figures; from then on the run is complete."""
        write_atomic(self.result, json.dumps(dict(result), indent=1))


def write_atomic(path: Path, text: str) -> None:
    """Replaces a file's content as a whole, durably."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    sync_entry(temporary)
    temporary.replace(path)
    sync_entry(path.parent)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


def _environment(fingerprint: str) -> dict[str, Any]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "num_cpus": os.cpu_count(),
        "git_commit": _git_commit(),
        "data_fingerprint": fingerprint,
    }


def _git_commit() -> str | None:
    """Commit of the checkout that embank runs from; None for an installed package."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
