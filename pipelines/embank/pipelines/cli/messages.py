"""How a command ends when it can't go on: one message on stderr and the contract's exit codes, whatever has
happened."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from embank.pipelines.cli import show
from embank.pipelines.cli.failures import report
from embank.pipelines.cli.signals import Stopped, signals_unwind

_BEGINS_AGAIN = "Nothing was left behind; start it again with the same command"


@contextlib.contextmanager
def messages(*, debug: bool, arguments: Sequence[str] = ()) -> Iterator[None]:
    """Errors and signals as one clear message and exit code; an error as a traceback if that was asked for.

    Args:
        debug: whether it was.
        arguments: of the command, which decide what there is to do after a signal.
    """
    with signals_unwind():
        try:
            try:
                yield
            except BaseException as error:
                _end(error, debug=debug, arguments=arguments)
        except KeyboardInterrupt as late:  # a signal while the first message was on its way
            _end(late, debug=debug, arguments=arguments)


def _end(error: BaseException, *, debug: bool, arguments: Sequence[str]) -> None:
    """Says what has happened and ends the process; returns for an end that is none."""
    from embank.tables.errors import EmbankError

    chain = list(_chain(error))
    stop = next((e for e in chain if isinstance(e, KeyboardInterrupt)), None)
    if isinstance(error, SystemExit) and stop is None:
        raise error
    # A signal may arrive when something has failed already, as torchrun's does: that failure is what counts.
    failure = next((e for e in chain if isinstance(e, EmbankError)), None)
    if debug and stop is None:
        raise error
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    if failure is not None:
        if not failure.is_told:
            show.error(str(failure))
        sys.exit(failure.exit_code)
    if stop is not None:
        name = "SIGTERM" if isinstance(stop, Stopped) else "interrupted"
        if not _is_later_rank():  # torchrun's ranks get a signal together
            show.error(f"{name}: {_what_next(arguments)}")
        sys.exit(1)
    sys.exit(report(error))


def _is_later_rank() -> bool:
    """Whether this is one of several processes that torchrun has started, and not the first."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what has led to it, the nearest first."""
    found: BaseException | None = error
    seen: set[int] = set()
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _what_next(arguments: Sequence[str]) -> str:
    """What there is to do after a signal outside of the work that can stop by itself."""
    words = [argument for argument in arguments if not argument.startswith("-")]
    command = next((word for word in words if word != "lm"), "")
    out = _value_of("--out", arguments)
    if command == "predict" and out is not None:
        parts = os.path.join(os.path.dirname(out), f".{os.path.basename(out)}.parts")
        if _has_files(parts, "state.json"):
            return f"the rows that were scored are whole, in '{parts}'; go on with the same command and --resume"
    if command not in ("train", "sweep"):
        return _BEGINS_AGAIN
    # Names of files, not `RunFolder`: its imports may be what was interrupted, and torch can't be imported a second
    # time.
    if out is not None and _has_files(out, "result.json"):
        return f"the run in '{out}' is complete; the same command with --resume shows its figures"
    if out is not None and (_has_files(out, "config.yaml", "environment.json") or _has_files(out, "sweep.yaml")):
        return f"what was saved in '{out}' is whole; go on with the same command and --resume"
    return _BEGINS_AGAIN


def _has_files(folder: str, *names: str) -> bool:
    return all((Path(folder) / name).is_file() for name in names)


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    for place, argument in enumerate(arguments):
        if argument == option and place + 1 < len(arguments):
            return arguments[place + 1]
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None
