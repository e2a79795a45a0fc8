"""How a long piece of work tells its caller where it stands: training, preparing, generating, sweeping, searching.

The library is silent: it tells a `Reporter`. The command line draws a bar, or prints lines.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

LINE_SECONDS, LINE_SHARE, LEAST_SECONDS = 60.0, 0.05, 1.0
"""A line on progress comes after a minute or a twentieth of the steps, whichever is sooner, and never after less than a
second."""


class Reporter:
    """Silent; subclasses show what they are told. Calls come from one thread.

    Example:
        >>> class Prints(Reporter):
        ...     def note(self, message: str) -> None:
        ...         print(message)
        >>> Prints().note("the run starts again from its beginning")
        the run starts again from its beginning
    """

    def start(self, phase: str, *, total: int, unit: str, done: int = 0, speed: str = "rows") -> None:
        """A phase begins, or goes on where it was stopped.

        Args:
            phase: what is done.
            total: how much there is, in `unit`s.
            unit: "steps", "bytes", "rows".
            done: how much of it was done before.
            speed: what its speed is told in: "rows", "samples", "tokens".
        """

    def advance(self, done: int, *, per_s: float, loss: float | None = None) -> None:
        """So much of the phase is done.

        Args:
            done: of the phase's total.
            per_s: its speed so far; 0 where it has none.
            loss: of a training, the mean since the last evaluation.
        """

    def measured(self, *, step: int, values: Mapping[str, float]) -> None:
        """What this very step was like: its loss, learning rates, samples per second; `step` counts through all
        stages."""

    def evaluated(self, record: Mapping[str, Any]) -> None:
        """An evaluation is done; `record` is the line of metrics.jsonl."""

    def note(self, message: str) -> None:
        """Something worth a line."""

    def close(self) -> None:
        """The work ends, well or not."""


class Phase:
    """A phase of a piece of work: tells a reporter that it begins, and how much of it is done.

    Args:
        reporter: is told of it.
        name: what is done.
        total: how much there is, in `unit`s.
        unit: "bytes", "rows", "features".
        clock: seconds.
    """

    def __init__(
        self, reporter: Reporter, name: str, *, total: int, unit: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.reporter, self.clock = reporter, clock
        self.done = self.rows = 0
        self.began = clock()
        reporter.start(name, total=total, unit=unit)

    def advance(self, amount: int, *, rows: int = 0) -> None:
        """`amount` more units are done; `rows` more rows have been seen."""
        self.done, self.rows = self.done + amount, self.rows + rows
        seconds = self.clock() - self.began
        self.reporter.advance(self.done, per_s=self.rows / seconds if seconds > 0 else 0.0)


class Several(Reporter):
    """Tells several reporters, in order."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self.reporters = list(reporters)

    def start(self, phase: str, *, total: int, unit: str, done: int = 0, speed: str = "rows") -> None:
        for reporter in self.reporters:
            reporter.start(phase, total=total, unit=unit, done=done, speed=speed)

    def advance(self, done: int, *, per_s: float, loss: float | None = None) -> None:
        for reporter in self.reporters:
            reporter.advance(done, per_s=per_s, loss=loss)

    def measured(self, *, step: int, values: Mapping[str, float]) -> None:
        for reporter in self.reporters:
            reporter.measured(step=step, values=values)

    def evaluated(self, record: Mapping[str, Any]) -> None:
        for reporter in self.reporters:
            reporter.evaluated(record)

    def note(self, message: str) -> None:
        for reporter in self.reporters:
            reporter.note(message)

    def close(self) -> None:
        for reporter in self.reporters:
            reporter.close()


class Lines(Reporter):
    """A line per evaluation and note, and one on progress now and then: for logs, and where there is no terminal.

    Args:
        write: takes a line.
        clock: seconds.
    """

    def __init__(self, write: Callable[[str], object], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.write, self.clock = write, clock
        self.unit, self.speed, self.total, self.said_done = "step", "rows", 0, 0
        self.began = (0.0, 0)
        self.said = 0.0

    def start(self, phase: str, *, total: int, unit: str, done: int = 0, speed: str = "rows") -> None:
        self.unit, self.speed, self.total = unit.removesuffix("s"), speed, total
        if done:
            self.write(f"resuming after {self.unit} {done:,} of {total:,}")
        self.write(f"{phase}: {total:,} {unit}")
        self.said_done, self.said = done, self.clock()
        self.began = (self.said, done)

    def advance(self, done: int, *, per_s: float, loss: float | None = None) -> None:
        is_far = done - self.said_done >= LINE_SHARE * self.total
        now = self.clock()
        if now - self.said < (LEAST_SECONDS if is_far else LINE_SECONDS):
            return
        self.said, self.said_done = now, done
        seconds, first = self.began
        left = (now - seconds) / max(1, done - first) * (self.total - done)
        how = facts(per_s, self.speed, loss=loss)
        self.write(
            f"{self.unit} {done:,} of {self.total:,} ({done / max(1, self.total):.0%})  {how}  {duration(left)} left"
        )

    def evaluated(self, record: Mapping[str, Any]) -> None:
        self.write(evaluation_line(record))
        if record.get("auc_undefined") and record["split"] == "test":
            self.write(record["auc_undefined"])

    def note(self, message: str) -> None:
        self.write(message)


def evaluation_line(record: Mapping[str, Any]) -> str:
    """An evaluation in one line, of clicks or of text."""
    if "bits_per_byte" in record:
        return f"{record['split']:>5}  step {record['step']:>7,}  bits per byte {metric(record['bits_per_byte'])}"
    gauc = f"  group AUC {metric(record['gauc'])}" if "gauc" in record else ""
    return (
        f"{record['split']:>5}  step {record['step']:>7,}  AUC {metric(record['auc'])}  log loss "
        f"{metric(record['logloss'])}{gauc}"
    )


def metric(value: float | None) -> str:
    """A metric, or a dash where it is undefined."""
    return "-" if value is None else f"{value:.4f}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def facts(per_s: float, speed: str, *, loss: float | None) -> str:
    """How fast a phase goes, and the loss of a training."""
    told = [] if loss is None else [f"loss {loss:.4f}"]
    return "  ".join([*told, *([f"{per_s:,.0f} {speed}/s"] if per_s or told else [])])
