"""Checkpoints: atomic, checksummed, in a format that reshards.

A checkpoint is a folder: rows and row-optimizer state in torch's distributed format (`rows/`), everything replicated
(network, its optimizer, generator states) in `dense.pt`, the caller's facts in `meta.json`, and `checksums.json` over all
of them. It is written under a temporary name, synced and renamed, so a crash or a full disk never leaves half of one and
never harms an earlier one.
"""

import hashlib
import io
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from embank.tables.core import Tables
from embank.tables.errors import CheckpointError, WorkError
from embank.tables.hashing import HASH_VERSION

FORMAT_VERSION = 1
CHECKSUMS = "checksums.json"


def refuse_non_finite(tables: Tables) -> None:
    """Raises WorkError if a row holds NaN or infinity, naming its table."""
    for name, weight_RD in tables.weights().items():
        if not bool(weight_RD.isfinite().all()):
            raise WorkError(
                f"rows of table '{name}' are not finite, so nothing was saved; start again with a lower learning rate for rows"
            )


def row_tensors(tables: Tables) -> dict[str, Tensor]:
    """Rows and row-optimizer state of a collection by a flat name: views that can be saved from and loaded into."""
    tensors = {f"rows/{name}": view for name, view in tables.weights().items()}
    for name, state in tables.optimizer_state().items():
        tensors |= {f"optimizer/{name}/{key}": view for key, view in state.items()}
    return tensors


def save_checkpoint(folder: Path, *, tables: Tables, dense: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Writes a checkpoint; at every moment either nothing or all of it is at `folder`.

    Args:
        folder: must not exist yet.
        tables: whose rows and row-optimizer state are saved.
        dense: everything else as tensors and plain containers, loadable with `weights_only=True`.
        meta: facts as JSON.

    Raises:
        WorkError: it can't be written (full disk, no permission); nothing is left behind.
    """
    if folder.exists():
        raise CheckpointError(f"'{folder}' exists already; a checkpoint is never written over another one")
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write_rows(temporary / "rows", row_tensors(tables))
        buffer = io.BytesIO()  # torch.save to a full disk hides the operating system's error; a plain write reports it
        torch.save(dict(dense), buffer)
        (temporary / "dense.pt").write_bytes(buffer.getbuffer())
        (temporary / "meta.json").write_text(
            json.dumps({"format_version": FORMAT_VERSION, "hash_version": HASH_VERSION, **meta}, indent=1)
        )
        checksums = {str(p.relative_to(temporary)): _digest(p) for p in _files(temporary)}
        (temporary / CHECKSUMS).write_text(json.dumps(checksums, indent=1, sort_keys=True))
        sync_folder(temporary)
        temporary.rename(folder)
        sync_entry(folder.parent)
    except (OSError, RuntimeError, CheckpointException) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise WorkError(
            f"the checkpoint '{folder}' can't be written: {_first_line(error)}. Earlier checkpoints are untouched; make room and resume"
        ) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_rows(folder: Path, tensors: dict[str, Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(tensors, checkpoint_id=folder, no_dist=True)


def _first_line(error: BaseException) -> str:
    """The operating system's own words where there are any, else the first line of the message."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def verify_checkpoint(folder: Path) -> dict[str, Any]:
    """Checks every byte of a checkpoint and returns its `meta`.

    Raises:
        CheckpointError: missing, incomplete, truncated, altered, or of another version; names the file.
    """
    listing = folder / CHECKSUMS
    if not listing.is_file():
        raise CheckpointError(f"'{folder}' is not a complete checkpoint: it has no {CHECKSUMS}")
    checksums = read_json(listing)
    for name, expected in checksums.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(
                f"checkpoint '{folder}' lacks '{name}'; restore it or resume from an earlier checkpoint"
            )
        size = path.stat().st_size
        if size != expected["nbytes"]:
            raise CheckpointError(
                f"'{path}' has {size:,} bytes where {expected['nbytes']:,} were written; it is truncated or altered. "
                "Restore it or remove this checkpoint to resume from an earlier one"
            )
        if _digest(path) != expected:
            raise CheckpointError(
                f"'{path}' has been altered: its SHA-256 differs from the one written with it. "
                "Restore it or remove this checkpoint to resume from an earlier one"
            )
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
    return meta


def load_checkpoint(folder: Path, *, tables: Tables, optimizer: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """Loads rows in place, after checking the whole checkpoint.

    Args:
        folder: what `save_checkpoint` wrote.
        tables: a collection of the same tables; its rows, and with `optimizer` their state, are overwritten.
        optimizer: False leaves the row-optimizer state alone (evaluation).

    Returns:
        (dense, meta) as given to `save_checkpoint`.

    Raises:
        CheckpointError: damaged, or of other tables: says which are missing, unexpected or of another shape.
    """
    meta = verify_checkpoint(folder)
    wanted = {k: v for k, v in row_tensors(tables).items() if optimizer or k.startswith("rows/")}
    reader = FileSystemReader(folder / "rows")
    found = reader.read_metadata().state_dict_metadata
    foreign = sorted(k for k in found if k not in wanted and (optimizer or k.startswith("rows/")))
    missing = sorted(k for k in wanted if k not in found)
    if missing or foreign:
        raise CheckpointError(
            f"checkpoint '{folder}' belongs to other tables: it lacks {missing or 'nothing'} and has {foreign or 'nothing'} besides"
        )
    for name, view in wanted.items():
        size = getattr(found[name], "size", None)
        if size != view.shape:
            raise CheckpointError(
                f"checkpoint '{folder}' holds '{name}' with shape {tuple(size or ())}, the table here has {tuple(view.shape)}"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(wanted, storage_reader=reader, no_dist=True)
    return torch.load(folder / "dense.pt", weights_only=True), meta


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "nbytes": path.stat().st_size}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; CheckpointError if it is missing or damaged."""
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise CheckpointError(f"'{path}' can't be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"'{path}' does not hold a JSON object")
    return content


def sync_entry(path: Path) -> None:
    """fsync of one file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """fsync of a folder and everything in it."""
    for path in (*folder.rglob("*"), folder):
        sync_entry(path)
