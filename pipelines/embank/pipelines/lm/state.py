"""What a language model's checkpoint holds: network, optimizers, generators, and the rows of its memory."""

import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from embank.pipelines.lm.model import LanguageModel
from embank.tables import CheckpointError, WorkError
from embank.tables.sharding.processes import Processes
from embank.tables.storage.atomic import publish, temporary_beside
from embank.tables.storage.checksums import verify_checksums, write_checksums
from embank.tables.storage.json_text import read_json
from embank.tables.storage.refusals import cause_of, fitting, refused

ROWS = "memory"
_ROOM = "Earlier checkpoints are untouched; make room and resume"
_CURE = "Restore it or remove this checkpoint to resume from an earlier one"


@dataclass(kw_only=True)
class LmProgress:
    """Where a run stands; saved with every checkpoint.

    Args:
        step: optimizer steps done.
        evaluated_step: of the last evaluation.
        best_step, best_value: of the evaluation on validation with the fewest bits per byte.
        loss_sum, loss_steps: training losses since the last evaluation.
        tokens, seconds: trained on, without the first steps of each process, which are slower.
    """

    step: int = 0
    evaluated_step: int = -1
    best_step: int | None = None
    best_value: float | None = None
    loss_sum: float = 0.0
    loss_steps: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Training speed; 0 before anything was timed."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def mean_loss(self) -> float | None:
        """Training loss per token since the last evaluation."""
        return self.loss_sum / self.loss_steps if self.loss_steps else None

    def judge(self, bits_per_byte: float) -> None:
        """Notes an evaluation of the step that was done last."""
        self.evaluated_step, self.loss_sum, self.loss_steps = self.step, 0.0, 0
        if self.best_value is None or bits_per_byte < self.best_value:
            self.best_step, self.best_value = self.step, bits_per_byte


def save_lm(
    folder: Path,
    *,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    progress: LmProgress,
    processes: Processes,
) -> None:
    """Writes a checkpoint, unless it is there already; all processes call this together.

    Raises:
        WorkError: something is not finite, or it can't be written.
    """
    with processes.together():
        for name, parameter in model.network.named_parameters():
            if not bool(parameter.isfinite().all()):
                raise WorkError(
                    f"the network's parameter '{name}' is not finite after step {progress.step}, so nothing was saved; "
                    "start again with a lower train.lr"
                )
    if processes.first(folder.exists()):
        return
    temporary = Path(processes.first(str(temporary_beside(folder))))
    dense = {
        "network": model.network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generators": processes.gather(torch.get_rng_state()),
    }
    try:
        with processes.together():
            if processes.is_first:
                _write_dense(temporary, dense, {"progress": asdict(progress)})
        if model.tables is not None:
            model.tables.save(temporary / ROWS, what=f"the checkpoint '{folder}'", cure=_ROOM)
        with processes.together():
            if processes.is_first:
                write_checksums(temporary)
                publish(temporary, folder)
    except OSError as error:
        cure = fitting(_ROOM, error)
        raise refused(error)(f"the checkpoint '{folder}' can't be written: {cause_of(error)}. {cure}") from error
    finally:
        if processes.is_first:
            shutil.rmtree(temporary, ignore_errors=True)


def _write_dense(folder: Path, dense: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True)
    buffer = io.BytesIO()  # `torch.save` to a full disk hides the operating system's error
    torch.save(dict(dense), buffer)
    (folder / "dense.pt").write_bytes(buffer.getvalue())
    (folder / "meta.json").write_text(json.dumps(dict(meta), indent=1))


class SavedLm:
    """A checkpoint whose every byte was checked.

    Args:
        folder: the checkpoint.
        processes: those that load it together; one of them checks it.

    Raises:
        CheckpointError: it is missing or damaged; names the file.
    """

    def __init__(self, folder: Path, *, processes: Processes | None = None) -> None:
        self.folder, self.processes = folder, processes or Processes()
        with self.processes.together():
            if self.processes.is_first:
                verify_checksums(folder, kind="checkpoint", cure=_CURE)
        self.progress = LmProgress(**read_json(folder / "meta.json")["progress"])
        try:
            self.dense: dict[str, Any] = torch.load(folder / "dense.pt", weights_only=True, map_location="cpu")
        except Exception as error:  # what torch raises on bytes of others has many types
            raise CheckpointError(f"'{folder / 'dense.pt'}' can't be read ({type(error).__name__}). {_CURE}") from error

    def load_model(self, model: LanguageModel, *, optimizer: bool = False) -> None:
        """Loads network and rows, and with `optimizer` the rows' optimizer state.

        Raises:
            CheckpointError: it was saved from another model.
        """
        try:
            model.network.load_state_dict(self.dense["network"])
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"checkpoint '{self.folder}' does not fit the model: {' '.join(str(error).split())}. It was saved by "
                "another version or from another configuration: load it with those, or train again"
            ) from error
        if model.tables is not None:
            model.tables.load(self.folder / ROWS, optimizer=optimizer)

    def load_training(self, model: LanguageModel, optimizer: torch.optim.Optimizer) -> None:
        """Loads the model and everything that its training goes on with."""
        self.load_model(model, optimizer=True)
        optimizer.load_state_dict(self.dense["optimizer"])
        generators = self.dense["generators"]
        if self.processes.rank < len(generators):
            torch.set_rng_state(generators[self.processes.rank])
