"""Locks between processes: a file that the system unlocks when its process ends, however that ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embank.tables.errors import ConfigError, EmbankError


@contextmanager
def hold_lock(path: Path, *, held: str, error: type[EmbankError] = ConfigError) -> Iterator[None]:
    """Keeps a second process out for as long as the context lasts.

    Args:
        path: the lock's file; created, and left where it is.
        held: what to say when another process has it.
        error: the class to say it with.

    Raises:
        EmbankError: another process has it.
        OSError: the file can't be written.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have removed the file: then this lock would keep nobody out.
            is_ours = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except OSError:
            is_ours = False
        if not is_ours:
            raise error(held)
        yield


def is_locked(path: Path) -> bool:
    """Whether another process holds a lock (`hold_lock`)."""
    try:
        file = path.open()
    except OSError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
