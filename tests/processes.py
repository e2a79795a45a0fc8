"""Real processes without their imports: forked from a server that has imported everything once for a whole pytest
process, where a new interpreter takes 5 s of CPU for it. They have their own pid, signals, exit code and memory.

A test about what an interpreter loads, or how it ends, starts a new one instead.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

_PRELOADED = (
    "embank.pipelines.cli.app",
    "embank.pipelines.train.trainer",
    "embank.pipelines.data.prepare.prepare",
    "embank.compression.methods.full",
    "torch.distributed.checkpoint",
    "tests.distributed.jobs",
)


def forkserver() -> ForkServerContext:
    """The context to start them in."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    return context


def start(
    work: Callable[..., Any],
    *arguments: Any,
    log: Path,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> ForkServerProcess:
    """Starts a function that can be pickled.

    Args:
        work: the function.
        arguments: of it.
        log: its output is added here, its errors to a file beside it with .err behind the name.
        cwd: its folder; that of this process by default.
        environment: variables beside those of this process.
    """
    here = str(Path.cwd() if cwd is None else cwd)
    variables = {**os.environ, **(environment or {})}
    process = forkserver().Process(target=_work, args=(work, arguments, str(log), here, variables))
    process.start()
    return process


def run(
    work: Callable[..., Any], *arguments: Any, cwd: Path | None = None, timeout: float = 300
) -> CompletedProcess[str]:
    """The same to its end.

    Raises:
        TimeoutError: it does not end.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "out")
        process = start(work, *arguments, log=log, cwd=cwd)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{arguments} did not end within {timeout} s")
        said = [path.read_text() if path.exists() else "" for path in (log, log.with_name("out.err"))]
    return CompletedProcess([*map(str, arguments)], process.exitcode, *said)


def embank(*arguments: object, cwd: Path | None = None) -> CompletedProcess[str]:
    """A command of embank."""
    return run(command, *map(str, arguments), cwd=cwd)


def run_code(code: str, *arguments: object, cwd: Path) -> CompletedProcess[str]:
    """Code that finds its arguments in `sys.argv`."""
    return run(_execute, textwrap.dedent(code), *map(str, arguments), cwd=cwd)


def script(path: Path, *arguments: object, cwd: Path | None = None) -> CompletedProcess[str]:
    """A script, as `python path arguments` runs it."""
    return run(_script, str(path), *map(str, arguments), cwd=cwd)


def command(*arguments: str) -> None:
    """`embank` with these arguments, in this process."""
    from embank.pipelines.cli import main

    sys.argv = ["embank", *arguments]
    main()


def _execute(code: str, *arguments: str) -> None:
    sys.argv = ["-c", *arguments]
    exec(code, {"__name__": "__main__"})


def _script(path: str, *arguments: str) -> None:
    sys.argv, sys.path[0] = [path, *arguments], str(Path(path).parent)
    runpy.run_path(path, run_name="__main__")


def _work(
    work: Callable[..., Any], arguments: tuple[Any, ...], log: str, cwd: str, environment: Mapping[str, str]
) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    with open(log, "ab") as out, open(f"{log}.err", "ab") as error, open(os.devnull, "rb") as nothing:
        for stream, target in ((nothing, 0), (out, 1), (error, 2)):
            os.dup2(stream.fileno(), target)
    torch.set_num_threads(1)
    work(*arguments)
