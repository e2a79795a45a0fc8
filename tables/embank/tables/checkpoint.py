"""Checkpoints: atomic, checksummed, in a format that reshards.

A checkpoint is a folder: rows and row-optimizer state in torch's distributed format (`rows/`), everything replicated
(network, its optimizer, generator states) in `dense.pt`, the caller's facts in `meta.json`, and `checksums.json` over all
of them. It is written under a temporary name, synced and renamed, so a crash or a full disk never leaves half of one and
never harms an earlier one.
"""

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException

from embank.tables.core import Tables
from embank.tables.errors import CheckpointError, WorkError
from embank.tables.files import (
    CHECKSUMS,
    cause_of,
    publish,
    read_json,
    temporary_beside,
    verify_checksums,
    write_checksums,
)
from embank.tables.hashing import HASH_VERSION
from embank.tables.processes import Processes
from embank.tables.row_files import RowTensor, read_rows, saved_names, write_rows
from embank.tables.specs import token_hash_version_of
from embank.tables.token_hash import refuse_other_token_hash

FORMAT_VERSION = 2
_CURE = "Restore it or remove this checkpoint to resume from an earlier one"


def refuse_non_finite(tables: Tables) -> None:
    """Raises WorkError if a row holds NaN or infinity, naming its table."""
    for name, weight_RD in tables.weights().items():
        # Not `weight_RD.isfinite()`, whose temporaries take more memory than the rows; a NaN is the smallest and the largest value.
        if weight_RD.numel() and not bool(torch.stack(weight_RD.aminmax()).isfinite().all()):
            raise WorkError(
                f"rows of table '{name}' are not finite, so nothing was saved; start again with a lower learning rate for rows"
            )


def row_tensors(tables: Tables) -> list[RowTensor]:
    """Rows and row-optimizer state that this process holds: views that are saved from and loaded into."""
    tensors = []
    for store in tables.row_stores():
        state, weights = store.optimizer_state(), store.weights()
        for shard in store.shards:
            table = shard.table.name
            views = {f"rows/{table}": weights[table]}
            views |= {f"optimizer/{table}/{key}": view for key, view in state[table].items()}
            saved = tables.sharding is None or tables.sharding.rank == 0 or not tables.sharding.is_replicated(table)
            tensors += [RowTensor(name=name, view=view, shard=shard, is_saved=saved) for name, view in views.items()]
    return tensors


def save_checkpoint(folder: str | Path, *, tables: Tables, dense: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Writes a checkpoint; at every moment either nothing or all of it is at `folder`.

    All processes of a sharded collection call this together, with a folder on a file system that they share.

    Args:
        folder: must not exist yet.
        tables: whose rows and row-optimizer state are saved.
        dense: everything else as tensors and plain containers, loadable with `weights_only=True`; rank 0's is saved.
        meta: facts as JSON; rank 0's are saved.

    Raises:
        WorkError: it can't be written (full disk, no permission); nothing is left behind.
    """
    folder, processes = Path(folder), tables.processes
    temporary = Path(processes.first(str(temporary_beside(folder))))
    with processes.together():
        if folder.exists():
            raise CheckpointError(f"'{folder}' exists already; a checkpoint is never written over another one")
        refuse_non_finite(tables)
    try:
        with processes.together():
            if processes.is_first:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
        write_rows(temporary / "rows", row_tensors(tables), group=processes.group)
        striped = sorted(processes.union(striped_tables(tables)))
        with processes.together():
            if processes.is_first:
                versions = {"hash_version": HASH_VERSION, "token_hash_version": token_hash_version_of(tables.specs)}
                _write_rest(temporary, dense=dense, meta={**versions, **meta, "striped": striped})
                write_checksums(temporary)
                publish(temporary, folder)
    except (OSError, RuntimeError, CheckpointException) as error:
        _remove(temporary, processes)
        raise WorkError(
            f"the checkpoint '{folder}' can't be written: {cause_of(error)}. Earlier checkpoints are untouched; make room and resume"
        ) from error
    except BaseException:
        _remove(temporary, processes)
        raise


def _remove(temporary: Path, processes: Processes) -> None:
    if processes.is_first:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_rest(folder: Path, *, dense: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    buffer = io.BytesIO()  # torch.save to a full disk hides the operating system's error; a plain write reports it
    torch.save(dict(dense), buffer)
    (folder / "dense.pt").write_bytes(buffer.getbuffer())
    (folder / "meta.json").write_text(json.dumps({"format_version": FORMAT_VERSION, **meta}, indent=1))


def striped_tables(tables: Tables) -> set[str]:
    """Physical tables whose places are striped here."""
    return {shard.table.name for store in tables.row_stores() for shard in store.shards if shard.is_striped}


def verify_checkpoint(folder: str | Path) -> dict[str, Any]:
    """Checks every byte of a checkpoint and returns its `meta`.

    Raises:
        CheckpointError: missing, incomplete, truncated, altered, or of another version; names the file.
    """
    folder = Path(folder)
    checksums = verify_checksums(folder, kind="checkpoint", cure=_CURE)
    for required in ("meta.json", "dense.pt", "rows/.metadata"):
        if required not in checksums:
            raise CheckpointError(f"checkpoint '{folder}' lacks '{required}' in its {CHECKSUMS}; it is not ours")
    meta = read_json(folder / "meta.json")
    if meta.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint '{folder}' has format version {meta.get('format_version')}; this embank reads version {FORMAT_VERSION}"
        )
    if meta.get("hash_version") != HASH_VERSION:
        raise CheckpointError(
            f"checkpoint '{folder}' was addressed by hash version {meta.get('hash_version')}; this embank has version {HASH_VERSION}, "
            "which gives ids other rows"
        )
    refuse_other_token_hash(meta.get("token_hash_version"), what=f"checkpoint '{folder}'", error=CheckpointError)
    return meta


def load_checkpoint(
    folder: str | Path, *, tables: Tables, optimizer: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Loads rows in place, after checking the whole checkpoint.

    Args:
        folder: what `save_checkpoint` wrote.
        tables: a collection of the same tables; its rows, and with `optimizer` their state, are overwritten.
        optimizer: False leaves the row-optimizer state alone (evaluation).

    Returns:
        (dense, meta) as given to `save_checkpoint`.

    Raises:
        CheckpointError: damaged, or of other tables: says which are missing, unexpected or of another shape.

    All processes of a sharded collection call this together; how many there were when it was saved does not matter.
    """
    meta = read_verified(folder, tables)
    load_rows(folder, tables=tables, optimizer=optimizer)
    return load_dense(folder), meta


def read_verified(folder: str | Path, tables: Tables) -> dict[str, Any]:
    """Verifies a checkpoint, once for all processes of a collection, and returns its `meta`."""
    processes = tables.processes
    with processes.together():
        if processes.is_first:
            verify_checkpoint(folder)
    return read_json(Path(folder) / "meta.json")


def load_dense(folder: str | Path) -> dict[str, Any]:
    """What a verified checkpoint holds besides rows, as it was given to `save_checkpoint`."""
    dense: dict[str, Any] = torch.load(Path(folder) / "dense.pt", weights_only=True, map_location="cpu")
    return dense


def load_rows(folder: str | Path, *, tables: Tables, optimizer: bool = True) -> None:
    """Loads rows of a verified checkpoint in place, see `load_checkpoint`."""
    folder, processes = Path(folder), tables.processes
    striped = read_json(folder / "meta.json")["striped"]
    with processes.together():
        wanted = [t for t in row_tensors(tables) if optimizer or t.name.startswith("rows/")]
        _refuse_foreign(folder, processes.union({t.name for t in wanted}), optimizer=optimizer)
        read_rows(folder / "rows", wanted, striped=striped)


def _refuse_foreign(folder: Path, wanted: set[str], *, optimizer: bool) -> None:
    found = {name for name in saved_names(folder / "rows") if optimizer or name.startswith("rows/")}
    if wanted != found:
        raise CheckpointError(
            f"checkpoint '{folder}' belongs to other tables: it lacks {sorted(wanted - found) or 'nothing'} and has "
            f"{sorted(found - wanted) or 'nothing'} besides"
        )
