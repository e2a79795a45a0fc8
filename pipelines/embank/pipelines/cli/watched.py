"""A process beside the command, where its address space is limited: some libraries end a process whose allocation
fails."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from embank.pipelines.cli import show
from embank.tables.storage.resources import address_space_limit, out_of

_ENDED = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL)
_PR_SET_PDEATHSIG = 1


def watched(command: Callable[[], None]) -> None:
    """Runs a command; where the address space is limited (`ulimit -v`) in a child process, and ends as the child does.

    Without memory, Rust's libraries abort, C's print and go on, and Python can't even print a traceback: nobody in the
    process may be able to say why it ends. The parent, which holds little, can.
    """
    if address_space_limit() is None or sys.platform != "linux":
        command()
        return
    said, says = os.pipe()
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.close(said)
        _with_last_word(command, says)
        return
    os.close(says)
    _pass_on(child)
    with os.fdopen(said, "rb") as pipe:
        last_word = pipe.read()
    _, status = os.waitpid(child, 0)
    os._exit(ended(status, has_said=bool(last_word)))


def ended(status: int, *, has_said: bool = True) -> int:
    """The exit code for a child's wait status; says so if it ended for want of memory.

    Args:
        status: of `os.waitpid`.
        has_said: whether the child came to an end of its own, its message included.
    """
    number = os.waitstatus_to_exitcode(status)
    if -number in _ENDED:
        show.error(f"{out_of('memory')} (A library ended the process: {signal.Signals(-number).name}.)")
        return 1
    if number > 0 and not has_said:
        show.error(f"{out_of('memory')} (Nothing was left to say what failed.)")
    return number if number >= 0 else 128 - number


def _with_last_word(command: Callable[[], None], says: int) -> None:
    """A command that leaves by `sys.exit`, or returns, has said what there is to say; any other way out has not."""
    try:
        command()
    except SystemExit:
        os.write(says, b".")
        raise
    os.write(says, b".")


def _pass_on(child: int) -> None:
    def forward(number: int, frame: FrameType | None) -> None:
        os.kill(child, number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, forward)
    # A terminal sends Ctrl-C to both.
    signal.signal(signal.SIGINT, signal.SIG_IGN if sys.stdin.isatty() else forward)
