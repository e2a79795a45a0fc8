"""Progress bars on a terminal."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from embank.pipelines.reporting import Reporter, evaluation_line, facts

DRAW_SECONDS = 0.1
"""Between two looks of a bar: steps may be much shorter, and drawing takes time from them."""


class Bars(Reporter):
    """A bar per phase with speed, loss, time spent and time left; notes and evaluations are lines above it.

    Args:
        console: where they are drawn.
        keep: whether bars of phases that are over stay; otherwise there is one bar, which vanishes at the end.
    """

    def __init__(self, console: Console, *, keep: bool) -> None:
        self.console, self.keep = console, keep
        self.bars = Progress(
            TextColumn("{task.description:<20}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=not keep,
        )
        self.task: TaskID | None = None
        self.unit, self.speed, self.total, self.done, self.drawn = "", "rows", 0, 0, 0.0

    def start(self, phase: str, *, total: int, unit: str, done: int = 0, speed: str = "rows") -> None:
        self._end_phase()
        self.unit, self.speed, self.total, self.done, self.drawn = unit, speed, total, done, 0.0
        if done:
            self.console.print(f"resuming after {unit.removesuffix('s')} {done:,} of {total:,}")
        if phase.startswith("stage "):  # the bar vanishes, and how long a stage was is worth a line that stays
            self.console.print(f"{phase}: {total:,} {unit}")
        self.bars.start()
        self.task = self.bars.add_task(phase, total=max(1, total), completed=done, facts="", count=self._count(done))

    def advance(self, done: int, *, per_s: float, loss: float | None = None) -> None:
        self.done, now = done, time.monotonic()
        if self.task is not None and now - self.drawn > DRAW_SECONDS:
            self.bars.update(
                self.task, completed=done, facts=facts(per_s, self.speed, loss=loss), count=self._count(done)
            )
            self.drawn = now

    def evaluated(self, record: Mapping[str, Any]) -> None:
        self.console.print(evaluation_line(record))
        if record.get("auc_undefined") and record["split"] == "test":
            self.note(record["auc_undefined"])

    def note(self, message: str) -> None:
        self.console.print(message, markup=False)

    def close(self) -> None:
        self._end_phase()
        self.bars.stop()

    def _count(self, done: int) -> str:
        return "" if self.unit == "bytes" else f"{done:,}/{self.total:,}"

    def _end_phase(self) -> None:
        if self.task is None:
            return
        if self.keep:
            self.bars.update(self.task, completed=self.done, count=self._count(self.done))
        else:
            self.bars.remove_task(self.task)
        self.task = None
