"""Overlays: the rows that edits changed, in a file that ships beside a memory."""

import hashlib
from pathlib import Path

from torch import Tensor

from embank.tables.errors import CheckpointError, ConfigError
from embank.tables.memory.editing import EditSession
from embank.tables.memory.tables import MemoryTables
from embank.tables.memory.tensor_files import reading_tensors, write_tensors

FORMAT_VERSION = 1


def save_overlay(session: EditSession, path: str | Path) -> None:
    """Writes what all edits of a session together have changed.

    Args:
        session: whose log is written.
        path: a file; it is replaced as a whole.

    Raises:
        ConfigError: there is no edit.
        WorkError: it can't be written.
    """
    changes = session.net_changes()
    if not changes:
        raise ConfigError("there is no edit to save as an overlay")
    tensors: dict[str, Tensor] = {}
    tables = []
    for number, change in enumerate(changes):
        tensors |= {f"{number}.rows": change.rows_U, f"{number}.values": change.new_UD}
        tables.append({"kind": change.kind, "table": change.table, "replaces": _digest(change.old_UD)})
    facts = {
        "overlay_version": FORMAT_VERSION,
        "edits": [edit.name for edit in session.log],
        "tables": tables,
        "memory": session.memory.manifest(),
    }
    write_tensors(Path(path), tensors, facts=facts, what="the overlay")


def apply_overlay(memory: MemoryTables, path: str | Path) -> EditSession:
    """Writes the rows of an overlay, after all of it was checked.

    Args:
        memory: as it was before the edits: the rows that are replaced must be those that the overlay was made on.
        path: what `save_overlay` wrote.

    Returns:
        A session that can take it back.

    Raises:
        CheckpointError: no overlay, one for another memory, or made on other rows; nothing was written.
    """
    session, changes = EditSession(memory), []
    with reading_tensors(Path(path), what="the overlay") as (facts, get):
        if facts.get("overlay_version") != FORMAT_VERSION:
            raise CheckpointError(
                f"'{path}' is no overlay of version {FORMAT_VERSION}, which this embank reads (it says "
                f"{facts.get('overlay_version')})"
            )
        memory.refuse_other(facts["memory"], what=f"the overlay '{path}'")
        for number, entry in enumerate(facts["tables"]):
            try:
                change = session.planned(entry["kind"], entry["table"], get(f"{number}.rows"), get(f"{number}.values"))
            except ConfigError as error:
                raise CheckpointError(f"the overlay '{path}' can't be applied: {error}") from error
            if _digest(change.old_UD) != entry["replaces"]:
                raise CheckpointError(
                    f"the overlay '{path}' was made on other rows of table '{change.table}' than this memory has; "
                    "apply it to the memory that was edited, before other edits"
                )
            changes.append(change)
    session.write_all(changes, name=", ".join(facts["edits"]))
    return session


def _digest(rows_UD: Tensor) -> str:
    """SHA-256 of rows as fp32."""
    return hashlib.sha256(rows_UD.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()
