"""TensorBoard event files of a run, if asked for."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from embank.pipelines.reporting import Reporter
from embank.tables import ConfigError


class TensorBoard(Reporter):
    """Writes evaluations (`valid/auc`, ...) and every step (`train/loss`, `train/lr`, `train/table_lr`,
    `train/samples_per_s`).

    Args:
        folder: of the event files.
        resumed_at: steps that were done before: what an interrupted run wrote of later ones is hidden.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, *, resumed_at: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "'train.tensorboard' is true, but TensorBoard is not installed; pip install 'embank[tensorboard]'"
            ) from error
        purged = resumed_at + 1 if folder.is_dir() else None
        self.writer: Any = SummaryWriter(str(folder), purge_step=purged)

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.close()

    def measured(self, *, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self.writer.add_scalar(f"train/{key}", value, step)

    def evaluated(self, record: Mapping[str, Any]) -> None:
        for key, value in record.items():
            if key not in ("split", "step") and isinstance(value, (int, float)):
                self.writer.add_scalar(f"{record['split']}/{key}", value, record["step"])
