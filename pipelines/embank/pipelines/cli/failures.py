"""What a command says about an exception: one message and an exit code, 2 for bad input and 1 for work that failed."""

from __future__ import annotations

import errno
import os

# Imported before anything can fail: without memory nothing can be.
from embank.pipelines.cli import show
from embank.tables.errors import EmbankError
from embank.tables.libraries import missing_library
from embank.tables.storage.refusals import cause_of, is_full
from embank.tables.storage.resources import address_space_limit, exhausted, out_of

_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_PATHS = {
    errno.ENOENT: "there is no such file or folder",
    errno.EACCES: "it may not be read or written (no permission)",
    errno.EPERM: "it may not be changed (not permitted)",
    errno.EROFS: "it is on a read-only file system",
    errno.EISDIR: "it is a folder where a file is needed",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "it is a link that leads back to itself",
    errno.ENXIO: "it is a device or a socket, not a file",
    errno.ESPIPE: "it is a pipe, and a file is needed that can be read twice",
    errno.EEXIST: "it exists already",
    errno.EINVAL: "the system can't use it as a file",
}


def report(error: BaseException) -> int:
    """Says what has failed on stderr; returns the exit code."""
    message, code = explain(error)
    try:
        show.error(message)
    except MemoryError:
        os.write(2, f"embank: {message}\n".encode())
    return code


def explain(error: BaseException) -> tuple[str, int]:
    """The message and the exit code."""
    if isinstance(error, EmbankError):
        return str(error), error.exit_code
    if isinstance(error, ModuleNotFoundError) and (cure := missing_library(error)) is not None:
        return cure, 1
    what = exhausted(error)
    if what is not None:
        return out_of(what), 1
    if isinstance(error, OSError) and _is_compilers(error.filename):
        return (
            f"'{_shown(error.filename)}', where torch keeps what it compiles: {cause_of(error)}. Point the variable "
            f"{_CACHE} to a folder that can be written",
            2,
        )
    if isinstance(error, OSError) and error.filename is not None and error.errno in _PATHS:
        return f"'{_shown(error.filename)}': {_PATHS[error.errno]}. Give another path.", 2
    if isinstance(error, OSError):
        where = f"'{_shown(error.filename)}': " if error.filename is not None else ""
        cure = "Free some space" if is_full(error) else "Mend it"
        return f"{where}{cause_of(error)}. {cure} and run the same command again", 1
    return _unexpected(error), 1


def _is_compilers(path: object) -> bool:
    """Whether a path is in the folder of torch's compiler, which importing parts of torch makes."""
    named, text = os.environ.get(_CACHE), str(path)
    return text.startswith(named) if named else "torchinductor_" in text


def _unexpected(error: BaseException) -> str:
    limit = address_space_limit()
    # Libraries that can't be loaded, or that swallow what the system said, fail in any way.
    hint = "" if limit is None else f"; the limit of {limit / 2**20:,.0f} MiB of address space (`ulimit -v`) may be why"
    return f"{type(error).__name__}: {error} (run with --debug for the traceback{hint})"


def _shown(path: object) -> str:
    text = path.decode(errors="replace") if isinstance(path, bytes) else str(path)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-80:]}"
