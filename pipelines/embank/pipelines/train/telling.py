"""What a run writes down while it goes on, besides its metrics: `log.txt`, and TensorBoard's event files."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from embank.pipelines.reporting import Lines, Reporter, Several
from embank.pipelines.train.tensorboard import TensorBoard


@contextmanager
def recorded(
    reporter: Reporter, *, log: Path, board: Path | None, resumed_at: int, num_ranks: int, told: Sequence[str] = ()
) -> Iterator[Reporter]:
    """A reporter that also writes what it is told to files; the log says how it ended.

    Args:
        reporter: is told as well.
        log: a text file, to which a resumed run appends.
        board: folder of TensorBoard's event files; None for none.
        resumed_at: steps that were done before; TensorBoard forgets later ones.
        num_ranks: for the log.
        told: what the reporter was told before there was a log.

    Raises:
        ConfigError: TensorBoard is asked for, but not installed.
    """
    with ExitStack() as stack:

        def write(line: str) -> None:
            with (
                suppress(OSError),
                log.open("a", encoding="utf-8") as file,
            ):  # a full disk must not end a run for a line
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")

        reporters = [reporter, Lines(write)]
        if board is not None:
            reporters.append(stack.enter_context(TensorBoard(board, resumed_at=resumed_at)))
        write(f"embank {version('embank')}, {num_ranks} {'rank' if num_ranks == 1 else 'ranks'}")
        for line in told:
            write(line)
        try:
            yield Several(reporters)
        except BaseException as error:
            write(f"stopped: {error or type(error).__name__}")
            raise
        write("done")
