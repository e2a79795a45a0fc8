"""What a run or a bundle holds, after verifying all of it. Tables without a vocabulary have no plain bytes: None."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from embank.pipelines.config.run import parse_config
from embank.pipelines.data.preprocessing.rules import PREPROCESS, Preprocessing
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import served_nbytes, table_codecs
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.open import best_checkpoint, best_model, data_of, refuse_neither
from embank.tables import Bundle, ConfigError, PackedTable, TableCollection, pack_table, physical_tables
from embank.tables.collections.held_rows import fp32_rows
from embank.tables.rows.held_bytes import distinct_nbytes
from embank.tables.serving.bundle import is_bundle
from embank.tables.specs import plain_nbytes_of
from embank.tables.storage.checkpoint import verify_checkpoint


def inspect_run(path: str | Path, *, data: str | Path | None = None) -> dict[str, Any]:
    """Tables, methods, shapes and bytes of a run's best checkpoint; all checksums are verified, those of its bundle as
    well.

    Args:
        path: the run directory.
        data: the prepared folder, if it is no longer where the run's configuration says.

    Raises:
        CheckpointError: no run, or a damaged checkpoint.
        DataError: the prepared folder, whose vocabularies give the tables' sizes, is gone.
    """
    run = RunFolder(path)
    config = parse_config(run.read_config())
    notes = []
    for folder in run.saved():
        verify_checkpoint(folder)
        notes.append(f"checkpoint {folder.name}: all checksums match")
    if is_bundle(run.bundle):
        Bundle(run.bundle)
        notes.append("bundle: all checksums match")
    _, _, is_best = best_checkpoint(run)
    place = data_of(config, data)
    with best_model(run, schema=Schema.load(place), data=place) as (model, step):
        assert isinstance(model.tables, TableCollection)
        tables = _tables(model.tables, codecs=table_codecs(config, model.tables.specs))
        total = {
            "serving_bytes": served_nbytes(config, model.tables),
            "training_bytes": model.tables.nbytes("training"),
            "plain_bytes": plain_nbytes_of(model.tables.specs),
        }
        held = [*model.network.parameters(), *model.network.buffers()]
    notes.append(
        f"the figures are of step {step}, "
        f"{'the best on validation' if is_best else 'the last one; no evaluation has chosen one yet'}"
    )
    return {
        "tables": tables,
        "total": total,
        "network_bytes": sum(t.numel() * t.element_size() for t in held),
        "notes": notes,
    }


def inspect_bundle(path: str | Path) -> dict[str, Any]:
    """Tables, methods, shapes and bytes of a bundle, after verifying its checksums. No data is needed.

    Raises:
        CheckpointError: no bundle, or a damaged one.
    """
    bundle = Bundle(path)
    collection = bundle.tables()
    tables = [
        {
            "name": spec.name,
            "method": spec.method,
            "num_embeddings": spec.num_embeddings,
            "dim": spec.embedding_dim,
            "codecs": pack.codecs(),
            "rows": " + ".join(_held(pack)),
            "serving_bytes": pack.nbytes(),
            "plain_bytes": plain_nbytes_of([spec]),
        }
        for spec, pack in collection.packed_tables()
    ]
    network = bundle.network().values() if bundle.has_network else []
    notes = [f"{bundle.nbytes:,} bytes on disk, written by embank {bundle.embank_version}: all checksums match"]
    if "config" in bundle.facts and "step" in bundle.facts:
        notes.append(f"model '{bundle.facts['config']['model']['name']}' as of step {bundle.facts['step']}")
    rules = Preprocessing.load(bundle.path) if (bundle.path / PREPROCESS).is_file() else None
    if rules is not None:
        count = sum(facts.num_tokens for facts in rules.index.facts.values())
        without = "" if rules.tokens is not None else ", the tokens themselves left out"
        notes.append(f"scores raw rows: {count:,} tokens of {len(rules.index.facts)} vocabularies{without}")
    return {
        "tables": tables,
        "total": {
            "serving_bytes": collection.nbytes(),
            "plain_bytes": plain_nbytes_of(collection.specs),
        },
        "network_bytes": distinct_nbytes(list(network)),
        "vocabulary_bytes": 0 if rules is None else rules.index.nbytes,
        "notes": notes,
    }


def inspect_saved(path: str | Path, *, data: str | Path | None = None) -> dict[str, Any]:
    """`inspect_bundle` or `inspect_run`, whichever the folder holds.

    Raises:
        CheckpointError: it holds neither.
        ConfigError: a data folder for a bundle.
    """
    refuse_neither(path)
    if not is_bundle(path):
        return inspect_run(path, data=data)
    if data is not None:
        raise ConfigError(f"'{path}' is a bundle, which is inspected without data; leave out --data")
    return inspect_bundle(path)


def _held(pack: PackedTable) -> list[str]:
    """What a packed table holds, its matrices first: `rows 1,000 x 16 float32`, numbered where there are several."""
    spine, *matrices = (part for _, part in pack.parts())
    held = [
        _shape(f"{name}{i if len(matrices) > 1 else ''}", tensor)
        for i, matrix in enumerate(matrices)
        for name, tensor in matrix.named_buffers()
    ]
    return [*held, *(_shape(name, tensor) for name, tensor in spine.named_buffers())]


def _shape(name: str, tensor: torch.Tensor) -> str:
    """`rows 1,000 x 16 float16`."""
    shape = " x ".join(f"{size:,}" for size in tensor.shape) or "1"
    return f"{name} {shape} {str(tensor.dtype).removeprefix('torch.')}"


def _tables(tables: TableCollection, *, codecs: Mapping[str, str]) -> list[dict[str, Any]]:
    weights, state, rows_packed = tables.weights(), tables.optimizer_state(), fp32_rows(tables)

    def held(name: str) -> int:
        tensors: list[torch.Tensor] = [weights[name], *state[name].values()]
        return sum(t.numel() * t.element_size() for t in tensors)

    rows = []
    for spec, method in zip(tables.specs, tables.built_methods(), strict=True):
        shapes = [f"{table.num_embeddings:,} x {table.embedding_dim}" for table in physical_tables(method)]
        rows.append(
            {
                "name": spec.name,
                "method": spec.method,
                "num_embeddings": spec.num_embeddings,
                "dim": spec.embedding_dim,
                "rows": " + ".join(shapes),
                "serving_bytes": pack_table(method, rows_packed, codec=codecs[spec.name]).nbytes(),
                "training_bytes": sum(held(table.name) for table in physical_tables(method)),
                "plain_bytes": plain_nbytes_of([spec]),
            }
        )
    return rows
