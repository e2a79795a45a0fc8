"""Evaluation of a model on a split, and of a run directory on any data with its vocabularies."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from embank.ctr_models import CTRModel
from embank.ctr_models.metrics import Evaluation
from embank.pipelines.data.loader import Loader
from embank.pipelines.data.schema import Schema
from embank.pipelines.training.build import build
from embank.pipelines.training.config import parse_config
from embank.pipelines.training.run_folder import RunFolder
from embank.pipelines.training.step import autocast
from embank.tables import CheckpointError, ConfigError, TableCollection
from embank.tables.checkpoint import load_checkpoint

EVAL_BATCH_SIZE = 8192


@torch.no_grad()
def evaluate(model: CTRModel, path: str | Path, split: str, *, precision: str = "fp32") -> dict[str, Any]:
    """Metrics of a model on a split. Leaves the model in evaluation mode.

    Args:
        model: tables and network.
        path: a prepared folder.
        split: its train, valid or test rows.
        precision: fp32 or bf16 (autocast of the network).

    Returns:
        auc, logloss, gauc (if the data has groups) and what else `Evaluation` computes; auc is None where it is undefined,
        and `auc_undefined` says why.
    """
    assert isinstance(model.tables, TableCollection)
    loader = Loader(path, split, batch_size=EVAL_BATCH_SIZE, shuffle=False, address=model.tables.address)
    evaluation = Evaluation(split=split, grouped=loader.schema.group is not None)
    model.eval()
    for batch in loader.epoch(0):
        with autocast(precision):
            logits_B = model(batch.dense, batch.sparse)
        evaluation.update(logits_B.float(), batch.labels, batch.groups)
    return evaluation.compute()


@contextmanager
def best_model(run: RunFolder, *, schema: Schema) -> Iterator[tuple[CTRModel, int]]:
    """The model of a run with the weights of its best checkpoint, and that checkpoint's step.

    Rows on the disk tier are laid out in temporary files beside the run's own.

    Raises:
        CheckpointError: no run, no checkpoint, or a damaged one.
    """
    config = parse_config(run.read_config())
    step = best_step(run)
    with tempfile.TemporaryDirectory(prefix=".rows-", dir=run.path) as folder:
        config = replace(config, rows=replace(config.rows, directory=folder))
        model = build(config, schema, rows_folder=Path(folder))
        assert isinstance(model.tables, TableCollection)
        dense, _ = load_checkpoint(run.checkpoint(step), tables=model.tables, optimizer=False)
        model.network.load_state_dict(dense["network"])
        model.tables.methods.load_state_dict(dense["methods"])
        yield model, step


def best_step(run: RunFolder) -> int:
    """The step of the best checkpoint on validation (the last one, if none was evaluated yet).

    Raises:
        CheckpointError: there is no checkpoint.
    """
    steps = run.steps()
    if not steps:
        raise CheckpointError(f"'{run.path}' has no checkpoint yet; train it first")
    meta = json.loads((run.checkpoint(steps[-1]) / "meta.json").read_text())
    best = meta["progress"]["best_step"]
    return steps[-1] if best is None else int(best)


def evaluate_run(path: Path, *, data: Path, split: str) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run and adds the figures to `evaluations.jsonl`.

    Args:
        path: the run directory.
        data: a prepared folder; its vocabularies must be the run's.
        split: train, valid or test.

    Raises:
        ConfigError: the data's ids mean something else.
        CheckpointError, DataError: what can't be read.
    """
    run = RunFolder(path)
    run.read_config()
    schema = Schema.load(data)
    schema.split(split)
    trained = json.loads(run.environment.read_text())["data_fingerprint"]
    if schema.fingerprint != trained:
        raise ConfigError(
            f"'{data}' has other vocabularies (fingerprint {schema.fingerprint[:12]}) than the data '{path}' was trained on "
            f"({trained[:12]}): its ids mean something else. Prepare it with the training data's vocabularies"
        )
    precision = run.read_config()["train"]["precision"]
    with best_model(run, schema=schema) as (model, step):
        values = {"split": split, "step": step, **evaluate(model, data, split, precision=precision)}
        assert isinstance(model.tables, TableCollection)
        values |= {"serving_bytes": model.tables.nbytes("serving"), "data": str(data)}
    with (path / "evaluations.jsonl").open("a") as file:
        file.write(json.dumps(values) + "\n")
    return values
