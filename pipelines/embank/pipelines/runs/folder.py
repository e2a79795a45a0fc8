"""The run directory: what a run leaves behind, written so that a crash loses nothing that was reported."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from embank.pipelines.config.changes import refuse_changed_config
from embank.pipelines.locks import hold_lock, is_locked
from embank.pipelines.runs.environment import environment_of
from embank.pipelines.runs.records import CURE, RESUME, read_record, sealed, short_digest, unsealed, write_record
from embank.pipelines.runs.row_folders import KINDS, ROWS, holds_only_rows, remove_rows, remove_unused_rows
from embank.tables.errors import CheckpointError, ConfigError, WorkError
from embank.tables.storage.atomic import remove_folder, replace_text, temporary_file
from embank.tables.storage.refusals import cause_of, is_full, writing
from embank.tables.storage.yaml_text import parse_yaml

LOCK = ".lock"
CORPUS = "corpus"
_CORPUS_FILES = frozenset({"tokenizer.json", "train.npy", "valid.npy", "test.npy", "corpus.json", "checksums.json"})
_LEFTOVER_CORPUS = re.compile(r"^\.corpus\.(tmp-[0-9a-f]+|removed)$")
_CHECKPOINT = re.compile(r"^step-\d{9}(-stage-\d+)?(-evaluated)?$")
_LEFTOVER = re.compile(r"^\.step-\d{9}(-stage-\d+)?(-evaluated)?\.(tmp-[0-9a-f]+|removed)$")
_LEFTOVER_BUNDLE = re.compile(r"^\.bundle\.(tmp-[0-9a-f]+|removed)$")


class RunFolder:
    """Paths and records of a run.

    config.yaml          the resolved configuration
    environment.json     versions, git commit, machine, fingerprint of the data
    metrics.jsonl        one JSON object per evaluation
    log.txt              what was told while it ran, with times
    result.json          the final figures; exists when the run is complete
    checkpoints/step-*   the last one and the best one, see `embank.tables.storage.checkpoint`
    bundle/              the best checkpoint in its inference form, see `embank.tables.serving.bundle`; when the run is
                         complete
    plots/*.png          learning curves; more by `embank diagnose`, with figures in diagnosis/*.csv
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path = Path(path)
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.log = path / "log.txt"
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
                f"'{self.path}' already holds a run; continue it with --resume, or choose another --out (nothing was "
                "changed)"
            )
        if self.path.is_dir() and not self._is_unfinished():
            raise ConfigError(
                f"'{self.path}' is not empty and holds no run; choose another --out (nothing was changed)"
            )

    def _is_unfinished(self) -> bool:
        """Whether the folder holds nothing, or only what a run leaves that was killed before it had a configuration."""
        names = {entry.name for entry in self.path.iterdir()}
        if not names:
            return True
        folders = (self.path / ROWS, self.checkpoints, self.plots, *self._corpora())
        files = {LOCK, *(name for path in self._records for name in (path.name, temporary_file(path).name))}
        foreign = names - files - {folder.name for folder in folders}
        return (
            LOCK in names and not foreign and all(_is_working_folder(folder) for folder in folders if folder.exists())
        )

    def _corpora(self) -> list[Path]:
        """The corpus of a language model, and what a crash left of one."""
        found = (path for path in self.path.iterdir() if path.name == CORPUS or _LEFTOVER_CORPUS.match(path.name))
        return [path for path in found if path.is_dir()]

    @property
    def _records(self) -> tuple[Path, Path]:
        """What a run begins with, in this order."""
        return self.environment, self.config

    @contextmanager
    def lock(self, *, begins: bool = True, directory: str | None = None) -> Iterator[None]:
        """Keeps a second process out of the folder for as long as the context lasts; creates the folder if need be.

        If nothing has become a run by then, what this process made is removed again; what was there before stays.

        Args:
            begins: a run is to begin here, so that there must be none: another process may have made one since that was
                last looked at.
            directory: where the disk tier's files of a run that goes on are to be, if not in its own folder.

        Raises:
            ConfigError: another process trains or has trained here, or the folder can't be written.
            WorkError: the disk is full.
        """
        is_new = not self.path.exists()
        with training_in(self.path):
            if begins:
                self.refuse_used()
            else:
                self._remove_left_rows(directory)
            try:
                yield
            finally:
                if not self.is_run:
                    self._clear(remove_folder=is_new)

    def _clear(self, *, remove_folder: bool) -> None:
        """Removes the working files of a run that has not begun, which `refuse_used` has found to be ours; nothing
        else."""
        remove_rows(self.path / ROWS)
        for path in (*(temporary_file(path) for path in self._records), *self._records):
            path.unlink(missing_ok=True)
        self.remove_corpora()
        for folder in (self.checkpoints, self.plots):
            with contextlib.suppress(OSError):  # it is not there, or holds something
                folder.rmdir()
        (self.path / LOCK).unlink(missing_ok=True)
        if remove_folder:
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def _remove_left_rows(self, directory: str | None) -> None:
        """Removes the disk tier's files that this run has left when it was stopped: elsewhere, or on another number of
        ranks, it would not take them over.

        Args:
            directory: where they may be too, besides the directory that the run began with.
        """
        remove_rows(self.path / ROWS)
        config = self.read_config()
        first = (config.get("rows") or {}).get("directory")
        for folder in {first, directory}:
            if folder is not None:
                remove_unused_rows(Path(folder), kinds=KINDS if "memory" in config else ())

    def remove_corpora(self) -> None:
        """Removes the corpus of a language model's run that has not begun, and what a crash left of one."""
        for corpus in filter(_is_working_folder, self._corpora()):
            shutil.rmtree(corpus, ignore_errors=True)

    def create(
        self,
        config: Mapping[str, Any],
        *,
        fingerprint: str,
        content: str | None,
        start: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts a new run; the folder is locked and not used otherwise.

        Args:
            config: the resolved configuration.
            fingerprint: of the data's vocabularies.
            content: of its rows, see `embank.pipelines.data.loading.integrity`; None for data that says nothing of it.
            start: the checkpoint of another run that it begins with, see `embank.pipelines.runs.start`.

        Raises:
            WorkError: the disk is full.
        """
        with writing(f"'{self.path}'", cure="Make room, or choose another --out"):
            self.checkpoints.mkdir(exist_ok=True)
            self.plots.mkdir(exist_ok=True)
        text = yaml.safe_dump(dict(config), sort_keys=False)
        record = {**environment_of(fingerprint), "data_content": content, "config": short_digest(text)}
        write_record(self.environment, record if start is None else {**record, "from": dict(start)})
        replace_text(self.config, text, cure=RESUME)

    def read_config(self) -> dict[str, Any]:
        """The resolved configuration, as plain dicts.

        Raises:
            CheckpointError: no run lives here, or the file is damaged.
        """
        cure = "restore it or start the run again in another --out"
        expected = self._read_environment().get("config")
        try:
            text = self.config.read_text(encoding="utf-8")
            loaded = parse_yaml(text, origin=str(self.config))
        except OSError as error:
            raise CheckpointError(f"'{self.config}' can't be read: {cause_of(error)}; {cure}") from error
        except (ConfigError, ValueError) as error:
            raise CheckpointError(f"'{self.config}' is damaged: it is not YAML; {cure}") from error
        if not isinstance(loaded, dict):
            raise CheckpointError(f"'{self.config}' is damaged: it holds no mapping; {cure}")
        if expected not in (None, short_digest(text)):
            raise CheckpointError(f"'{self.config}' has been altered since the run began; {cure}")
        return _as_meant_then(loaded)

    def _read_environment(self) -> dict[str, Any]:
        self._refuse_other_folders()
        return read_record(self.environment)

    def made_by(self) -> str:
        """The versions that the run was begun with, for people: "embank 0.1.0 (0a1b2c3d4), torch 2.13.0".

        Raises:
            CheckpointError: no run lives here, or the file is damaged.
        """
        environment = self._read_environment()
        versions, commit = environment["versions"], environment.get("git_commit")
        told = f"embank {versions.get('embank', 'of unknown version')}{f' ({commit[:9]})' if commit else ''}"
        return f"{told}, torch {versions.get('torch', 'of unknown version')}"

    def _refuse_other_folders(self) -> None:
        if not self.is_run:
            raise CheckpointError(f"'{self.path}' holds no run; give the folder that `embank train --out` wrote")

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the data that the run was trained on.

        Raises:
            CheckpointError: no run lives here, or the record is damaged.
        """
        fingerprint = self._read_environment().get("data_fingerprint")
        if fingerprint is None:
            raise CheckpointError(f"'{self.environment}' is damaged: it has no data_fingerprint. {CURE}")
        return str(fingerprint)

    @property
    def content(self) -> str | None:
        """Digest of the rows that the run was trained on; None in a run of an earlier version."""
        content = self._read_environment().get("data_content")
        return None if content is None else str(content)

    @property
    def start(self) -> dict[str, Any] | None:
        """The checkpoint of another run that this one began with; None if it began anew."""
        start = self._read_environment().get("from")
        return None if start is None else dict(start)

    def refuse_changes(self, config: Mapping[str, Any], *, fingerprint: str, content: str | None) -> None:
        """Resuming needs the same configuration and data; arguments as in `create`.

        Raises:
            ConfigError: names what differs, with both values.
        """
        refuse_changed_config(self.path, self.read_config(), config)
        if self.fingerprint != fingerprint:
            raise ConfigError(
                f"'{self.path}' was started on data with fingerprint {self.fingerprint[:12]}, the folder now has "
                f"{fingerprint[:12]}: "
                "the ids mean something else. Restore the prepared folder or start a new run in another --out"
            )
        if None not in (self.content, content) and self.content != content:
            raise ConfigError(
                f"'{self.path}' was started on rows with digest {str(self.content)[:12]}, the folder now has "
                f"{str(content)[:12]}: the same ids, "
                "but other rows, labels, numbers or counts (prepared again with another rule or from another log?). "
                "Restore the prepared "
                "folder or start a new run in another --out"
            )

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Adds a line and syncs it.

        Raises:
            WorkError: the disk is full.
        """
        with writing(f"'{self.metrics}'", cure="Make room and go on with --resume"), self.metrics.open("a") as file:
            file.write(json.dumps(sealed(record)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read_metrics(self) -> list[dict[str, Any]]:
        """All records so far that are whole; a line that was cut short or altered is left out."""
        return [record for record in self._metric_lines() if record is not None]

    @property
    def num_damaged_metrics(self) -> int:
        """Lines that `read_metrics` leaves out, the last one aside: a crash may have cut it short."""
        return sum(record is None for record in self._metric_lines()[:-1])

    def _metric_lines(self) -> list[dict[str, Any] | None]:
        """The lines of metrics.jsonl as records; None for one that is damaged."""
        if not self.metrics.is_file():
            return []
        return [_metric(line) for line in self.metrics.read_bytes().splitlines()]

    def keep_metrics(self, *, up_to_step: int, stages: Collection[str]) -> None:
        """Drops records after a step, of other stages and of the test split: a resumed run makes them again."""
        kept = [
            r for r in self.read_metrics() if r["step"] <= up_to_step and r["stage"] in stages and r["split"] != "test"
        ]
        replace_text(self.metrics, "".join(json.dumps(sealed(record)) + "\n" for record in kept), cure=RESUME)

    def saved(self) -> list[Path]:
        """All checkpoints, the last one last: a folder has its name only when it is complete. Other files are left
        alone."""
        if not self.checkpoints.is_dir():
            return []
        folders = [path for path in self.checkpoints.iterdir() if _CHECKPOINT.match(path.name) and path.is_dir()]
        return sorted(path for path in folders if any(path.iterdir()))

    def keep_checkpoints(self, kept: set[Path]) -> None:
        """Removes all other checkpoints, and what a crash left of unfinished ones."""
        for path in self.checkpoints.iterdir():
            if _CHECKPOINT.match(path.name) and path not in kept:
                remove_folder(path)
            elif _LEFTOVER.match(path.name):
                shutil.rmtree(path)

    def remove_bundle(self) -> None:
        """Removes the bundle, and what a crash left of one: a run that was stopped while it finished writes it anew."""
        for path in self.path.iterdir():
            if _LEFTOVER_BUNDLE.match(path.name):
                shutil.rmtree(path)
        if self.bundle.exists():
            remove_folder(self.bundle)

    def read_result(self) -> dict[str, Any]:
        """The final figures of a complete run.

        Raises:
            CheckpointError: the file is damaged.
        """
        return read_record(self.result)

    def plot(self) -> None:
        """Draws the learning curves.

        Raises:
            WorkError: the disk is full.
        """
        from embank.pipelines.runs.plots import plot_learning_curves  # matplotlib takes a second to import

        config = self.read_config()
        title = f"{config['model']['name']}, tables: {config['tables']['method']}, {config['data']['path']}"
        with writing(f"'{self.plots}'", cure="Make room and go on with --resume"):
            plot_learning_curves(self.read_metrics(), self.plots / "learning_curves.png", title=title)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes the final figures; from then on the run is complete, and needs no working files."""
        write_record(self.result, result)
        remove_rows(self.path / ROWS)


@contextmanager
def training_in(folder: Path) -> Iterator[None]:
    """Keeps a second process out of a folder for as long as the context lasts; creates the folder if need be.

    Raises:
        ConfigError: another process trains here, or the folder can't be written.
        WorkError: the disk is full.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held = f"another process is training in '{folder}'; wait for it or choose another --out"
            stack.enter_context(hold_lock(folder / LOCK, held=held))
        except OSError as error:
            raise (WorkError if is_full(error) else ConfigError)(
                f"'{folder}' can't be written: {cause_of(error)}; choose another --out"
            ) from error
        yield


def is_training(folder: Path) -> bool:
    """Whether another process trains in a folder (`training_in`)."""
    return is_locked(folder / LOCK)


def _as_meant_then(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration in today's words. Earlier versions let one process set 0 bytes for a rank, and set no
    limit; a new configuration with 0 is refused."""
    rows = config.get("rows")
    if isinstance(rows, dict) and isinstance(limit := rows.get("memory_per_rank"), int) and limit < 1:
        return {**config, "rows": {**rows, "memory_per_rank": None}}
    return config


def _is_working_folder(folder: Path) -> bool:
    """Whether a folder holds working files of the disk tier or of a corpus, or nothing."""
    if not folder.is_dir():
        return False
    if folder.name == CORPUS or _LEFTOVER_CORPUS.match(folder.name):
        return all(path.name in _CORPUS_FILES and path.is_file() for path in folder.iterdir())
    return not any(folder.iterdir()) or (folder.name == ROWS and holds_only_rows(folder))


def _metric(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl as a record; None if it is damaged."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    record = unsealed(record) if isinstance(record, dict) else None
    return record if record is not None and {"step", "stage", "split"} <= record.keys() else None
