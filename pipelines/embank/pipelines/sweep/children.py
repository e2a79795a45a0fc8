"""Training runs as child processes: so many at a time, stopped together, gone when this process is gone.

They are forked from a server that has imported everything and done nothing, which saves each of them the seconds of importing torch.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from embank.pipelines.training.interrupt import StopRequest

POLL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1
_PRELOADED = ["embank.pipelines.cli.main", "embank.pipelines.training.trainer"]


@dataclass(frozen=True, kw_only=True)
class Child:
    """A command, and what it leaves behind.

    Args:
        name: of the run.
        arguments: of `embank`.
        log: gets its output.
    """

    name: str
    arguments: Sequence[str]
    log: Path


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


def run_children(
    waiting: Callable[[], Sequence[str]],
    child_of: Callable[[str], Child],
    ended: Callable[[Ended], None],
    *,
    num_jobs: int,
    stop: StopRequest,
) -> None:
    """Runs children until none is waiting, or until a signal; then asks those that run to save and stop, and waits for them.

    Args:
        waiting: names of what has not ended yet, in order; asked again after each end, since a result may decide what comes next.
        child_of: how one of them is started.
        ended: is told of each end.
        num_jobs: children at a time; each gets its share of the cores.
        stop: a request to stop.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    num_threads = max(1, num_cores() // num_jobs)
    running: dict[str, tuple[Child, ForkServerProcess, float]] = {}
    is_stopping = False
    todo = list(waiting())
    while running or (todo and not stop):
        while todo and not stop and len(running) < num_jobs:
            child = child_of(todo.pop(0))
            child.log.parent.mkdir(parents=True, exist_ok=True)
            process = context.Process(target=_run, args=(child.arguments, child.log, num_threads), daemon=True)
            process.start()
            running[child.name] = (child, process, time.monotonic())
        if stop and not is_stopping:
            is_stopping = True
            for _, process, _ in running.values():
                process.terminate()
        over = [name for name, (_, process, _) in running.items() if process.exitcode is not None]
        for name in over:
            child, process, begun = running.pop(name)
            assert process.exitcode is not None
            message = last_words(child.log, code=process.exitcode) if process.exitcode else None
            ended(Ended(name=name, message=message, seconds=time.monotonic() - begun))
        if over:
            todo = [name for name in waiting() if name not in running]
        else:
            time.sleep(POLL_SECONDS)


def _run(arguments: Sequence[str], log: Path, num_threads: int) -> None:
    """In the child: `embank` with these arguments, its output in the log.

    On Linux a child is killed when the server is, which ends with the sweep: otherwise it would go on unseen, and keep its run
    from being resumed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with log.open("ab") as file, open(os.devnull, "rb") as nothing:
        for stream, target in ((nothing, 0), (file, 1), (file, 2)):
            os.dup2(stream.fileno(), target)
    import torch

    from embank.pipelines.cli.main import main

    torch.set_num_threads(num_threads)
    sys.argv = ["embank", *arguments]
    main()


def last_words(log: Path, *, code: int) -> str:
    """What a failed child said: its error message, else its last line, else its signal or exit code."""
    lines = (
        [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.is_file() else []
    )
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}{', perhaps for want of memory' if name == 'SIGKILL' else ''}"
    messages = [line.removeprefix("embank: ") for line in lines if line.startswith("embank: ")]
    return (messages or lines or [f"exit code {code}"])[-1]
