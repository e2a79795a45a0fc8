"""What a run holds, after verifying all of it."""

from pathlib import Path
from typing import Any

import torch

from embank.pipelines.data.schema import Schema
from embank.pipelines.training.config import parse_config
from embank.pipelines.training.evaluation import best_checkpoint, best_model
from embank.pipelines.training.run_folder import RunFolder
from embank.tables import DataError, TableCollection
from embank.tables.checkpoint import verify_checkpoint


def inspect_run(path: Path, *, data: Path | None = None) -> dict[str, Any]:
    """Tables, methods, shapes and bytes of a run's best checkpoint; every checkpoint's checksums are verified.

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
    _, _, is_best = best_checkpoint(run)
    place = data or Path(config.data.path)
    if not place.is_dir():
        raise DataError(
            f"there is no folder '{place}', where the run's vocabularies were; say where they are with --data"
        )
    with best_model(run, schema=Schema.load(place), data=place) as (model, step):
        assert isinstance(model.tables, TableCollection)
        tables = _tables(model.tables)
        held = [*model.network.parameters(), *model.network.buffers()]
    notes.append(
        f"the figures are of step {step}, {'the best on validation' if is_best else 'the last one; no evaluation has chosen one yet'}"
    )
    return {
        "tables": tables,
        "total": {key: sum(t[key] for t in tables) for key in ("serving_bytes", "training_bytes", "plain_bytes")},
        "network_bytes": sum(t.numel() * t.element_size() for t in held),
        "notes": notes,
    }


def _tables(tables: TableCollection) -> list[dict[str, Any]]:
    weights, state = tables.weights(), tables.optimizer_state()

    def held(name: str) -> int:
        tensors: list[torch.Tensor] = [weights[name], *state[name].values()]
        return sum(t.numel() * t.element_size() for t in tensors)

    rows = []
    for spec, method in zip(tables.specs, tables.built_methods(), strict=True):
        shapes = [f"{table.num_embeddings:,} x {table.embedding_dim}" for table in method.physical]
        rows.append(
            {
                "name": spec.name,
                "method": spec.method,
                "num_embeddings": spec.num_embeddings,
                "dim": spec.embedding_dim,
                "rows": " + ".join(shapes),
                "serving_bytes": method.pack(weights).nbytes(),
                "training_bytes": sum(held(table.name) for table in method.physical),
                "plain_bytes": spec.plain_nbytes,
            }
        )
    return rows
