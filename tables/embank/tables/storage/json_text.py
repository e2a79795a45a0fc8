"""JSON files, read with the cause where they can't be."""

import json
from pathlib import Path
from typing import Any

from embank.tables.errors import CheckpointError
from embank.tables.storage.refusals import cause_of

MAX_NBYTES = 2**28
"""Bytes of a file at most: none of ours comes near, and parsing takes ten times as many."""


def read_json(path: Path, *, cure: str = "") -> dict[str, Any]:
    """A JSON object from a file.

    Args:
        path: the file.
        cure: what to do about a damaged one, a sentence.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    end = f". {cure}" if cure else ""
    try:
        nbytes = path.stat().st_size
        if nbytes > MAX_NBYTES:
            raise CheckpointError(f"'{path}' has {nbytes:,} bytes, more than any such file{end}")
        return parse_json(path.read_text(encoding="utf-8"), what=f"'{path}'", end=end)
    except OSError as error:
        raise CheckpointError(f"'{path}' can't be read: {cause_of(error)}{end}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"'{path}' can't be read: it is no JSON{end}") from error


def parse_json(text: str, *, what: str, end: str = "") -> dict[str, Any]:
    """A JSON object from a text.

    Args:
        text: the text.
        what: what it is, for messages.
        end: of messages.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno} is no JSON" if isinstance(error, json.JSONDecodeError) else "it is no JSON"
        raise CheckpointError(f"{what} can't be read: {where}{end}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{what} does not hold a JSON object{end}")
    return content
