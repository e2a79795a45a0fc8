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
        path: a file; an overlay that is there is replaced as a whole, another file refused.

    Raises:
        ConfigError: there is no edit, or another file is there.
        WorkError: it can't be written.
    """
    path, changes = Path(path), session.net_changes()
    if not changes:
        raise ConfigError("there is no edit to save as an overlay")
    refuse_other_files(path)
    tensors: dict[str, Tensor] = {}
    tables = []
    for number, change in enumerate(changes):
        tensors |= {f"{number}.rows": change.rows_U, f"{number}.values": change.new_UD}
        about = {"kind": change.kind, "table": change.table, "replaces": _digest(change.old_UD)}
        tables.append({**about, "writes": _digest_of_change(change.rows_U, change.new_UD)})
    facts = {
        "overlay_version": FORMAT_VERSION,
        "edits": [edit.name for edit in session.log],
        "tables": tables,
        "memory": session.memory.manifest(),
    }
    write_tensors(path, tensors, facts=facts, what="the overlay")


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
    cure = "Give a file that `embank lm edit --overlay` or save_overlay has written"
    with reading_tensors(Path(path), what="the overlay", cure=cure) as (facts, get):
        if facts.get("overlay_version") != FORMAT_VERSION:
            raise CheckpointError(
                f"'{path}' is no overlay of version {FORMAT_VERSION}, which this embank reads (it says "
                f"{facts.get('overlay_version')})"
            )
        memory.refuse_other(facts["memory"], what=f"the overlay '{path}'")
        for number, entry in enumerate(facts["tables"]):
            rows_U, values_UD = get(f"{number}.rows"), get(f"{number}.values")
            if entry.get("writes") not in (None, _digest_of_change(rows_U, values_UD)):  # older ones have no digest
                raise CheckpointError(
                    f"the overlay '{path}' is damaged: its rows of table '{entry['table']}' are not those that were "
                    "saved. Restore it, or make the edit again"
                )
            try:
                change = session.planned(entry["kind"], entry["table"], rows_U, values_UD)
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


def refuse_other_files(path: Path) -> None:
    """Refuses to replace what is no overlay; a file that is not there, and an overlay, are fine.

    Raises:
        ConfigError: names the file.
    """
    if not path.exists():
        return
    try:
        with reading_tensors(path, what="the overlay") as (facts, _):
            is_overlay = "overlay_version" in facts
    except CheckpointError:
        is_overlay = False
    if not is_overlay:
        raise ConfigError(f"'{path}' exists already and is no overlay; nothing was changed. Choose another place")


def _digest_of_change(rows_U: Tensor, values_UD: Tensor) -> str:
    """Of which rows become what."""
    return hashlib.sha256(f"{rows_U.tolist()} {_digest(values_UD)}".encode()).hexdigest()


def _digest(rows_UD: Tensor) -> str:
    """SHA-256 of rows as fp32."""
    return hashlib.sha256(rows_UD.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()
