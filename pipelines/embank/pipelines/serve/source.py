"""What `embank serve` is given: a bundle, a run, or a folder that says which of its bundles is the current one."""

from pathlib import Path

from embank.pipelines.runs.model import bundle_of
from embank.tables.errors import CheckpointError
from embank.tables.serving.bundle import is_bundle
from embank.tables.storage.refusals import cause_of

POINTER = "current"
Stamp = tuple[int, int] | None


def has_pointer(path: str | Path) -> bool:
    """Whether a folder names its current bundle."""
    pointer = Path(path) / POINTER
    return not is_bundle(path) and (pointer.is_file() or pointer.is_symlink())


def stamp_of(folder: Path) -> Stamp:
    """Changes when a folder's pointer does; None where it is gone."""
    try:
        status = (folder / POINTER).lstat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def current_bundle(path: str | Path) -> Path:
    """The bundle that is meant, an absolute path without links.

    Args:
        path: a bundle; a run, which has one in `bundle`; or a folder with `current`, a link to the bundle beside it or
            a file with its name.

    Raises:
        CheckpointError: none of them.
    """
    return _pointed(Path(path)) if has_pointer(path) else bundle_of(path).resolve()


def _pointed(folder: Path) -> Path:
    pointer = folder / POINTER
    try:
        named = pointer.resolve() if pointer.is_symlink() else folder / pointer.read_text(encoding="utf-8").strip()
        if is_bundle(named):
            return named.resolve()
    except (OSError, ValueError, RuntimeError) as error:
        cause = cause_of(error) if isinstance(error, OSError) else str(error)
        raise CheckpointError(f"'{pointer}' can't be read: {cause}. Write the name of a bundle into it") from error
    raise CheckpointError(f"'{pointer}' names '{named}', which holds no bundle; write the name of one into it")
