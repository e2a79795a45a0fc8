"""A process beside the command, where its address space is limited: some libraries end a process whose allocation
fails."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from types import FrameType

from embank.pipelines.cli import show
from embank.tables.storage.resources import address_space_limit, out_of

_ENDED = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL)
_PR_SET_PDEATHSIG = 1


def watch() -> None:
    """Returns at once without a limit (`ulimit -v`), and in a child process with one; the parent waits, and ends as the
    child does.

    Rust's libraries abort when they get no memory, so nobody in the process can say why. The parent does.
    """
    if address_space_limit() is None or sys.platform != "linux":
        return
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    _pass_on(child)
    _, status = os.waitpid(child, 0)
    os._exit(ended(status))


def ended(status: int) -> int:
    """The exit code for a child's wait status; says so if it ended for want of memory."""
    number = os.waitstatus_to_exitcode(status)
    if -number in _ENDED:
        show.error(f"{out_of('memory')} (A library ended the process: {signal.Signals(-number).name}.)")
        return 1
    return number if number >= 0 else 128 - number


def _pass_on(child: int) -> None:
    def forward(number: int, frame: FrameType | None) -> None:
        os.kill(child, number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, forward)
    # A terminal sends Ctrl-C to both.
    signal.signal(signal.SIGINT, signal.SIG_IGN if sys.stdin.isatty() else forward)
