"""What a step frees stays with the process, for the next step."""

import ctypes
import functools
import os
import threading
from collections.abc import Callable
from contextlib import ContextDecorator

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Numbers of mallopt(3)."""
_KEPT_NBYTES, _LARGE_NBYTES, _DEFAULT_MMAP_MAX = 2**31 - 1, 32 * 2**20, 65536


class keep_freed_memory(ContextDecorator):  # noqa: N801 - a context, and a decorator of what is called again and again
    """What is allocated within and freed is not given back to the system.

    glibc asks the system for each tensor of 32 MB or more, which gives it page by page and zeroed, and returns it when
    it is freed, in every step: that was 30% of a step of DLRM with batches of 32,768, and 20% of one of large tensor
    trains. Within, such tensors come from the heap, of which up to 2 GiB stay when they are free. Only what comes in
    each step belongs here: large things that come once in a while would leave holes.

    Nothing changes where the environment has settings of glibc's allocator, or where the C library is another.

    Example:
        >>> with keep_freed_memory():
        ...     total = float(torch.ones(10_000_000).sum())
    """

    _lock = threading.Lock()
    _depth = 0

    def __enter__(self) -> None:
        self._enter(1)

    def __exit__(self, *error: object) -> None:
        self._enter(-1)

    @classmethod
    def _enter(cls, change: int) -> None:
        set_option = _mallopt()
        if set_option is None:
            return
        with cls._lock:
            cls._depth += change
            if cls._depth == max(0, change):  # the outermost begins or ends
                set_option(_MMAP_MAX, 0 if cls._depth else _DEFAULT_MMAP_MAX)


@functools.cache
def _mallopt() -> Callable[[int, int], int] | None:
    """glibc's function, once what it shall do with the heap is said; None where it is not to be called."""
    names = [name for name in os.environ if name.startswith("MALLOC_")]
    if names or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    found: Callable[[int, int], int] | None = getattr(ctypes.CDLL(None), "mallopt", None)
    if found is not None:
        found(_TRIM_THRESHOLD, _KEPT_NBYTES)
        found(_MMAP_THRESHOLD, _LARGE_NBYTES)  # which else stays at 128 KB from here on
    return found
