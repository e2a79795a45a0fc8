"""A run's records: JSON objects that tell whether they were altered afterwards."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embank.tables.errors import CheckpointError
from embank.tables.storage.atomic import replace_text
from embank.tables.storage.checksums import text_digest
from embank.tables.storage.json_text import read_json

CHECK = "check"
"""Key of a record's checksum over all other keys."""
CURE = "Restore it, or start the run again in another --out"
RESUME = "make room and go on with --resume"


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
        WorkError, ConfigError: it can't be written, see `refused`.
    """
    replace_text(path, json.dumps(sealed(record), indent=1), cure=RESUME)


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


def short_digest(text: str) -> str:
    """The first 16 digits of a text's checksum."""
    return text_digest(text)[:16]


def _check_of(record: Mapping[str, Any]) -> str:
    as_read = json.loads(json.dumps(dict(record)))  # keys are text and tuples are lists then
    return short_digest(json.dumps(as_read, sort_keys=True))
