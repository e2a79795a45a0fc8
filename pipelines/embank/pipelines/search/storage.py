"""Where a study is kept: a journal file, or a database by its URL; and what is said when it can't be written."""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._storage import JournalOperation
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError

from embank.tables import CheckpointError, ConfigError, WorkError

_BUSY_SECONDS = 60
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOCKED = (errno.EACCES, errno.EPERM, errno.EROFS)
_SYNCED = (JournalOperation.CREATE_STUDY, JournalOperation.CREATE_TRIAL, JournalOperation.SET_TRIAL_STATE_VALUES)
"""After these nothing may be lost."""


def is_url(storage: str) -> bool:
    """Whether a storage is a database's URL, and not a path."""
    return "://" in storage


def open_storage(storage: str | Path) -> BaseStorage:
    """The storage of a path or a URL; made if need be.

    Args:
        storage: a file, which becomes a journal, or a URL such as `sqlite:///study.db` or `mysql://user@host/name`.

    Raises:
        ConfigError: it can't be read or written, or is something else.
    """
    text = str(storage)
    with storage_errors(text):
        if is_url(text):
            arguments: dict[str, Any] = {"pool_pre_ping": True}
            if text.startswith("sqlite"):
                arguments["connect_args"] = {"timeout": _BUSY_SECONDS}
            return RDBStorage(text, engine_kwargs=arguments)
        path = Path(text)
        if path.is_dir():
            raise ConfigError(f"'{path}' is a folder; give a file for the study, or a URL such as sqlite:///study.db")
        path.parent.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(path)
        return JournalStorage(Journal(path))


class Journal(JournalFileBackend):
    """Optuna's journal file, written faster.

    Optuna locks by a link and syncs after every parameter of a trial, which takes longer than a trial on a supernet.
    Here a lock of the system, which ends with its process, keeps writers apart, and only what must not be lost is
    synced: that a trial was made, and what became of it. The file is the same, so dashboards and Optuna itself read it.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("ab"):
            pass
        super().__init__(str(path))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Adds operations; a line that a killed writer has cut short is removed first."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self.path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = _end_of_lines(file)
            file.truncate(end)
            file.seek(end)
            try:
                file.write(text)
                file.flush()
            except OSError:
                with contextlib.suppress(OSError):  # half of it may have been written
                    file.truncate(end)
                raise
            if any(log["op_code"] in _SYNCED for log in logs):
                os.fsync(file.fileno())


def _end_of_lines(file: Any) -> int:
    """Where the last whole line of a file ends."""
    end: int = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 4096)
        file.seek(start)
        found: int = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _refuse_foreign(path: Path) -> None:
    """Raises ConfigError if a file is no journal of Optuna's."""
    if not path.exists():
        return
    with path.open("rb") as file:
        first = file.readline()
    try:
        is_journal = not first.endswith(b"\n") or "op_code" in json.loads(first)
    except (ValueError, TypeError):
        is_journal = False
    if not is_journal:
        raise ConfigError(f"'{path}' is not the journal of a study; give another --storage (nothing was changed)")


@contextmanager
def storage_errors(storage: str | Path) -> Iterator[None]:
    """Turns what goes wrong with a study's storage into one message.

    Raises:
        WorkError: the disk is full, or the database fails.
        ConfigError: it may not be written, or it can't be reached.
        CheckpointError: it is damaged.
    """
    told = f"the study's storage '{_shown(str(storage))}'"
    try:
        yield
    except AssertionError as error:  # Optuna's, over what the storage has raised at the end of a trial
        if error.__context__ is None:
            raise
        with storage_errors(storage):
            raise error.__context__ from None
    except OSError as error:
        if error.errno in _FULL:
            raise WorkError(f"{told} can't be written: the disk is full. {_ROOM}") from error
        if error.errno in _LOCKED:
            raise ConfigError(f"{told} can't be written: {os.strerror(error.errno or 0)}. {_PLACE}") from error
        raise
    except (StorageInternalError, OperationalError, DatabaseError) as error:
        raise _of_database(told, error) from error
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        if isinstance(error, ImportError) and not is_url(str(storage)):
            raise
        raise ConfigError(
            f"{told} can't be opened: {_first_line(error)}. Give a path for a journal file, or a URL whose database "
            "has a driver here, such as sqlite:///study.db"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{told} is damaged: a line of it is not JSON. Restore it, or begin another one"
        ) from error


_ROOM = "Make room and go on with --resume"
_PLACE = "Make it writable, or give another --storage"


def _of_database(told: str, error: Exception) -> Exception:
    cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
    text = _first_line(getattr(cause, "orig", None) or cause)
    low = text.lower()
    if "full" in low:
        return WorkError(f"{told} can't be written: the disk is full. {_ROOM}")
    if "readonly" in low or "read-only" in low or "unable to open" in low:
        return ConfigError(f"{told} can't be written: {text}. {_PLACE}")
    if "malformed" in low or "not a database" in low:
        return CheckpointError(f"{told} is damaged: {text}. Restore it, or begin another one")
    return WorkError(f"{told} fails: {text}. Mend it and go on with --resume")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _shown(storage: str) -> str:
    """Without a password."""
    scheme, separator, rest = storage.partition("://")
    user, at, place = rest.rpartition("@")
    return f"{scheme}{separator}{user.partition(':')[0]}{at}{place}" if separator else storage
