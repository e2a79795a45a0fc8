"""The disk tier's folders of a run: which files in them are its own, and what becomes of those that killed runs leave.

rows/*.f32                   of one process
rows/table_wise-1/*.f32      of rank 1 of several, see `embank.tables.sharding.exchange`
rows/engram/...              of one kind of a language model's memory, the same again
rows/trial/rows/...          of a trial, the same again
"""

import contextlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from embank.tables.rows.disk.mapped import is_row_file, remove_unused

ROWS = "rows"
TRIAL = "trial"
"""A training within a run's working folder, which tries a rate of rows; all that it has is working files."""
KINDS = ("engram", "stem")
"""Of a language model's memory."""
_RANK = re.compile(r"^(table|row|column)_wise-\d+$")
_OF_STORE = re.compile(r"\.(weights|momentum1|sum|exp_avg|exp_avg_sq)\.\d+\.\w+$")
"""What files of a row store are called after: what they hold of its tables."""


def holds_only_rows(folder: Path) -> bool:
    """Whether a folder holds nothing but working files of the disk tier, in one of the places above."""
    return all(
        is_row_file(path) or _is_trial(path) or (_is_part(path) and holds_only_rows(path)) for path in folder.iterdir()
    )


def remove_rows(folder: Path) -> None:
    """Removes the working files in a run's own folder, and each folder that this leaves empty. Stores that map them
    keep their rows."""
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        if _is_trial(path):
            shutil.rmtree(path, ignore_errors=True)
        elif _is_part(path):
            remove_rows(path)
        elif is_row_file(path):
            path.unlink(missing_ok=True)
    _remove_empty(folder)


def remove_unused_rows(folder: Path, *, kinds: Sequence[str]) -> None:
    """Removes what killed processes have left in a folder that runs may share: files of row stores that no process
    holds, and folders of ranks without any. The folder itself is the user's, and so is all else in it.

    Args:
        folder: where runs have their rows.
        kinds: of a language model's memory, each with a folder of its own; none of other models.
    """
    own = [folder / kind for kind in kinds if not (folder / kind).is_symlink()]
    for place in (folder, *own):
        for path in list(place.iterdir()) if place.is_dir() else ():
            if _RANK.match(path.name) and path.is_dir() and not path.is_symlink():
                for file in filter(is_row_file, list(path.iterdir())):
                    remove_unused(file)
                _remove_empty(path)
            elif _is_of_store(path):
                remove_unused(path)


def _is_of_store(path: Path) -> bool:
    """Whether a file is called as stores call theirs: more than `is_row_file` asks, for folders that are not ours."""
    return _OF_STORE.search(path.name) is not None and is_row_file(path) and not path.is_symlink()


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # somebody else's files are in it
        folder.rmdir()


def _is_part(folder: Path) -> bool:
    is_part = _RANK.match(folder.name) is not None or folder.name in KINDS
    return is_part and folder.is_dir() and not folder.is_symlink()


def _is_trial(folder: Path) -> bool:
    """Whether a folder is what a trial makes."""
    if folder.name != TRIAL or not folder.is_dir():
        return False
    return all(path.name == ROWS and path.is_dir() and holds_only_rows(path) for path in folder.iterdir())
