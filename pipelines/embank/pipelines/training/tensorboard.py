"""TensorBoard event files of a run, if asked for."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from embank.tables import ConfigError


class TensorBoard:
    """Writes evaluations to `RUN/tensorboard`; does nothing unless enabled.

    Raises:
        ConfigError: enabled, but TensorBoard is not installed.
    """

    def __init__(self, run: Path, *, enabled: bool) -> None:
        self.writer: Any = None
        if enabled:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ConfigError(
                    "'train.tensorboard' is true, but TensorBoard is not installed; pip install 'embank[tensorboard]'"
                ) from error
            self.writer = SummaryWriter(str(run / "tensorboard"))

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.writer is not None:
            self.writer.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """The numbers of a line of metrics.jsonl, under its split."""
        if self.writer is None:
            return
        for key, value in record.items():
            if key not in ("split", "step") and isinstance(value, (int, float)):
                self.writer.add_scalar(f"{record['split']}/{key}", value, record["step"])
