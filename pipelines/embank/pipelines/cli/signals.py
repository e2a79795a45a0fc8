"""Ctrl-C and SIGTERM as exceptions, so that what was begun is cleaned up on the way out."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_RETRY_S = 0.02
_IMPORTS = "<frozen importlib."


class Stopped(KeyboardInterrupt):
    """SIGTERM, as Ctrl-C is."""


@contextlib.contextmanager
def signals_unwind() -> Iterator[None]:
    """Has SIGINT and SIGTERM raise an exception for as long as the context lasts; off the main thread it does nothing.

    While modules are being imported, which is the first seconds of a command, the exception waits until they are there,
    or until the
    same signal comes again: libraries swallow it there, or go on with half of themselves, and crash.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: set[int] = set()

    def handle(number: int, frame: FrameType | None) -> None:
        if number not in waiting and _is_importing(frame):
            waiting.add(number)
            signal.setitimer(signal.ITIMER_REAL, _RETRY_S)
            return
        waiting.discard(number)
        raise Stopped if number == signal.SIGTERM else KeyboardInterrupt

    def again(_number: int, frame: FrameType | None) -> None:
        if _is_importing(frame):
            signal.setitimer(signal.ITIMER_REAL, _RETRY_S)
            return
        for number in sorted(waiting):
            signal.raise_signal(number)  # to whoever handles it by now: a run saves and stops

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    signal.signal(signal.SIGALRM, again)
    signal.signal(signal.SIGTERM, handle)
    if before[signal.SIGINT] is signal.default_int_handler:  # a shell's background job ignores it
        signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(_IMPORTS):
            return True
        frame = frame.f_back
    return False
