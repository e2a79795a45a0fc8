"""How a long run tells its caller where it stands. The library is silent; the command line draws a bar, or prints
lines."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

LINE_SECONDS, LINE_SHARE, LEAST_SECONDS = 60.0, 0.05, 1.0
"""A line on progress comes after a minute or a twentieth of the steps, whichever is sooner, and never after less than a
second."""


class Reporter:
    """Silent; subclasses show what they are told."""

    def start(self, *, num_steps: int, step: int, describe: str, unit: str = "samples") -> None:
        """A phase begins or goes on at `step` of `num_steps`; `unit` is what its speed is told in."""

    def advance(self, *, step: int, loss: float, samples_per_s: float) -> None:
        """A training step is done; `loss` is the mean since the last evaluation."""

    def measured(self, *, step: int, values: Mapping[str, float]) -> None:
        """What this very step was like: its loss, learning rates, samples per second; `step` counts through all
        stages."""

    def evaluated(self, record: Mapping[str, Any]) -> None:
        """An evaluation is done; `record` is the line of metrics.jsonl."""

    def note(self, message: str) -> None:
        """Something worth a line."""

    def close(self) -> None:
        """The run ends, well or not."""


class Several(Reporter):
    """Tells several reporters, in order."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self.reporters = list(reporters)

    def start(self, *, num_steps: int, step: int, describe: str, unit: str = "samples") -> None:
        for reporter in self.reporters:
            reporter.start(num_steps=num_steps, step=step, describe=describe, unit=unit)

    def advance(self, *, step: int, loss: float, samples_per_s: float) -> None:
        for reporter in self.reporters:
            reporter.advance(step=step, loss=loss, samples_per_s=samples_per_s)

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
        self.num_steps = self.said_step = 0
        self.unit = "samples"
        self.began = (0.0, 0)
        self.said = 0.0

    def start(self, *, num_steps: int, step: int, describe: str, unit: str = "samples") -> None:
        self.unit = unit
        if step:
            self.write(f"resuming after step {step:,} of {num_steps:,}")
        self.write(f"{describe}: {num_steps:,} steps")
        self.num_steps, self.said_step, self.said = num_steps, step, self.clock()
        self.began = (self.said, step)

    def advance(self, *, step: int, loss: float, samples_per_s: float) -> None:
        is_far = step - self.said_step >= LINE_SHARE * self.num_steps
        now = self.clock()
        if now - self.said < (LEAST_SECONDS if is_far else LINE_SECONDS):
            return
        self.said, self.said_step = now, step
        seconds, first = self.began
        left = (now - seconds) / max(1, step - first) * (self.num_steps - step)
        self.write(
            f"step {step:,} of {self.num_steps:,} ({step / max(1, self.num_steps):.0%})  loss {loss:.4f}  "
            f"{samples_per_s:,.0f} {self.unit}/s  {duration(left)} left"
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
