"""How a long run tells its caller where it stands. The library is silent; the command line draws a bar."""

from collections.abc import Mapping
from typing import Any


class Reporter:
    """Silent; subclasses show what they are told."""

    def start(self, *, num_steps: int, step: int, describe: str) -> None:
        """A phase begins or goes on at `step` of `num_steps`."""

    def advance(self, *, step: int, loss: float, samples_per_s: float) -> None:
        """A training step is done; `loss` is the mean since the last evaluation."""

    def evaluated(self, record: Mapping[str, Any]) -> None:
        """An evaluation is done; `record` is the line of metrics.jsonl."""

    def note(self, message: str) -> None:
        """Something worth a line."""

    def close(self) -> None:
        """The run ends, well or not."""
