"""Ctrl-C and SIGTERM ask a run to stop at the next step; a second Ctrl-C stops it at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from embank.tables.errors import WorkError


class InterruptedRunError(WorkError):
    """A signal stopped the run; it was saved and can be resumed. All processes of a run raise it together.

    Args:
        message: for users.
        is_first: this process says it.
    """

    def __init__(self, message: str, *, is_first: bool = True) -> None:
        super().__init__(message)
        self.is_told = not is_first


class StopRequest:
    """Set by a signal, read between steps."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_on_signals(tell: Callable[[str], object] | None = None) -> Iterator[StopRequest]:
    """Turns SIGINT and SIGTERM into a request for as long as the context lasts. Off the main thread it does nothing.

    Args:
        tell: takes a line as soon as the first signal comes. A step may be long: its network may have to be compiled.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        is_first, request.signal = not request, signal.Signals(number).name
        if tell is not None and is_first:
            with suppress(RuntimeError):  # Python's, where the signal comes in the middle of a line to the same stream
                tell(
                    f"{request.signal}: stopping at the end of this step, which may wait for a compiler; Ctrl-C again "
                    "stops at once, without saving it"
                )

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
