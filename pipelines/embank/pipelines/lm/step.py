"""One training step of a language model: predict, back-propagate, update rows and dense parameters."""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embank.pipelines.lm.config import LmTrainConfig
from embank.pipelines.lm.model import LanguageModel
from embank.pipelines.lm.windows import Windows
from embank.pipelines.runs.memory import keep_freed_memory
from embank.pipelines.train.schedule import lr_factor
from embank.pipelines.train.step import NonFiniteLossError, average_gradients
from embank.tables.memory import AddressedMemory
from embank.tables.sharding.processes import Processes


def lm_optimizer(network: nn.Module, config: LmTrainConfig) -> torch.optim.Optimizer:
    """AdamW with decay on matrices: tables, embeddings, norms and other vectors are left alone."""
    decayed, others = list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in network.named_parameters():
        is_table = name.endswith(("embedding.weight", "rows_RD", "gain_Md"))
        (others if parameter.ndim <= 1 or is_table else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95), fused=True)


class LmStepper:
    """Trains a model step by step.

    Args:
        model: decoder and memory.
        windows: of the training stream.
        config: how it is trained.
        num_steps: of the whole run.
        processes: those that train together, each on its share of every batch.
    """

    def __init__(
        self, model: LanguageModel, windows: Windows, *, config: LmTrainConfig, num_steps: int, processes: Processes
    ) -> None:
        self.model, self.windows, self.config = model, windows, config
        self.num_steps, self.processes = num_steps, processes
        self.optimizer = lm_optimizer(model.network, config)
        self.parameters = [p for p in model.network.parameters() if p.requires_grad]
        self.factor: float | None = None

    def batches(self, first: int) -> Iterator[tuple[Tensor, AddressedMemory | None]]:
        """The batches from a step on, each after the rows of the next one were told to the tier that holds them."""
        tables = self.model.tables
        waiting = self._batch(first) if first < self.num_steps else None
        for step in range(first, self.num_steps):
            following = self._batch(step + 1) if step + 1 < self.num_steps else None
            if tables is not None and following is not None and following[1] is not None:
                tables.prefetch(following[1])
            assert waiting is not None
            yield waiting
            waiting = following

    def _batch(self, step: int) -> tuple[Tensor, AddressedMemory | None]:
        ids_BS = self.windows.batch(step, rank=self.processes.rank, count=self.processes.count)
        return ids_BS, self.model.address(ids_BS[:, :-1])

    @keep_freed_memory()
    def __call__(
        self, ids_BS: Tensor, addressed: AddressedMemory | None, *, step: int, votes: Sequence[bool] = ()
    ) -> tuple[float, list[bool]]:
        """Trains on a batch; all processes call this together.

        Args:
            ids_BS: this process's windows.
            addressed: the physical rows of all their tokens but the last.
            step: 0 for the first one.
            votes: questions on which processes must agree.

        Returns:
            The mean loss per token over all processes, and for each vote whether any process has said yes.

        Raises:
            NonFiniteLossError: names the step and the cause.
        """
        self._set_learning_rates(step)
        logits_NV = self.model.logits(self.model.hidden(ids_BS[:, :-1], addressed=addressed)).flatten(0, 1)
        loss = F.cross_entropy(logits_NV, ids_BS[:, 1:].flatten())
        value, agreed = self._agree(loss.item(), votes)
        if not math.isfinite(value):
            with self.processes.together():
                raise NonFiniteLossError(self._diagnosis(step, value))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients(self.parameters, self.processes)
        if self.config.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_grad_norm)
        self.optimizer.step()
        if self.model.tables is not None:
            self.model.tables.step()
        return value, agreed

    def _agree(self, loss: float, votes: Sequence[bool]) -> tuple[float, list[bool]]:
        """The mean loss, and the votes."""
        if self.processes.count == 1:
            return loss, list(votes)
        said = torch.tensor([loss / self.processes.count, *votes], dtype=torch.float64)
        mean, *raised = self.processes.sum(said).tolist()
        return mean, [vote > 0 for vote in raised]

    def _set_learning_rates(self, step: int) -> None:
        factor = lr_factor(
            step, num_steps=self.num_steps, warmup_steps=self.config.warmup_steps, decay=self.config.decay
        )
        if factor == self.factor:
            return
        self.factor = factor
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * factor
        if self.model.tables is not None:
            self.model.tables.set_lr(self.config.row_lr * factor)

    @property
    def rates(self) -> dict[str, float]:
        """The learning rates of the last step."""
        factor = 1.0 if self.factor is None else self.factor
        return {"lr": self.config.lr * factor, "row_lr": self.config.row_lr * factor}

    def _diagnosis(self, step: int, value: float) -> str:
        """Where the first number came from that is not finite."""
        wrong = [name for name, p in self.model.network.named_parameters() if not bool(p.isfinite().all())]
        rows = [name for name, weight in self.model.row_weights().items() if not bool(weight.isfinite().all())]
        if rows:
            cause = f"rows of table '{rows[0]}' are not finite; lower train.row_lr"
        elif wrong:
            cause = f"the network's parameter '{wrong[0]}' is not finite; lower train.lr"
        else:
            cause = "the logits overflow; lower train.row_lr or train.lr"
        return f"the loss is {value} in step {step}: {cause}, or warm up (train.warmup_steps), in a new run"
