"""The run directory: what a run leaves behind, written so that a crash loses nothing that was reported."""

import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from embank.tables.errors import CheckpointError, ConfigError
from embank.tables.files import CHECKSUMS, read_json, sync_entry

LOCK = ".lock"
ROWS = "rows"
MAY_CHANGE = frozenset(
    [
        "data.path",
        "data.prefetch",
        "rows.device",
        "rows.prefetch",
        "rows.directory",
        "rows.planner",
        "rows.plan",
        "rows.memory_per_rank",
        "train.num_threads",
        "train.tensorboard",
        "train.checkpoint_every",
        "train.checkpoint_minutes",
    ]
)
"""Keys that a resumed run may have other values for: they don't enter its figures. Data is checked by its fingerprint."""

_CHECKPOINT = re.compile(r"^step-\d{9}(-stage-\d+)?(-evaluated)?$")
_LEFTOVER = re.compile(r"^\.step-\d{9}(-stage-\d+)?(-evaluated)?\.(tmp-\d+|removed)$")
_LEFTOVER_BUNDLE = re.compile(r"^\.bundle\.(tmp-\d+|removed)$")
_PACKAGES = ("embank", "torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "polars", "pyarrow", "numpy")


class RunFolder:
    """Paths and records of a run.

    config.yaml          the resolved configuration
    environment.json     versions, git commit, machine, fingerprint of the data
    metrics.jsonl        one JSON object per evaluation
    result.json          the final figures; exists when the run is complete
    checkpoints/step-*   the last one and the best one, see `embank.tables.checkpoint`
    bundle/              the best checkpoint in its inference form, see `embank.tables.bundle`; when the run is complete
    plots/*.png          learning curves; more by `embank diagnose`, with figures in diagnosis/*.csv
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.result = path / "result.json"
        self.checkpoints = path / "checkpoints"
        self.bundle = path / "bundle"
        self.plots = path / "plots"

    @property
    def is_run(self) -> bool:
        """Whether a run lives here."""
        return self.config.is_file() and self.environment.is_file()

    def refuse_used(self) -> None:
        """A new run needs a folder of its own.

        Raises:
            ConfigError: the folder holds another run or other files, or is none.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"'{self.path}' is a file; choose another --out")
        if self.is_run:
            raise ConfigError(
                f"'{self.path}' already holds a run; continue it with --resume, or choose another --out (nothing was changed)"
            )
        records = (self.environment, self.config)
        own = {LOCK, ROWS, "checkpoints", "plots", self.environment.name, *(f".{path.name}.tmp" for path in records)}
        if self.path.is_dir() and any(entry.name not in own for entry in self.path.iterdir()):
            raise ConfigError(
                f"'{self.path}' is not empty and holds no run; choose another --out (nothing was changed)"
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps a second process out of the folder for as long as the context lasts; creates the folder if need be.

        If nothing has become a run by then, what the context left is removed.

        Raises:
            ConfigError: another process trains here, or the folder can't be written.
        """
        with hold_lock(self.path):
            try:
                yield
            finally:
                if not self.is_run:
                    shutil.rmtree(self.path, ignore_errors=True)

    def create(self, config: Mapping[str, Any], *, fingerprint: str) -> None:
        """Starts a new run; the folder is locked and not used otherwise."""
        self.checkpoints.mkdir(exist_ok=True)
        self.plots.mkdir(exist_ok=True)
        write_atomic(self.environment, json.dumps(_environment(fingerprint), indent=1))
        write_atomic(self.config, yaml.safe_dump(dict(config), sort_keys=False))

    def read_config(self) -> dict[str, Any]:
        """The resolved configuration, as plain dicts.

        Raises:
            CheckpointError: no run lives here, or the file is damaged.
        """
        self._refuse_other_folders()
        try:
            loaded = yaml.safe_load(self.config.read_text())
        except yaml.YAMLError:
            loaded = None
        if not isinstance(loaded, dict):
            raise CheckpointError(f"'{self.config}' is damaged: it holds no mapping; restore it or start the run again")
        return loaded

    def _refuse_other_folders(self) -> None:
        if not self.is_run:
            raise CheckpointError(f"'{self.path}' holds no run; give the folder that `embank train --out` wrote")

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the data that the run was trained on.

        Raises:
            CheckpointError: no run lives here, or the record is damaged.
        """
        self._refuse_other_folders()
        return str(read_json(self.environment).get("data_fingerprint"))

    def refuse_changes(self, config: Mapping[str, Any], *, fingerprint: str) -> None:
        """Resuming needs the same configuration and data.

        Raises:
            ConfigError: names what differs, with both values.
        """
        refuse_changed_config(self.path, self.read_config(), config)
        if self.fingerprint != fingerprint:
            raise ConfigError(
                f"'{self.path}' was started on data with fingerprint {self.fingerprint[:12]}, the folder now has {fingerprint[:12]}: "
                "the ids mean something else. Restore the prepared folder or start a new run in another --out"
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

    def keep_metrics(self, *, up_to_step: int, stages: Collection[str]) -> None:
        """Drops records after a step, of other stages and of the test split: a resumed run makes them again."""
        kept = [
            r for r in self.read_metrics() if r["step"] <= up_to_step and r["stage"] in stages and r["split"] != "test"
        ]
        write_atomic(self.metrics, "".join(json.dumps(record) + "\n" for record in kept))

    def saved(self) -> list[Path]:
        """All complete checkpoints, the last one last. Other files in the folder are left alone."""
        if not self.checkpoints.is_dir():
            return []
        folders = [path for path in self.checkpoints.iterdir() if _CHECKPOINT.match(path.name)]
        return sorted(path for path in folders if (path / CHECKSUMS).is_file())

    def keep_checkpoints(self, kept: set[Path]) -> None:
        """Removes all other checkpoints, and what a crash left of unfinished ones."""
        for path in self.checkpoints.iterdir():
            if _CHECKPOINT.match(path.name) and path not in kept:
                remove_atomic(path)
            elif _LEFTOVER.match(path.name):
                shutil.rmtree(path)

    def remove_bundle(self) -> None:
        """Removes the bundle, and what a crash left of one: a run that was stopped while it finished writes it anew."""
        for path in self.path.iterdir():
            if _LEFTOVER_BUNDLE.match(path.name):
                shutil.rmtree(path)
        if self.bundle.exists():
            remove_atomic(self.bundle)

    def read_result(self) -> dict[str, Any]:
        """The final figures of a complete run.

        Raises:
            CheckpointError: the file is damaged.
        """
        return read_json(self.result)

    def plot(self) -> None:
        """Draws the learning curves."""
        from embank.pipelines.training.plots import plot_learning_curves  # matplotlib takes a second to import

        config = self.read_config()
        title = f"{config['model']['name']}, tables: {config['tables']['method']}, {config['data']['path']}"
        plot_learning_curves(self.read_metrics(), self.plots / "learning_curves.png", title=title)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes the final figures; from then on the run is complete."""
        write_atomic(self.result, json.dumps(dict(result), indent=1))


@contextmanager
def hold_lock(folder: Path) -> Iterator[None]:
    """Keeps a second process out of a folder for as long as the context lasts; creates the folder if need be.

    Raises:
        ConfigError: another process trains here, or the folder can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("w")
    except OSError as error:
        raise ConfigError(f"'{folder}' can't be written: {error.strerror}; choose another --out") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"another process is training in '{folder}'; wait for it or choose another --out"
            ) from error
        yield


def is_held(folder: Path) -> bool:
    """Whether another process has locked a folder (`hold_lock`)."""
    try:
        file = (folder / LOCK).open()
    except OSError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def refuse_changed_config(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises ConfigError if two configurations differ in what enters figures; names the first key, with both values."""
    before, now = dict(flat(old)), dict(flat(new))
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key) and key not in MAY_CHANGE]
    if changed:
        key = changed[0]
        raise ConfigError(
            f"'{folder}' was started with {key} = {before.get(key)!r}, the configuration now says {now.get(key)!r}; "
            "resume with the same configuration or start a new run in another --out"
        )


def write_atomic(path: Path, text: str) -> None:
    """Replaces a file's content as a whole, durably."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    sync_entry(temporary)
    temporary.replace(path)
    sync_entry(path.parent)


def remove_atomic(folder: Path) -> None:
    """Removes a folder; a crash does not leave half of it under its name."""
    hidden = folder.with_name(f".{folder.name}.removed")
    folder.rename(hidden)
    shutil.rmtree(hidden)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as pairs of "section.key" and value."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
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
