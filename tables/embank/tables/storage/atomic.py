"""Files and folders that are there whole or not at all: written beside their place, synced, and renamed into it.

A crash at any moment leaves what was there before, or what was to be there, and perhaps a temporary beside it: hidden,
and with `.tmp` in its name.
"""

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embank.tables.errors import WorkError
from embank.tables.storage.refusals import cause_of, fitting, refused

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


def temporary_file(path: Path) -> Path:
    """Where a file is written that one process at a time replaces; what a crash leaves of it is overwritten."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file that takes a file's place, durably, when the block ends well, and vanishes when it does not.

    Args:
        path: the file, which may be there or not.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with replacing(folder / "note.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> [entry.name for entry in folder.iterdir()]
        ['note.txt']
    """
    temporary = temporary_file(path)
    try:
        yield temporary
        sync_entry(temporary)
        temporary.replace(path)
        sync_name(path)
    finally:
        with contextlib.suppress(OSError):  # what has gone wrong before is what counts
            temporary.unlink(missing_ok=True)


def replace_text(path: Path, text: str, *, cure: str) -> None:
    """Replaces a file's content as a whole, durably.

    Args:
        path: the file.
        text: its new content.
        cure: what to do about a full disk, the end of a sentence; see `fitting`.

    Raises:
        WorkError, ConfigError: it can't be written, see `refused`; what was there stays.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise refused(error)(
            f"'{path}' can't be written: {cause_of(error)}. What it held is untouched; {fitting(cure, error)}"
        ) from error


def temporary_beside(path: Path) -> Path:
    """Where a file or folder is written before it gets its name: hidden, and another one at each call, so that no other
    writer of the same path, thread, process or container, has it."""
    return path.with_name(f".{path.name}.tmp-{secrets.token_hex(6)}")


@contextmanager
def temporary_folder(prefix: str, *, parent: Path, mode: int = 0o777) -> Iterator[Path]:
    """A new folder that vanishes when the block ends. Its name stands before it is made, so that a signal right after
    the making finds what there is to remove.

    Args:
        prefix: of its name.
        parent: the folder that it is made in.
        mode: its permissions, from which the process's mask is taken.

    Example:
        >>> import tempfile
        >>> with temporary_folder("rows-", parent=Path(tempfile.gettempdir())) as folder:
        ...     folder.is_dir()
        True
        >>> folder.exists()
        False
    """
    folder = parent / f"{prefix}{secrets.token_hex(6)}"
    try:
        folder.mkdir(mode=mode)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(temporary: Path, folder: Path) -> None:
    """Gives a complete folder its name, durably.

    Raises:
        OSError: it has not got its name.
        WorkError: it has, but a crash of the machine may take it away again.
    """
    sync_folder(temporary)  # first: a name that outlives a crash must not lead to files that did not
    temporary.rename(folder)
    sync_name(folder)


def sync_name(path: Path) -> None:
    """Makes a name durable that a complete file or folder has got: it is written with the folder around it.

    Raises:
        WorkError: a crash of the machine may take it away again.
    """
    try:
        sync_entry(path.parent)
    except OSError as error:
        raise WorkError(
            f"'{path}' is written as a whole, but its name could not be made durable: {cause_of(error)}. It can be "
            "read now; look whether it is still there if the machine goes down before long"
        ) from error


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


def publish_file(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Gives a complete file its name, durably.

    Args:
        temporary: beside `path`.
        path: its name.
        overwrite: replace a file of that name.

    Raises:
        FileExistsError: there is one, and it is not to be replaced.
        WorkError: it has its name, but a crash of the machine may take it away again.
    """
    sync_entry(temporary)
    if overwrite:
        os.replace(temporary, path)
    else:
        try:
            os.link(temporary, path)  # fails where something is, in one step; a rename would replace it
            temporary.unlink()
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            os.replace(temporary, path)  # a file system without links
    sync_name(path)


def exchange_folder(folder: Path, place: Path) -> None:
    """Puts a complete folder in the place of another one, which is removed.

    The two change places in one step where the file system can do that (those of Linux can). Where it can't, a kill
    between two renames leaves nothing at `place`: what was there is then in `PLACE.old-*` beside it.
    """
    if _exchange(folder, place):
        sync_name(place)
        shutil.rmtree(folder, ignore_errors=True)
        return
    old = place.with_name(f"{place.name}.old-{secrets.token_hex(6)}")
    try:
        old.mkdir()
        os.rename(place, old / place.name)
        os.rename(folder, place)
        sync_name(place)
    finally:  # a signal may come after any of them; what was at `place` is removed only if something is there again
        if not place.exists() and (old / place.name).exists():
            os.rename(old / place.name, place)
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Lets two entries change names in one step; False where that can't be done."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = (os.fsencode(first), os.fsencode(second))
    return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def remove_folder(folder: Path) -> None:
    """Removes a folder; a crash does not leave half of it under its name."""
    hidden = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)  # what a crash has left of an earlier one
    folder.rename(hidden)
    shutil.rmtree(hidden)
