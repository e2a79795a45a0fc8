"""Progress of a long preparation: a tiny callback interface, so that the library prints nothing itself."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class ProgressCallback(Protocol):
    """What `prepare` tells about itself. Calls come from one thread."""

    def start(self, stage: str, *, total: int, unit: str) -> None:
        """A stage begins; `total` is in `unit` ("bytes" or "rows")."""

    def advance(self, amount: int, *, rows: int = 0) -> None:
        """`amount` more units are done; `rows` more rows have been seen."""

    def finish(self) -> None:
        """The stage is over."""


class NoProgress:
    """Tells nobody."""

    def start(self, stage: str, *, total: int, unit: str) -> None:
        """Nothing."""

    def advance(self, amount: int, *, rows: int = 0) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


class RichProgress:
    """A progress bar per stage on stderr, with rows per second; used by the command line as a context manager."""

    def __init__(self, *, console: Console | None = None) -> None:
        columns = (
            TextColumn("{task.description:<20}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console or Console(file=sys.stderr))
        self._task: TaskID | None = None
        self._rows = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start(self, stage: str, *, total: int, unit: str) -> None:
        """Open the bar of `stage`."""
        self._rows = 0
        self._task = self._progress.add_task(stage, total=max(total, 1), rate="")

    def advance(self, amount: int, *, rows: int = 0) -> None:
        """Move the bar."""
        if self._task is None:
            return
        self._rows += rows
        elapsed = self._progress.tasks[self._task].elapsed or 0.0
        rate = f"{self._rows / elapsed:>11,.0f} rows/s" if elapsed > 0 and self._rows else ""
        self._progress.update(self._task, advance=amount, rate=rate)

    def finish(self) -> None:
        """Fill the bar."""
        if self._task is not None:
            task = self._progress.tasks[self._task]
            self._progress.update(self._task, completed=task.total)
            self._task = None
