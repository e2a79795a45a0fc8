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
from embank.tables.checkpoint import load_checkpoint, read_json

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
    loader = Loader(path, split, batch_size=EVAL_BATCH_SIZE, shuffle=False, address=model.tables.announce)
    evaluation = Evaluation(split=split, grouped=loader.schema.group is not None)
    model.eval()
    for batch in loader.epoch(0):
        with autocast(precision):
            logits_B = model(batch.dense, batch.sparse)
        evaluation.update(logits_B.float(), batch.labels, batch.groups)
    return evaluation.compute()


@contextmanager
def best_model(run: RunFolder, *, schema: Schema, data: Path) -> Iterator[tuple[CTRModel, int]]:
    """The model of a run with the weights of its best checkpoint, and that checkpoint's step.

    Rows on the disk tier are laid out in temporary files beside the run's own.

    Args:
        run: the run directory.
        schema: of the prepared folder.
        data: the prepared folder.

    Raises:
        CheckpointError: no run, no checkpoint, or a damaged one.
    """
    config = parse_config(run.read_config())
    folder, step, _ = best_checkpoint(run)
    place = run.path if config.rows.tier == "disk" else None
    with tempfile.TemporaryDirectory(prefix=".rows-", dir=place) as rows_folder:
        config = replace(config, rows=replace(config.rows, directory=rows_folder))
        model = build(config, schema, data=data, rows_folder=Path(rows_folder))
        assert isinstance(model.tables, TableCollection)
        dense, _ = load_checkpoint(folder, tables=model.tables, optimizer=False)
        model.network.load_state_dict(dense["network"])
        model.tables.methods.load_state_dict(dense["methods"])
        yield model, step


def best_checkpoint(run: RunFolder) -> tuple[Path, int, bool]:
    """The best checkpoint on validation with its step and True; the last one and False if none was evaluated yet.

    Raises:
        CheckpointError: there is no checkpoint, or the last one's record is damaged.
    """
    saved = run.saved()
    if not saved:
        raise CheckpointError(f"'{run.path}' has no checkpoint yet; train it first")
    progress = read_json(saved[-1] / "meta.json")["progress"]
    best = progress["best_step"]
    if best is None:
        return saved[-1], int(progress["step"]), False
    return run.checkpoint(best, evaluated=True), int(best), True


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
    trained = run.fingerprint
    schema = Schema.load(data)
    schema.split(split)
    if schema.fingerprint != trained:
        raise ConfigError(
            f"'{data}' has other vocabularies (fingerprint {schema.fingerprint[:12]}) than the data '{path}' was trained on "
            f"({trained[:12]}): its ids mean something else. Prepare it with the training data's vocabularies"
        )
    precision = run.read_config()["train"]["precision"]
    with best_model(run, schema=schema, data=data) as (model, step):
        values = {"split": split, "step": step, **evaluate(model, data, split, precision=precision)}
        assert isinstance(model.tables, TableCollection)
        values |= {"serving_bytes": model.tables.nbytes("serving"), "data": str(data)}
    with (path / "evaluations.jsonl").open("a") as file:
        file.write(json.dumps(values) + "\n")
    return values
