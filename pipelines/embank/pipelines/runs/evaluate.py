"""Evaluation of a model on a split, and of a run or a bundle on any data with its vocabularies."""

import json
import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from embank.ctr_models import CTRModel
from embank.ctr_models.metrics import Evaluation
from embank.pipelines.config.run import parse_config
from embank.pipelines.data.loading.batch import Batch
from embank.pipelines.data.loading.integrity import verify_prepared
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.schema import NO_GROUP, Schema
from embank.pipelines.runs.build import served_model, served_nbytes
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.memory import keep_freed_memory
from embank.pipelines.runs.open import best_model, refuse_neither, refuse_other_vocabularies
from embank.pipelines.runs.score import Score, compiled_score, score
from embank.pipelines.runs.scoring import Scorer
from embank.pipelines.runs.trained import schema_of
from embank.tables import Bundle, DataError, TableCollection
from embank.tables.serving.bundle import is_bundle
from embank.tables.sharding.processes import Processes

EVAL_BATCH_SIZE = 8192
COMPILED_ROWS = 4_000_000
"""Of a split that is scored by the compiled network, where there is one: below, to compile it for batches of this size
and without gradients takes longer than it saves."""
_log = logging.getLogger(__name__)


@torch.no_grad()
def evaluate(
    model: CTRModel, path: str | Path, split: str, *, precision: str = "fp32", compiled: Score | None = None
) -> dict[str, Any]:
    """Metrics of a model on a split. Leaves the model in evaluation mode.

    Args:
        model: tables and network; where its tables are sharded, all processes call this together.
        path: a prepared folder.
        split: its train, valid or test rows.
        precision: fp32 or bf16 (autocast of the network).
        compiled: the network's `score`, compiled; scores the full batches of a split of `COMPILED_ROWS` or more.

    Returns:
        auc, logloss, gauc (if the data has groups) and what else `Evaluation` computes; auc is None where it is
        undefined, and `auc_undefined` says why.
    """
    tables, processes = (model.tables if isinstance(model.tables, TableCollection) else None), processes_of(model)
    loader = Loader(
        path,
        split,
        batch_size=EVAL_BATCH_SIZE * processes.count,
        shuffle=False,
        address=None if tables is None else tables.address_ahead,
        rank=processes.rank,
        world_size=processes.count,
    )
    refuse_unlabelled(loader.schema, data=path)
    return evaluate_batches(
        model,
        loader.epoch(0),
        split=split,
        schema=loader.schema,
        precision=precision,
        compiled=compiled if _is_large(loader.schema, split) else None,
    )


def _is_large(schema: Schema, split: str) -> bool:
    return schema.split(split).num_rows >= COMPILED_ROWS


@torch.no_grad()
@keep_freed_memory()
def evaluate_batches(
    model: CTRModel,
    batches: Iterable[Batch],
    *,
    split: str,
    schema: Schema,
    precision: str,
    compiled: Score | None = None,
) -> dict[str, Any]:
    """As `evaluate`, of some batches of a split of data with a schema; `compiled` scores those of `EVAL_BATCH_SIZE`."""
    evaluation = new_evaluation(split, schema)
    if model.training:
        model.eval()
    for batch in batches:
        values: Tensor = model.tables(batch.sparse).values()
        is_full = batch.labels.numel() == EVAL_BATCH_SIZE
        network = compiled if compiled is not None and is_full else model.network.score
        logits_B = score(network, batch.dense.to(values.device), values, precision=precision)
        evaluation.update(logits_B.cpu(), batch.labels, batch.groups)
    return _over_all(evaluation, split=split, schema=schema, processes=processes_of(model))


def processes_of(model: CTRModel) -> Processes:
    """Those that the model's tables are spread over."""
    return model.tables.processes if isinstance(model.tables, TableCollection) else Processes()


def refuse_unlabelled(schema: Schema, *, data: str | Path) -> None:
    """Raises DataError if the rows of a prepared folder have no labels."""
    if schema.label is None:
        raise DataError(
            f"the rows of '{data}' have no labels (it was prepared with --unlabelled), so there is nothing to train "
            "on or to measure by. Prepare rows with labels; `embank predict` scores those without"
        )


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


def evaluate_bundle(bundle: Bundle, path: str | Path, split: str) -> dict[str, Any]:
    """Metrics of a bundle on a split of a prepared folder, as `evaluate` gives them.

    Raises:
        ConfigError, CheckpointError: the bundle is not a training run's, or damaged.
    """
    return evaluate_scorer(Scorer(bundle), path, split)


def evaluate_scorer(scorer: Scorer, path: str | Path, split: str) -> dict[str, Any]:
    """Metrics of what a bundle's scorer gives for a split of a prepared folder, as `evaluate` gives them."""
    loader = Loader(path, split, batch_size=EVAL_BATCH_SIZE, shuffle=False)
    refuse_unlabelled(loader.schema, data=path)
    evaluation = new_evaluation(split, loader.schema)
    for batch in loader.epoch(0):
        ids, lengths = plain_ids(batch.sparse, bags=scorer.multivalued)
        evaluation.update(scorer.logits(batch.dense, ids, lengths), batch.labels, batch.groups)
    return evaluation.compute()


def plain_ids(features: KeyedJaggedTensor, *, bags: Collection[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Ids [N] by feature, and the lengths [B] of those that hold bags: what `Scorer.logits` takes."""
    starts, lengths_FB = features.offset_per_key(), features.lengths().view(len(features.keys()), -1)
    ids = {key: features.values()[starts[i] : starts[i + 1]] for i, key in enumerate(features.keys())}
    return ids, {key: lengths_B for key, lengths_B in zip(features.keys(), lengths_FB, strict=True) if key in bags}


def _schema_of(data: Path, split: str) -> Schema:
    """The schema of data whose split is to be read.

    Raises:
        DataError: there is no such split, or it has no rows.
    """
    schema = Schema.load(data)
    if not schema.split(split).num_rows:
        filled = [part.name for part in schema.splits if part.num_rows]
        raise DataError(f"'{data}' has no rows in its {split} split; those with rows: {', '.join(filled)}")
    return schema


def _of_run(path: Path, *, data: Path, split: str) -> dict[str, Any]:
    run = RunFolder(path)
    trained = run.fingerprint
    schema = _schema_of(data, split)
    refuse_other_vocabularies(schema, data=data, trained=trained, path=path)
    verify_prepared(data, schema, splits=(split,))
    config = parse_config(run.read_config())
    with best_model(run, schema=schema, data=data) as (model, step):
        assert isinstance(model.tables, TableCollection)
        nbytes, served = served_nbytes(config, model.tables), served_model(config, model)
        train = config.train
        is_compiled = train.compile is True and _is_large(schema, split)
        compiled = compiled_score(model.network, falls_back=True) if is_compiled else None
        scores = evaluate(served, data, split, precision=train.precision, compiled=compiled)
        values = {"split": split, "step": step, **scores}
        return values | {"serving_bytes": nbytes, "data": str(data)}


def _of_bundle(path: Path, *, data: Path, split: str) -> dict[str, Any]:
    bundle = Bundle(path)
    scorer = Scorer(bundle)
    schema = _schema_of(data, split)
    refuse_other_vocabularies(schema, data=data, trained=schema_of(bundle).fingerprint, path=path)
    verify_prepared(data, schema, splits=(split,), vocabularies=False)
    return {
        "split": split,
        "step": bundle.facts["step"],
        **evaluate_scorer(scorer, data, split),
        "serving_bytes": scorer.nbytes(),
        "bundle_bytes": bundle.nbytes,
        "data": str(data),
    }


def evaluate_saved(path: str | Path, *, data: str | Path, split: str) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run, or the model of a bundle, and records the figures, see `record`.

    Args:
        path: the run directory or the bundle.
        data: a prepared folder with the vocabularies of the training data. For a bundle, only this split of it is read.
        split: train, valid or test.

    Returns:
        What `evaluate` returns, the checkpoint's step, serving bytes, and of a bundle those on disk.

    Raises:
        ConfigError: the data's ids mean something else, or the bundle has no network.
        CheckpointError, DataError: what can't be read; the folder holds neither a run nor a bundle.
    """
    values = figures_of(path, data=data, split=split)
    record(values, path=path)
    return values


def figures_of(path: str | Path, *, data: str | Path, split: str) -> dict[str, Any]:
    """As `evaluate_saved`, without a record."""
    refuse_neither(path)
    return (_of_bundle if is_bundle(path) else _of_run)(Path(path), data=Path(data), split=split)


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
