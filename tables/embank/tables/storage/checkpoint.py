"""Checkpoints: atomic, checksummed, in a format that reshards.

A checkpoint is a folder: rows and row-optimizer state in torch's distributed format (`rows/`), everything replicated
(network, its optimizer, generator states) in `dense.pt`, the caller's facts in `meta.json`, and `checksums.json` over
all of them. It is written under a temporary name, synced and renamed, so a crash or a full disk never leaves half of
one and never harms an earlier one.
"""

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException

from embank.tables.collections.base import Tables
from embank.tables.collections.identity import (
    identity_of,
    refuse_other_hashes,
    refuse_other_optimizer,
    refuse_other_tables,
)
from embank.tables.collections.state import NUM_UPDATES, load_num_updates, num_updates
from embank.tables.errors import CheckpointError, ConfigError, WorkError
from embank.tables.sharding.processes import Processes
from embank.tables.storage.atomic import publish, temporary_beside
from embank.tables.storage.checksums import CHECKSUMS, verify_checksums, write_checksums
from embank.tables.storage.json_text import read_json
from embank.tables.storage.refusals import cause_of, fitting, refused
from embank.tables.storage.resources import refuse_exhausted
from embank.tables.storage.row_files import RowTensor, read_rows, write_rows
from embank.tables.storage.row_index import INDEX, write_index

FORMAT_VERSION = 3
"""2 did not say what the rows belong to, and its index of them was a pickle."""

_CURE = "Restore it or remove this checkpoint to resume from an earlier one"


def refuse_no_tables(tables: object, *, doing: str) -> None:
    """Raises ConfigError for what is no collection, such as the model around one."""
    if not isinstance(tables, Tables):
        raise ConfigError(
            f"{doing} takes a collection of tables, not a {type(tables).__name__}; give the TableCollection or "
            "SequenceCollection in it"
        )


def refuse_non_finite(tables: Tables) -> None:
    """Raises WorkError if a row holds NaN or infinity, naming its table."""
    for name, weight_RD in tables.weights().items():
        # Not `weight_RD.isfinite()`, whose temporaries take more memory than the rows; a NaN is the smallest and the
        # largest value.
        if weight_RD.numel() and not bool(torch.stack(weight_RD.aminmax()).isfinite().all()):
            raise WorkError(
                f"rows of table '{name}' are not finite, so nothing was saved; start again with a lower learning rate "
                "for rows"
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
        CheckpointError: the folder exists.
        ConfigError: `dense` or `meta` could not be loaded again, or `tables` are none, a model around them for example;
            or the path can't be used (no permission).
        WorkError: it can't be written (full disk); nothing is left behind.

    Example:
        >>> specs = [TableSpec(name="item", num_embeddings=4, embedding_dim=2, feature_names=["item"])]
        >>> tables = TableCollection(specs)
        >>> save_checkpoint("step-10", tables=tables, dense={"bias": torch.zeros(1)}, meta={"step": 10})
        >>> resumed = TableCollection(specs, seed=1)
        >>> dense, meta = load_checkpoint("step-10", tables=resumed)
        >>> meta["step"], torch.equal(tables.weights()["item"], resumed.weights()["item"])
        (10, True)
    """
    refuse_no_tables(tables, doing="save_checkpoint")
    write_checkpoint(
        Path(folder),
        tables=tables,
        dense=dense,
        meta=meta,
        what=f"the checkpoint '{folder}'",
        cure="Earlier checkpoints are untouched; make room and resume",
    )


def write_checkpoint(
    folder: Path, *, tables: Tables, dense: Mapping[str, Any], meta: Mapping[str, Any], what: str, cure: str
) -> None:
    """`save_checkpoint`, as a part of something larger too.

    Args:
        folder, tables, dense, meta: as there.
        what: is written, for messages: what the user has named.
        cure: what to do about a full disk, the end of a message; see `fitting`.

    Raises:
        CheckpointError, ConfigError, WorkError: as there.
    """
    processes = tables.processes
    temporary = Path(processes.first(str(temporary_beside(folder))))  # the first one's, which all write into
    with processes.together():  # whoever fails in one of these blocks fails for all, or the others would wait for ever
        if folder.exists():
            raise CheckpointError(f"'{folder}' exists already; a checkpoint is never written over another one")
        refuse_non_finite(tables)
        facts = {"identity": identity_of(tables), NUM_UPDATES: num_updates(tables)}
        rest = _rest(dense=dense, meta={**meta, **facts})
    try:
        with processes.together():
            if processes.is_first:
                temporary.mkdir(parents=True)
        held = row_tensors(tables)
        metadata = write_rows(temporary / "rows", held, group=processes.group)
        striped = processes.union({tensor.name for tensor in held if tensor.shard.is_striped})
        with processes.together():
            if processes.is_first:
                write_index(temporary / "rows", metadata, striped=striped)
                for name, content in rest.items():
                    (temporary / name).write_bytes(content)
                write_checksums(temporary)  # over all other files, so it comes last
                publish(temporary, folder)
    except (OSError, RuntimeError, CheckpointException) as error:
        # Before the folder goes: it may have to try the disk again.
        cause, cure = cause_of(error, folder=temporary), fitting(cure, error, folder=temporary)
        _remove(temporary, processes)
        refuse_exhausted(error, doing=f"writing {what}")
        raise refused(error)(f"{what} can't be written: {cause}. {cure}") from error
    except BaseException:
        _remove(temporary, processes)
        raise


def _remove(temporary: Path, processes: Processes) -> None:
    if processes.is_first:
        shutil.rmtree(temporary, ignore_errors=True)


def _rest(*, dense: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, bytes]:
    """What a checkpoint's files besides rows hold, by name; read back, so that what is saved can be loaded.

    In memory first: `torch.save` to a full disk hides the operating system's error, which a plain write reports.
    """
    buffer = io.BytesIO()
    try:
        torch.save(dict(dense), buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True, map_location="meta")
    except Exception as error:  # pickle and torch have many types for what they can't do
        raise ConfigError(
            f"what is saved besides rows (`dense`) can't be loaded again: {cause_of(error)}. Give tensors, numbers, "
            "text, lists and dicts"
        ) from error
    try:
        text = json.dumps({**meta, "format_version": FORMAT_VERSION}, indent=1)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the facts of a checkpoint (`meta`) can't be saved as JSON: {error}; give plain values"
        ) from error
    return {"dense.pt": buffer.getvalue(), "meta.json": text.encode()}


def meta_of(folder: str | Path) -> dict[str, Any]:
    """The `meta` of a checkpoint, of which nothing else is read or checked.

    Raises:
        CheckpointError: the checkpoint is incomplete, or its facts were altered.
    """
    folder = Path(folder)
    verify_checksums(folder, kind="checkpoint", cure=_CURE, only=lambda name: name == "meta.json")
    return read_json(folder / "meta.json")


def verify_checkpoint(folder: str | Path) -> dict[str, Any]:
    """Checks every byte of a checkpoint and returns its `meta`.

    Raises:
        CheckpointError: missing, incomplete, truncated, altered, or of another version; names the file.
    """
    folder = Path(folder)
    checksums = verify_checksums(folder, kind="checkpoint", cure=_CURE)
    for required in ("meta.json", "dense.pt", f"rows/{INDEX}"):
        if required not in checksums:
            raise CheckpointError(f"checkpoint '{folder}' lacks '{required}' in its {CHECKSUMS}; it is not ours")
    meta = read_json(folder / "meta.json")
    if meta.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint '{folder}' has format version {meta.get('format_version')}; this embank reads version "
            f"{FORMAT_VERSION}. Load it with the embank that wrote it, or train again"
        )
    if not isinstance(meta.get("identity"), dict) or not isinstance(meta["identity"].get("tables"), dict):
        raise CheckpointError(f"'{folder / 'meta.json'}' does not say which tables it is of. {_CURE}")
    refuse_other_hashes(meta["identity"], what=f"checkpoint '{folder}'")
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

    Example:
        >>> from dataclasses import replace
        >>> item = TableSpec(name="item", num_embeddings=4, embedding_dim=2, feature_names=["item"])
        >>> save_checkpoint("step-10", tables=TableCollection([item]), dense={}, meta={})
        >>> load_checkpoint("step-10", tables=TableCollection([replace(item, num_embeddings=8)]))
        Traceback (most recent call last):
            ...
        embank.tables.errors.CheckpointError: checkpoint 'step-10' is of other tables: table 'item' was saved with
        num_embeddings 4 and has 8 here. Make the tables as they were when it was saved, or train anew
    """
    refuse_no_tables(tables, doing="load_checkpoint")
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
    """What a verified checkpoint holds besides rows, as it was given to `save_checkpoint`.

    Raises:
        CheckpointError: it is damaged, or holds more than tensors and plain containers.
    """
    file = Path(folder) / "dense.pt"
    try:
        dense: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # what torch raises on bytes of others has many types
        raise CheckpointError(
            f"'{file}' can't be read, or holds more than tensors and plain containers ({type(error).__name__}). {_CURE}"
        ) from error
    return dense


def load_rows(folder: str | Path, *, tables: Tables, optimizer: bool = True) -> None:
    """Loads rows of a verified checkpoint in place, see `load_checkpoint`."""
    folder = Path(folder)
    refuse_foreign(folder, tables, optimizer=optimizer)
    meta = read_json(folder / "meta.json")
    with tables.processes.together():
        wanted = [t for t in row_tensors(tables) if optimizer or t.name.startswith("rows/")]
        with tables.writing():
            read_rows(folder / "rows", wanted)
    if optimizer and NUM_UPDATES in meta:
        load_num_updates(tables, meta[NUM_UPDATES])


def refuse_foreign(folder: str | Path, tables: Tables, *, optimizer: bool = True) -> None:
    """Compares what a verified checkpoint says of its rows with the tables that they are to be loaded into.

    Raises:
        CheckpointError: it is of other tables, or with `optimizer` of another optimizer.
    """
    with tables.processes.together():
        _refuse_other(Path(folder), read_json(Path(folder) / "meta.json")["identity"], tables, optimizer=optimizer)


def _refuse_other(folder: Path, saved: Mapping[str, Any], tables: Tables, *, optimizer: bool) -> None:
    found, wanted = set(saved["tables"]), {spec.name for spec in tables.specs}
    if wanted != found:
        raise CheckpointError(
            f"checkpoint '{folder}' belongs to other tables: it lacks {sorted(wanted - found) or 'nothing'} and has "
            f"{sorted(found - wanted) or 'nothing'} besides"
        )
    what = f"checkpoint '{folder}'"
    refuse_other_tables(saved, tables, what=what)
    if optimizer:
        refuse_other_optimizer(saved, tables, what=what, cure="load with optimizer=False, which leaves it alone")
