"""Memory and threads that the machine, or a limit, does not give: said as what it is, not blamed on data or files."""

from __future__ import annotations

import errno
import re
import resource
from collections.abc import Iterator

from embank.tables.errors import WorkError

_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|not enough memory|out of memory|failed to map segment|memory "
    r"allocation"
    r"|bad_alloc|malloc of size|realloc of size",
    re.IGNORECASE,
)
_THREADS = re.compile(
    r"can't start new thread|thread pool|failed to spawn thread|resource temporarily unavailable", re.IGNORECASE
)


def exhausted(error: BaseException) -> str | None:
    """ "memory" or "threads" if an error, or what led to it, is about having no more of them."""
    for cause in _causes(error):
        number = cause.errno if isinstance(cause, OSError) else None
        if isinstance(cause, MemoryError) or number == errno.ENOMEM:
            return "memory"
        if number == errno.EAGAIN:
            return "threads"
        if isinstance(cause, (RuntimeError, ImportError)) or type(cause).__name__ in (
            "PanicException",
            "SafetensorError",
        ):
            text = str(cause)
            if _THREADS.search(text):
                return "threads"
            if _MEMORY.search(text):
                return "memory"
    return None


def refuse_exhausted(error: BaseException, *, doing: str) -> None:
    """Lets other errors pass.

    Args:
        doing: what was done when it happened, "reading 'train/part-00000.parquet'".

    Raises:
        WorkError: memory or threads have run out.
    """
    what = exhausted(error)
    if what is not None:
        raise WorkError(f"{out_of(what)} The process was {doing}.") from error


def out_of(what: str) -> str:
    """Sentences about running out of memory or threads, and what to do."""
    limit = address_space_limit()
    if limit is not None:
        return (
            f"out of {what}: this process may use {limit / 2**20:,.0f} MiB of address space (`ulimit -v`), which "
            "threads and mapped files take too. Raise the limit."
        )
    if what == "threads":
        return (
            "out of threads: this process may start no more (`ulimit -u`, or its container's limit). Raise the limit."
        )
    return (
        "out of memory: the machine, or this process's container, has no more. Use a larger one, or smaller batches "
        "and tables."
    )


def address_space_limit() -> int | None:
    """Bytes of address space that this process may use; None without a limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
