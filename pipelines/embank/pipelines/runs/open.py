"""From a run to its model, and what belongs to it: its data, its vocabularies."""

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from embank.ctr_models import CTRModel
from embank.pipelines.config.run import Config, parse_config, refuse_language_model
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import build
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.progress import Progress
from embank.pipelines.runs.state import SavedRun
from embank.tables import CheckpointError, ConfigError, DataError, TableCollection
from embank.tables.collections.stages import settle
from embank.tables.serving.bundle import is_bundle
from embank.tables.storage.checkpoint import meta_of


@contextmanager
def best_model(run: RunFolder, *, schema: Schema, data: Path) -> Iterator[tuple[CTRModel, int]]:
    """The model of a run with the weights of its best checkpoint, and that checkpoint's step.

    It is in host memory, wherever it was trained. Rows on the disk tier are laid out in temporary files in the run
    directory, or where the system has them if it is read-only.

    Args:
        run: the run directory.
        schema: of the prepared folder.
        data: the prepared folder.

    Raises:
        CheckpointError: no run, no checkpoint, or a damaged one.
    """
    config = parse_config(run.read_config())
    folder, step, _ = best_checkpoint(run)
    with _rows_folder(run.path if config.rows.tier == "disk" else None) as rows_folder:
        config = replace(config, rows=replace(config.rows, directory=rows_folder, device="cpu"))
        saved = SavedRun(folder)
        with torch.random.fork_rng(devices=[]):
            model = build(config, schema, data=data, rows_folder=Path(rows_folder), stages=saved.table_stages)
        saved.load_model(model)
        assert isinstance(model.tables, TableCollection)
        settle(model.tables)  # a checkpoint that was evaluated is settled already
        yield model, step


@contextmanager
def _rows_folder(place: Path | None) -> Iterator[str]:
    """A temporary folder in `place`, or where the system has them if that is read-only."""
    try:
        folder = tempfile.TemporaryDirectory(prefix=".rows-", dir=place)
    except OSError as error:
        if place is None or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        folder = tempfile.TemporaryDirectory(prefix=".rows-")
    with folder as path:
        yield path


def best_checkpoint(run: RunFolder) -> tuple[Path, int, bool]:
    """The best checkpoint on validation with its step and True; the last one and False if none was evaluated yet.

    Raises:
        CheckpointError: there is no checkpoint, or the last one's record is damaged.
    """
    saved = run.saved()
    if not saved:
        raise CheckpointError(f"'{run.path}' has no checkpoint yet; train it first")
    progress = Progress.from_json(meta_of(saved[-1])["progress"])
    best = progress.best_step
    if best is None:
        return saved[-1], progress.step, False
    return run.checkpoints / progress.checkpoint_name(best, evaluated=True), best, True


def data_of(config: Config, moved: str | Path | None) -> Path:
    """The prepared folder of a run.

    Args:
        config: the run's configuration.
        moved: where the folder is now, if elsewhere.

    Raises:
        DataError: it is gone.
    """
    place = Path(moved) if moved else Path(config.data.path)
    if not place.is_dir():
        raise DataError(
            f"there is no folder '{place}', where the run's vocabularies were; say where they are with --data"
        )
    return place


def refuse_other_vocabularies(schema: Schema, *, data: str | Path, trained: str, path: str | Path) -> None:
    """Refuses data whose ids mean something else than those that a run or a bundle was trained on.

    Args:
        schema: of the data.
        data: its folder.
        trained: fingerprint of the data of the run or the bundle.
        path: the run or the bundle.

    Raises:
        ConfigError: names both fingerprints; or the run is a language model's.
    """
    if schema.fingerprint != trained:
        refuse_language_model(Path(path))
        raise ConfigError(
            f"'{data}' has other vocabularies (fingerprint {schema.fingerprint[:12]}) than the data '{path}' was "
            "trained on "
            f"({trained[:12]}): its ids mean something else. Prepare it with the training data's vocabularies: "
            f"embank prepare --like {path} --input FILE --out DIR"
        )


def refuse_neither(path: str | Path) -> None:
    """Refuses a folder that holds neither a run nor a bundle.

    Raises:
        CheckpointError: says what it should hold.
    """
    if not is_bundle(path) and not RunFolder(Path(path)).is_run:
        raise CheckpointError(
            f"'{path}' holds no run and no bundle; give what `embank train --out` or `embank export --out` wrote"
        )
