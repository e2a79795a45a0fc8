"""Training runs as child processes: so many at a time, stopped together, gone when this process is gone.

They are forked from a server that has imported everything and done nothing, which saves each of them the seconds of
importing torch.
"""

import contextlib
import ctypes
import io
import math
import multiprocessing
import os
import re
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess
from pathlib import Path

from embank.pipelines.train.interrupt import StopRequest
from embank.tables.errors import EmbankError

POLL_SECONDS = 0.05
BUSY_SECONDS = 0.5
"""Between looks at runs that another process works on."""

_PR_SET_PDEATHSIG = 1
_PRELOADED = [
    "embank.pipelines.cli.app",
    "embank.pipelines.train.trainer",
    "embank.pipelines.runs.plots",
    "embank.tables.rows.fbgemm_memory",
    "matplotlib.backends.backend_agg",
    "torch.distributed.checkpoint",
]


_SAID, _WARNING = "embank: ", "embank: warning: "
_OTHERS = re.compile(rf"{_SAID}|Traceback|Exception ignored|\S+:\d+: \w+Warning: ")
"""How lines begin that are none of the message before them."""


class ChildLog:
    """The file that gets what a child prints. It goes on where a run is begun again. Beside it lies the error message
    of the last start, if it had one.

    Args:
        path: of the file; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._message = path, path.with_suffix(".msg")
        self._message.unlink(missing_ok=True)  # of an earlier start
        self._before = path.stat().st_size if path.is_file() else 0  # what earlier starts have said

    def take_output(self) -> None:
        """In the child: what this process prints goes into the file, and its input is empty."""
        with self.path.open("ab") as file, open(os.devnull, "rb") as nothing:
            file.write(f"{'' if file.tell() == 0 else chr(10)}== begun {datetime.now():%Y-%m-%d %H:%M:%S}\n".encode())
            file.flush()
            for stream, target in ((nothing, 0), (file, 1), (file, 2)):
                os.dup2(stream.fileno(), target)
        sys.stderr = _Stderr(self._message)

    def last_words(self, *, code: int) -> str:
        """What a failed child said since this log was made: its error message, else its last line, else its signal or
        exit code."""
        if code < 0:
            name = signal.Signals(-code).name
            return f"killed by {name}{', perhaps for want of memory' if name == 'SIGKILL' else ''}"
        return _in_a_line(_text(self._message)) or self._last_printed() or f"exit code {code}"

    def _last_printed(self) -> str:
        """What the file itself tells of an error."""
        said = _text(self.path, begin=self._before)
        lines = [line.strip() for line in said.splitlines() if not line.startswith("== begun ")]
        told = [n for n, line in enumerate(lines) if line.startswith(_SAID) and not line.startswith(_WARNING)]
        if told:  # perhaps in several lines
            more = takewhile(lambda line: line and not _OTHERS.match(line), lines[told[-1] + 1 :])
            return _in_a_line("\n".join([lines[told[-1]].removeprefix(_SAID), *more]))
        return ([line for line in lines if line] or [""])[-1]


class _Stderr(io.TextIOWrapper):
    """The stderr of a child. Error messages are printed at once, each by one write: the last one is left in a file of
    its own, since nothing in the log says where it ends.

    Args:
        message: that file.
    """

    def __init__(self, message: Path) -> None:
        stream = io.BufferedWriter(io.FileIO(2, "wb", closefd=False))
        super().__init__(stream, encoding=sys.stderr.encoding, errors="backslashreplace", line_buffering=True)
        self._message = message

    def write(self, text: str, /) -> int:
        if text.startswith(_SAID) and not text.startswith(_WARNING):
            with contextlib.suppress(OSError):  # a full disk: the log may still have it
                self._message.write_text(text.removeprefix(_SAID), encoding="utf-8", errors="backslashreplace")
        return super().write(text)


def _text(path: Path, *, begin: int = 0) -> str:
    """What a file holds from some byte on; nothing where there is none."""
    return path.read_bytes()[begin:].decode(errors="replace") if path.is_file() else ""


def _in_a_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


@dataclass(frozen=True, kw_only=True)
class Child:
    """A command, or other work, and what it leaves behind.

    Args:
        name: of the run.
        arguments: of `embank`.
        log: gets its output.
        work: is called in place of a command; a function of a module, perhaps with arguments (`functools.partial`).
    """

    name: str
    log: Path
    arguments: Sequence[str] = ()
    work: Callable[[], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A child that has ended.

    Args:
        name: of the run.
        message: its last words, None if all went well.
        seconds: it took.
    """

    name: str
    message: str | None
    seconds: float


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def forkserver() -> ForkServerContext:
    """Starts processes that have imported all that a training needs, its pictures included."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def run_children(
    waiting: Callable[[], Sequence[str]],
    child_of: Callable[[str], Child],
    ended: Callable[[Ended], None],
    busy: Callable[[Sequence[str]], Collection[str]],
    *,
    num_jobs: int,
    stop: StopRequest,
) -> None:
    """Runs children until none is waiting, or until a signal; then asks those that run to save and stop, and waits for
    them.

    Args:
        waiting: names of what has not ended yet, in order; asked again after each end, since a result may decide what
            comes next.
        child_of: how one of them is started.
        ended: is told of each end.
        busy: those of some names that another process works on. They are not started before it is done with them.
        num_jobs: children at a time; each gets its share of the cores.
        stop: a request to stop.
    """
    running = _Running(num_threads=max(1, num_cores() // num_jobs))
    while not stop or running:
        names = [name for name in waiting() if name not in running]
        held = busy(names)
        for name in [name for name in names if name not in held][: 0 if stop else num_jobs - len(running)]:
            running.start(child_of(name))
        if not running and not held:
            return
        for end in running.wait(stop, seconds=BUSY_SECONDS if held else math.inf):
            ended(end)


class _Running:
    """Children that run."""

    def __init__(self, *, num_threads: int) -> None:
        self.num_threads = num_threads
        self.context = forkserver()
        self.children: dict[str, tuple[ChildLog, ForkServerProcess, float]] = {}
        self.is_stopping = False

    def __len__(self) -> int:
        return len(self.children)

    def __contains__(self, name: str) -> bool:
        return name in self.children

    def start(self, child: Child) -> None:
        log = ChildLog(child.log)
        target, what = (run_command, child.arguments) if child.work is None else (run_work, child.work)
        process = self.context.Process(target=target, args=(what, log, self.num_threads), daemon=True)
        start(process)
        self.children[child.name] = (log, process, time.monotonic())

    def wait(self, stop: StopRequest, *, seconds: float) -> list[Ended]:
        """Waits for the end of a child, at most so long. Those that run are asked to stop as soon as that is
        requested."""
        limit = time.monotonic() + seconds
        while True:
            if stop and not self.is_stopping:
                self.is_stopping = True
                for _, process, _ in self.children.values():
                    process.terminate()
            over = [name for name, (_, process, _) in self.children.items() if process.exitcode is not None]
            if over or time.monotonic() > limit or (stop and not self.children):
                return [self._ended(name) for name in over]
            time.sleep(POLL_SECONDS)

    def _ended(self, name: str) -> Ended:
        log, process, begun = self.children.pop(name)
        assert process.exitcode is not None
        message = log.last_words(code=process.exitcode) if process.exitcode else None
        return Ended(name=name, message=message, seconds=time.monotonic() - begun)


def start(process: BaseProcess) -> None:
    """Starts a process that does not run this one's script again.

    Processes that are forked from a server import the script that started them, as a module of another name. A script
    or a notebook without `if __name__ == "__main__"` would be run once more in each.
    """
    script = sys.modules["__main__"]
    names: tuple[str, ...] = ("__file__", "__spec__")
    hidden = {name: vars(script).pop(name) for name in names if name in vars(script)}
    script.__spec__ = None
    try:
        process.start()
    finally:
        vars(script).update(hidden)


def run_command(arguments: Sequence[str], log: ChildLog, num_threads: int) -> None:
    """In the child: `embank` with these arguments, its output in the log."""
    _begin(log, num_threads)
    sys.argv = ["embank", *arguments]
    runpy.run_module("embank", run_name="__main__")  # `python -m embank`, without a new interpreter and its imports


def run_work(work: Callable[[], None], log: ChildLog, num_threads: int) -> None:
    """In the child: a function, its output and its error in the log."""
    _begin(log, num_threads)
    try:
        work()
    except EmbankError as error:
        sys.exit(f"embank: {error}")


def _begin(log: ChildLog, num_threads: int) -> None:
    """Turns a new process into a child of the sweep."""
    end_with_parent()
    log.take_output()
    import torch

    torch.set_num_threads(num_threads)


def end_with_parent() -> None:
    """Kills this child when the sweep is gone: otherwise it would go on unseen, and keep its run from being resumed.

    A thread waits for the sweep's end of a pipe, which the system closes whatever ends the sweep, also before the
    thread has begun.
    The server alone is no sign of it: children hold its pipe as well, so that it lives as long as one of them. Where
    the server is killed, on Linux its children are too, since the sweep takes them for ended then.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    sweep = multiprocessing.parent_process()
    assert sweep is not None

    def wait() -> None:
        sweep.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="ends with the sweep", daemon=True).start()
