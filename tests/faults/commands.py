"""`embank` commands in processes of their own, forked from one that has imported everything, and what became of
them."""

import os
import re
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.processes import forkserver

_LIBRARY_WORDS = re.compile(
    r"Traceback|^embank: \w*(Error|Exception|Panic)\b|inline_container|\[Errno|run with --debug", re.M
)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A command that has ended.

    Args:
        code: its exit code; negative for a signal.
        output: all that it printed.
    """

    code: int
    output: str

    @property
    def defect(self) -> str | None:
        """What is wrong with how it ended, whatever the fault was; None if nothing is."""
        if self.code not in (0, 1, 2):
            return f"exit code {self.code}"
        found = _LIBRARY_WORDS.search(self.output)
        if found:
            return f"says {found[0]!r}"
        if self.code and not any(line.startswith("embank: ") for line in self.output.splitlines()):
            return "fails without a message"
        return None


class Command:
    """A command that runs.

    Args:
        arguments: of `embank`.
        log: gets its output.
        max_nbytes: no file of it may grow beyond this many bytes, as on a full disk.
    """

    def __init__(self, arguments: Sequence[object], log: Path, *, max_nbytes: int | None = None) -> None:
        context = forkserver()
        self.log = log
        log.write_bytes(b"")
        self.begun = time.monotonic()
        self.process = context.Process(target=_run, args=([str(a) for a in arguments], str(log), max_nbytes))
        self.process.start()

    def end_after(self, seconds: float, number: int) -> bool:
        """Sends a signal so long after the start; False if the command has ended by then."""
        self.process.join(seconds)
        if self.process.exitcode is not None:
            return False
        assert self.process.pid is not None
        os.kill(self.process.pid, number)
        return True

    def wait(self, seconds: float = 300) -> Ended:
        """Its end.

        Raises:
            TimeoutError: it does not end.
        """
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"{self.log.read_text(errors='replace')}\ndid not end within {seconds} s")
        return Ended(code=self.process.exitcode, output=self.log.read_text(errors="replace"))


def embank(*arguments: object, log: Path, max_nbytes: int | None = None) -> Ended:
    """Runs a command to its end."""
    return Command(arguments, log, max_nbytes=max_nbytes).wait()


def _run(arguments: list[str], log: str, max_nbytes: int | None) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(log, "ab") as file, open(os.devnull, "rb") as nothing:
        for stream, target in ((nothing, 0), (file, 1), (file, 2)):
            os.dup2(stream.fileno(), target)
    import torch

    from embank.pipelines.cli.app import main

    torch.set_num_threads(1)
    if max_nbytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_nbytes, max_nbytes))
    sys.argv = ["embank", *arguments]
    main()
