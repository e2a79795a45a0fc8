"""JSON files, read with the cause where they can't be."""

import json
from pathlib import Path
from typing import Any

from embank.tables.errors import CheckpointError
from embank.tables.storage.refusals import cause_of


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; CheckpointError if it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"'{path}' can't be read: {cause_of(error)}") from error
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno} is no JSON" if isinstance(error, json.JSONDecodeError) else "it is no JSON"
        raise CheckpointError(f"'{path}' can't be read: {where}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"'{path}' does not hold a JSON object")
    return content
