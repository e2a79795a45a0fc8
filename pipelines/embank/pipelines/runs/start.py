"""Where a run begins that goes on with another one's model: `embank train --from`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from embank.ctr_models import CTRModel
from embank.pipelines.config.changes import flat
from embank.pipelines.config.run import Config, parse_config, to_plain
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.open import best_checkpoint, refuse_other_vocabularies
from embank.pipelines.runs.state import SavedRun
from embank.tables import CheckpointError, ConfigError, TableCollection
from embank.tables.collections.stages import planned_stages
from embank.tables.serving.bundle import is_bundle
from embank.tables.sharding.processes import Processes
from embank.tables.storage.checksums import CHECKSUMS, file_digest

SAME = ("model.", "tables.")
"""Sections that both runs must have in common."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """The checkpoint of another run that a run begins with.

    Args:
        run: the other run's directory, as it was given.
        checkpoint: name of the checkpoint in it.
        step: of the checkpoint.
        sha256: of the checkpoint's checksums, so of all its files.
        row_optimizer: whose state the checkpoint's rows have.
    """

    run: str
    checkpoint: str
    step: int
    sha256: str
    row_optimizer: str

    @classmethod
    def of(cls, path: str | Path, *, config: Config, schema: Schema) -> Self:
        """The best checkpoint of a run; the last one if none was evaluated.

        Args:
            path: the run directory, or the bundle in it.
            config: of the run that is to begin.
            schema: of its data.

        Raises:
            CheckpointError: no run, no checkpoint, or a damaged one.
            ConfigError: a bundle, other vocabularies, another model or other tables: names what differs.
        """
        run = _run_of(Path(path))
        refuse_other_vocabularies(schema, data=config.data.path, trained=run.fingerprint, path=run.path)
        _refuse_other_model(run, config)
        folder, step, _ = best_checkpoint(run)
        saved = SavedRun(folder)
        return cls(
            run=str(run.path),
            checkpoint=folder.name,
            step=step,
            sha256=_digest(folder),
            row_optimizer=str(saved.meta["identity"]["row_optimizer"]),
        )

    @classmethod
    def recorded(cls, run: RunFolder) -> Self | None:
        """What a run says that it began with; None if it began anew."""
        values = run.start
        return None if values is None else cls(**values)

    @property
    def folder(self) -> Path:
        """The checkpoint's."""
        return RunFolder(self.run).checkpoints / self.checkpoint

    def open(self, processes: Processes) -> SavedRun:
        """The checkpoint, every byte of it checked.

        Raises:
            CheckpointError: it is gone, damaged, or another one than when the run was begun.
        """
        with processes.together():
            if processes.is_first and (not self.folder.is_dir() or _digest(self.folder) != self.sha256):
                raise CheckpointError(
                    f"checkpoint '{self.folder}', which the run begins with, is gone or has changed. Restore it, or "
                    "start the run again in another --out"
                )
        return SavedRun(self.folder, processes=processes)

    def load(self, model: CTRModel, saved: SavedRun) -> str:
        """Gives a model the checkpoint's tables and network, and its rows' optimizer state if the optimizer is the
        same.

        Returns:
            What was taken, in words.

        Raises:
            CheckpointError: the checkpoint belongs to other tables.
        """
        assert isinstance(model.tables, TableCollection)
        same = model.tables.optimizer.name == self.row_optimizer
        saved.load_model(model, optimizer=same)
        state = (
            f"the rows' optimizer state ({self.row_optimizer}) too"
            if same
            else f"the rows' optimizer state is fresh: {model.tables.optimizer.name} here, {self.row_optimizer} there"
        )
        return (
            f"begins with step {self.step:,} of run '{self.run}': tables and network; {state}; the network's optimizer "
            "is fresh"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def refuse_other_start(run: RunFolder, path: str | Path) -> None:
    """Refuses to resume a run with another beginning than it had.

    Raises:
        ConfigError: names both.
    """
    recorded = Start.recorded(run)
    began = "anew" if recorded is None else f"with the run '{recorded.run}'"
    if recorded is None or Path(recorded.run).resolve() != _run_of(Path(path)).path.resolve():
        raise ConfigError(
            f"'{run.path}' began {began}, not with '{path}'; resume it without --from, or start a new run in another "
            "--out"
        )


def refuse_unfinished(tables: TableCollection, start: Start, *, begun: int) -> None:
    """Refuses a checkpoint of a stage that others follow.

    Args:
        tables: in the checkpoint's stage.
        start: the checkpoint.
        begun: how many stages its run has begun.

    Raises:
        ConfigError: names the stage, and says why.
    """
    planned = planned_stages(tables)
    if begun != len(planned):
        raise ConfigError(
            f"the run '{start.run}' is in stage {begun} of {len(planned)}, {planned[begun - 1].name}, of its tables' "
            "method: what it has is no model that is served, and the next stage needs this one's end. Finish the run "
            "(--resume), or begin anew without --from"
        )
    if planned[-1].is_search:
        raise ConfigError(
            f"the last stage of the tables' method, {planned[-1].name}, is a search that no training follows, so there "
            "is nothing to go on with. Begin anew without --from"
        )


def _run_of(path: Path) -> RunFolder:
    """The run at a path, or around the bundle at it."""
    if not is_bundle(path):
        return RunFolder(path)
    around = RunFolder(path.absolute().parent)
    if path.name == around.bundle.name and around.is_run:
        return RunFolder(path.parent)
    raise ConfigError(
        f"'{path}' is a bundle, whose packed rows can't be trained on: they have no optimizer state, and perhaps a "
        "codec. Give --from the run that it was exported from, or what `embank import --config` wrote"
    )


def _refuse_other_model(run: RunFolder, config: Config) -> None:
    theirs = dict(flat(to_plain(parse_config(run.read_config()))))
    ours = dict(flat(to_plain(config)))
    for key in {**theirs, **ours}:
        if key.startswith(SAME) and theirs.get(key) != ours.get(key):
            raise ConfigError(
                f"run '{run.path}' has {key} = {theirs.get(key)!r}, the configuration says {ours.get(key)!r}: its "
                "weights do not fit. With --from, model and tables must be those of that run"
            )


def _digest(folder: Path) -> str:
    return str(file_digest(folder / CHECKSUMS)["sha256"])
