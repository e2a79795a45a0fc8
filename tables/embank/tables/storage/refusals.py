"""What the operating system refuses, in words: full disks, permissions, disks that fail."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embank.tables.errors import ConfigError, EmbankError, WorkError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a full disk, a used-up quota and a limit on the size of files say."""

UNUSABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EISDIR, errno.ENOTDIR),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST, errno.EINVAL, errno.ENXIO),
)
"""What is said of a path that can't be used, whatever room there is."""

_ROOM = re.compile("make room", re.IGNORECASE)
_MENDS = {
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
    errno.EROFS: "mount its file system for writing",
    errno.ENOENT: "make the folder around it",
}

_RUST = re.compile(r"\(os error (\d+)\)")  # polars and safetensors give the system's refusal in words


@contextmanager
def writing(what: str, *, cure: str) -> Iterator[None]:
    """Says what could not be written, in place of the operating system's bare refusal.

    Args:
        what: the file or folder, for the message.
        cure: what to do about a full disk, a sentence; see `fitting`.

    Raises:
        WorkError: a full disk, a disk that fails.
        ConfigError: a path that can't be used: no permission, no folder.
    """
    try:
        yield
    except OSError as error:
        raise refused(error)(f"{what} can't be written: {cause_of(error)}. {fitting(cure, error)}") from error


def refused(error: BaseException) -> type[EmbankError]:
    """The class of what is said: a path that can't be used is bad input, anything else is work that failed."""
    known = _nearest(error)
    return ConfigError if known is not None and known.errno in UNUSABLE else WorkError


def fitting(cure: str, error: BaseException, *, folder: Path | None = None) -> str:
    """A cure that was written for a full disk, as it is for what the system has refused.

    Args:
        cure: says "make room" somewhere.
        error: what was raised.
        folder: where the work was done, see `cause_of`.

    Example:
        >>> fitting("Make room and resume", PermissionError(13, "Permission denied"))
        'Make it writable and resume'
    """
    known = _nearest(error) or (None if folder is None else _refusal_in(folder))
    if known is None or is_full(known):
        return cure
    mend = _MENDS.get(known.errno or 0, "mend that")
    return _ROOM.sub(lambda found: mend.capitalize() if found[0][0] == "M" else mend, cure)


def _nearest(error: BaseException) -> OSError | None:
    """The refusal behind an error that decides: of a full disk, or else the nearest one."""
    known = [refusal for refusal in _refusals(error) if refusal.errno is not None]
    return next((refusal for refusal in known if refusal.errno in FULL), known[0] if known else None)


def is_full(error: BaseException) -> bool:
    """Whether the disk, a quota or a limit on the size of files has led to an error."""
    return any(refusal.errno in FULL for refusal in _refusals(error))


def cause_of(error: BaseException, *, folder: Path | None = None) -> str:
    """The operating system's own words where there are any, else the last line of the message.

    Args:
        error: what was raised.
        folder: where the work was done. Libraries that lose the system's words (torch says "unexpected pos" on a full
            disk) are made up for by trying to write there.
    """
    for refusal in _refusals(error):
        if refusal.errno == errno.ENOSPC:
            return "no space left"
        if refusal.strerror:
            return refusal.strerror
    if folder is not None and (refused := _refusal_in(folder)) is not None:
        return cause_of(refused)
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _refusals(error: BaseException) -> Iterator[OSError]:
    """The operating system's refusals behind an error, the nearest first."""
    waiting: list[Any] = [error]
    seen: set[int] = set()
    while waiting:
        found = waiting.pop(0)
        if not isinstance(found, BaseException) or id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, shutil.Error):  # a list of (source, target, words)
            yield from (_numbered(str(words)) for _, _, words in found.args[0])
        elif (rust := _RUST.search(str(found))) is not None:
            yield OSError(int(rust[1]), os.strerror(int(rust[1])))
        elif isinstance(found, OSError):
            yield found
        failures = getattr(found, "failures", None)  # of torch's CheckpointException: by rank (error, its traceback)
        if isinstance(failures, dict):
            waiting += [pair[0] for pair in failures.values()]
        waiting += [found.__cause__, found.__context__]


def _numbered(words: str) -> OSError:
    """`[Errno 28] No space left on device: 'file'` as the error that it came from."""
    number = words.partition("[Errno ")[2].partition("]")[0]
    return OSError(int(number), os.strerror(int(number))) if number.isdecimal() else OSError(words)


def _refusal_in(folder: Path) -> OSError | None:
    """What the operating system says to another mebibyte in a folder; None if it takes it."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None
