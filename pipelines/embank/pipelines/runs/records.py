"""A run's records: files that are replaced as a whole, and JSON objects that tell whether they were altered
afterwards."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embank.tables.errors import CheckpointError, WorkError
from embank.tables.storage.folders import cause_of, read_json, sync_entry

CHECK = "check"
"""Key of a record's checksum over all other keys."""
CURE = "Restore it, or start the run again in another --out"


def write_atomic(path: Path, text: str) -> None:
    """Replaces a file's content as a whole, durably.

    Raises:
        WorkError: it can't be written; what was there stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        sync_entry(temporary)
        temporary.replace(path)
        sync_entry(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise WorkError(
            f"'{path}' can't be written: {cause_of(error)}. What it held is untouched; make room and go on with "
            "--resume"
        ) from error


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the checksum that `unsealed` looks at."""
    return {**record, CHECK: _check_of(record)}


def unsealed(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record without its checksum, None if it was altered. One of an earlier version has none and is taken as it
    stands."""
    rest = {key: value for key, value in record.items() if key != CHECK}
    return rest if record.get(CHECK, found := _check_of(rest)) == found else None


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a sealed record.

    Raises:
        WorkError: it can't be written.
    """
    write_atomic(path, json.dumps(sealed(record), indent=1))


def read_record(path: Path) -> dict[str, Any]:
    """What `write_record` wrote.

    Raises:
        CheckpointError: missing, damaged, or altered since.
    """
    try:
        record = unsealed(read_json(path))
    except CheckpointError as error:
        raise CheckpointError(f"{error}. {CURE}") from error
    if record is None:
        raise CheckpointError(f"'{path}' has been altered since it was written: its checksum differs. {CURE}")
    return record


def digest_of(text: str) -> str:
    """A short checksum of text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check_of(record: Mapping[str, Any]) -> str:
    as_read = json.loads(json.dumps(dict(record)))  # keys are text and tuples are lists then
    return digest_of(json.dumps(as_read, sort_keys=True))
