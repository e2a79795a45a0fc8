"""Evaluation of a model on a split, and of a run or a bundle on any data with its vocabularies."""

import errno
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embank.ctr_models import CTRModel
from embank.ctr_models.metrics import Evaluation
from embank.pipelines.config.run import Config, parse_config
from embank.pipelines.data.loading.integrity import verify_prepared
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.schema import NO_GROUP, Schema
from embank.pipelines.runs.build import build
from embank.pipelines.runs.bundle import load_model, schema_of
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.state import SavedRun
from embank.pipelines.train.progress import Progress
from embank.pipelines.train.step import score
from embank.tables import Bundle, CheckpointError, ConfigError, DataError, PackedCollection, TableCollection
from embank.tables.collections.stages import settle
from embank.tables.serving.bundle import is_bundle
from embank.tables.sharding.processes import Processes
from embank.tables.storage.checkpoint import meta_of

EVAL_BATCH_SIZE = 8192
_log = logging.getLogger(__name__)


@torch.no_grad()
def evaluate(
    model: CTRModel, path: str | Path, split: str, *, precision: str = "fp32", max_samples: int | None = None
) -> dict[str, Any]:
    """Metrics of a model on a split. Leaves the model in evaluation mode.

    Args:
        model: tables and network; where its tables are sharded, all processes call this together.
        path: a prepared folder.
        split: its train, valid or test rows.
        precision: fp32 or bf16 (autocast of the network).
        max_samples: evaluate about so many samples at most: every k-th batch of the split; None takes all.

    Returns:
        auc, logloss, gauc (if the data has groups) and what else `Evaluation` computes; auc is None where it is
        undefined, and `auc_undefined` says why.
    """
    tables = model.tables if isinstance(model.tables, TableCollection) else None
    processes = Processes() if tables is None else tables.processes
    loader = Loader(
        path,
        split,
        batch_size=EVAL_BATCH_SIZE * processes.count,
        shuffle=False,
        address=None if tables is None else tables.announce,
        rank=processes.rank,
        world_size=processes.count,
    )
    evaluation = new_evaluation(split, loader.schema)
    model.eval()
    every = 1 if max_samples is None else max(1, min(loader.num_batches, -(-loader.num_rows // max_samples)))
    for batch in islice(loader.epoch(0), every - 1, None, every):
        values: Tensor = model.tables(batch.sparse).values()
        logits_B = score(model, model.network, batch.dense.to(values.device), values, precision=precision)
        evaluation.update(logits_B.cpu(), batch.labels, batch.groups)
    return _over_all(evaluation, split=split, schema=loader.schema, processes=processes)


def new_evaluation(split: str, schema: Schema) -> Evaluation:
    """An evaluation of the rows of a split; those without a group key are in no group."""
    return Evaluation(split=split, grouped=schema.group is not None, no_group=NO_GROUP)


def _over_all(evaluation: Evaluation, *, split: str, schema: Schema, processes: Processes) -> dict[str, Any]:
    """Metrics of the rows of all processes, the same on each."""
    if processes.count == 1:
        return evaluation.compute()
    merged = new_evaluation(split, schema)
    for state in processes.gather(evaluation.state_dict()):
        part = new_evaluation(split, schema)
        part.load_state_dict(state)
        merged.merge(part)
    return merged.compute()


def validation_score(
    model: CTRModel, path: str | Path, *, precision: str = "fp32", max_samples: int | None = None
) -> float:
    """AUC on validation, or the negative log loss where AUC is undefined. Leaves the model in evaluation mode."""
    values = evaluate(model, path, "valid", precision=precision, max_samples=max_samples)
    return float(-values["logloss"] if values["auc"] is None else values["auc"])


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
        ConfigError: names both fingerprints.
    """
    if schema.fingerprint != trained:
        raise ConfigError(
            f"'{data}' has other vocabularies (fingerprint {schema.fingerprint[:12]}) than the data '{path}' was "
            "trained on "
            f"({trained[:12]}): its ids mean something else. Prepare it with the training data's vocabularies"
        )


def evaluate_run(path: str | Path, *, data: str | Path, split: str) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run and adds the figures to its `evaluations.jsonl`, see `record`.

    Args:
        path: the run directory.
        data: a prepared folder; its vocabularies must be the run's.
        split: train, valid or test.

    Raises:
        ConfigError: the data's ids mean something else.
        CheckpointError, DataError: what can't be read.
    """
    values = _of_run(Path(path), data=Path(data), split=split)
    record(values, path=path)
    return values


def _of_run(path: Path, *, data: Path, split: str) -> dict[str, Any]:
    run = RunFolder(path)
    trained = run.fingerprint
    schema = Schema.load(data)
    schema.split(split)
    refuse_other_vocabularies(schema, data=data, trained=trained, path=path)
    verify_prepared(data, schema, splits=(split,))
    precision = run.read_config()["train"]["precision"]
    with best_model(run, schema=schema, data=data) as (model, step):
        values = {"split": split, "step": step, **evaluate(model, data, split, precision=precision)}
        assert isinstance(model.tables, TableCollection)
        return values | {"serving_bytes": model.tables.nbytes("serving"), "data": str(data)}


def evaluate_bundle(path: str | Path, *, data: str | Path, split: str) -> dict[str, Any]:
    """Evaluates the model of a bundle and adds the figures to `BUNDLE.evaluations.jsonl` beside it, since bundles don't
    change.

    Args:
        path: the bundle of a training run.
        data: a prepared folder with the vocabularies of the training data; of its splits only this one is read.
        split: train, valid or test.

    Raises:
        ConfigError: the data's ids mean something else, or the bundle has no network.
        CheckpointError, DataError: what can't be read.
    """
    values = _of_bundle(Path(path), data=Path(data), split=split)
    record(values, path=path)
    return values


def _of_bundle(path: Path, *, data: Path, split: str) -> dict[str, Any]:
    bundle = Bundle(path)
    model = load_model(bundle)
    schema = Schema.load(data)
    schema.split(split)
    refuse_other_vocabularies(schema, data=data, trained=schema_of(bundle).fingerprint, path=path)
    verify_prepared(data, schema, splits=(split,), vocabularies=False)
    precision = bundle.facts["config"]["train"]["precision"]
    assert isinstance(model.tables, PackedCollection)
    return {
        "split": split,
        "step": bundle.facts["step"],
        **evaluate(model, data, split, precision=precision),
        "serving_bytes": model.tables.nbytes(),
        "bundle_bytes": bundle.nbytes,
        "data": str(data),
    }


def evaluate_saved(path: str | Path, *, data: str | Path, split: str) -> dict[str, Any]:
    """`evaluate_bundle` or `evaluate_run`, whichever the folder holds.

    Raises:
        CheckpointError: it holds neither.
    """
    values = figures_of(path, data=data, split=split)
    record(values, path=path)
    return values


def figures_of(path: str | Path, *, data: str | Path, split: str) -> dict[str, Any]:
    """As `evaluate_saved`, without a record."""
    refuse_neither(path)
    return (_of_bundle if is_bundle(path) else _of_run)(Path(path), data=Path(data), split=split)


def refuse_neither(path: str | Path) -> None:
    """Refuses a folder that holds neither a run nor a bundle.

    Raises:
        CheckpointError: says what it should hold.
    """
    if not is_bundle(path) and not RunFolder(Path(path)).is_run:
        raise CheckpointError(
            f"'{path}' holds no run and no bundle; give what `embank train --out` or `embank export --out` wrote"
        )


def evaluations_of(path: str | Path) -> Path:
    """Where the evaluations of a run (in it) or of a bundle (beside it) are recorded."""
    path = Path(path)
    if not is_bundle(path):
        return path / "evaluations.jsonl"
    folder = path.absolute()
    return folder.with_name(f"{folder.name}.evaluations.jsonl")


def record(values: Mapping[str, Any], *, path: str | Path) -> Path | None:
    """Adds an evaluation to those of a run or a bundle.

    Returns:
        The file; None where it can't be written, as in somebody else's folder. That is logged, the figures are as good.
    """
    file = evaluations_of(path)
    try:
        with file.open("a") as lines:
            lines.write(json.dumps(values) + "\n")
    except OSError as error:
        _log.warning("the evaluation is not recorded: '%s' can't be written (%s)", file, error.strerror)
        return None
    return file
