"""Folders that are written as a whole and checked when they are read: checksums, syncing, renaming into place."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from embank.tables.errors import CheckpointError

CHECKSUMS = "checksums.json"


def write_checksums(folder: Path) -> None:
    """Adds `checksums.json` over all other files of a folder: SHA-256 and bytes of each."""
    checksums = {str(path.relative_to(folder)): digest(path) for path in _files(folder)}
    (folder / CHECKSUMS).write_text(json.dumps(checksums, indent=1, sort_keys=True))


def verify_checksums(folder: Path, *, kind: str, cure: str, read: bool = True) -> dict[str, Any]:
    """Checks the files of a folder against its `checksums.json`; files that are not listed there are left alone.

    Args:
        folder: what is checked.
        kind: what it is, for messages.
        cure: what to do about a damaged file, a sentence.
        read: False compares sizes only.

    Returns:
        The listing: `{"sha256": ..., "nbytes": ...}` by file.

    Raises:
        CheckpointError: incomplete, truncated or altered; names the file.
    """
    listing = folder / CHECKSUMS
    if not listing.is_file():
        raise CheckpointError(f"'{folder}' is not a complete {kind}: it has no {CHECKSUMS}. {cure}")
    checksums = read_json(listing)
    for name, expected in checksums.items():
        path = folder / name
        if not isinstance(expected, dict) or set(expected) != {"sha256", "nbytes"}:
            raise CheckpointError(f"'{listing}' is damaged: its entry '{name}' is {expected!r}. {cure}")
        if not path.is_file():
            raise CheckpointError(f"{kind} '{folder}' lacks '{name}'. {cure}")
        size = path.stat().st_size
        if size != expected["nbytes"]:
            raise CheckpointError(
                f"'{path}' has {size:,} bytes where {expected['nbytes']:,} were written; it is truncated or altered. {cure}"
            )
        if read and digest(path) != expected:
            raise CheckpointError(
                f"'{path}' has been altered: its SHA-256 differs from the one written with it. {cure}"
            )
    return checksums


def digest(path: Path) -> dict[str, Any]:
    """SHA-256 and bytes of a file."""
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


def temporary_beside(folder: Path) -> Path:
    """Where a folder is written before it gets its name: hidden, and of this process alone."""
    return folder.with_name(f".{folder.name}.tmp-{os.getpid()}")


def publish(temporary: Path, folder: Path) -> None:
    """Gives a complete folder its name, durably."""
    sync_folder(temporary)
    temporary.rename(folder)
    sync_entry(folder.parent)


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


def cause_of(error: BaseException) -> str:
    """The operating system's own words where there are any, else the last line of the message."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
