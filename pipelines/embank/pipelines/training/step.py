"""One training step: look up, score, back-propagate, update rows and dense parameters."""

import contextlib
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from embank.ctr_models import CTRModel
from embank.pipelines.data.batch import Batch
from embank.pipelines.training.config import TrainConfig
from embank.pipelines.training.penalty import Penalised, RowPenalty
from embank.pipelines.training.schedule import lr_factor
from embank.tables import TableCollection, WorkError


class NonFiniteLossError(WorkError):
    """The loss is NaN or infinite; training has stopped before this step changed anything."""


def dense_optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of the dense parameters."""
    if config.optimizer == "adam":
        return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    if config.optimizer == "adagrad":
        return torch.optim.Adagrad(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    return torch.optim.SGD(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)


class Stepper:
    """Trains a model step by step. Rows and dense parameters each have an optimizer of their own.

    Args:
        model: tables and network.
        config: how it is trained.
        batch_size: rows per full batch.
        num_rows: rows of the training split.
    """

    def __init__(self, model: CTRModel, *, config: TrainConfig, batch_size: int, num_rows: int) -> None:
        assert isinstance(model.tables, TableCollection)
        self.model, self.tables = model, model.tables
        self.config, self.batch_size = config, batch_size
        self.num_steps = -(-num_rows // batch_size) * config.epochs
        self.penalty: RowPenalty | None = None
        if config.embedding_l2:
            self.penalty = RowPenalty(self.tables, l2=config.embedding_l2, num_rows=num_rows, batch_size=batch_size)
        parameters = [*model.network.parameters(), *self.tables.dense_parameters()]
        self.optimizer = dense_optimizer(parameters, config)
        # Only full batches go through the compiled network: a short last batch would compile it once more.
        self.compiled = torch.compile(model.network, dynamic=False) if config.compile else model.network
        self.factor: float | None = None

    @property
    def address(self) -> Callable[[KeyedJaggedTensor], object]:
        """What the loader's thread does with the ids of a batch before this is called with it."""
        return self.tables.announce if self.penalty is None else self.penalty.address

    def __call__(self, batch: Batch, *, step: int, num_plateaus: int = 0) -> float:
        """Trains on a batch.

        Args:
            batch: as the loader gives it, with at least one row.
            step: 0 for the first one of the run.
            num_plateaus: evaluations without improvement so far.

        Returns:
            The batch's mean log loss, without penalties.

        Raises:
            NonFiniteLossError: names the step, the batch and the table or parameter.
        """
        self._set_learning_rates(step, num_plateaus)
        loss, penalty = self._losses(batch)
        value = loss.item()
        if not math.isfinite(value):
            raise NonFiniteLossError(self._diagnosis(batch, step, value))
        self.optimizer.zero_grad(set_to_none=True)
        (loss if penalty is None else loss + penalty).backward()  # type: ignore[no-untyped-call]
        self.tables.update_rows()
        self.optimizer.step()
        return value

    def _set_learning_rates(self, step: int, num_plateaus: int) -> None:
        factor = lr_factor(
            step,
            num_steps=self.num_steps,
            warmup_steps=self.config.warmup_steps,
            decay=self.config.decay,
            num_plateaus=num_plateaus,
        )
        if factor == self.factor:
            return
        self.factor = factor
        self.tables.set_lr(self.config.table_lr * factor)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * factor

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        penalised = batch.sparse if isinstance(batch.sparse, Penalised) else None
        values: Tensor = self.tables(penalised.addressed if penalised else batch.sparse).values()
        sizes = [self.model.num_embedding_columns, self.model.num_first_order_columns]
        embeddings_BE, first_order_BF = torch.split(values, sizes, dim=1)
        network = self.compiled if batch.labels.numel() == self.batch_size else self.model.network
        with autocast(self.config.precision):
            logits_B = network(batch.dense, embeddings_BE, first_order_BF)
        loss = F.binary_cross_entropy_with_logits(logits_B.float(), batch.labels)
        if self.penalty is None or penalised is None:
            return loss, None
        return loss, self.penalty(values, penalised.weights_BK)

    @torch.no_grad()
    def _diagnosis(self, batch: Batch, step: int, value: float) -> str:
        """Where the first number came from that is not finite."""
        looked_up = self.tables(batch.sparse.addressed if isinstance(batch.sparse, Penalised) else batch.sparse)
        tables = [key for key in looked_up.keys() if not bool(looked_up[key].isfinite().all())]  # noqa: SIM118
        parameters = [n for n, p in self.model.network.named_parameters() if not bool(p.isfinite().all())]
        if not bool(batch.dense.isfinite().all()):
            cause = "a numeric input is not finite"
        elif tables:
            cause = f"rows of table '{tables[0]}' are not finite; lower train.table_lr"
        elif parameters:
            cause = f"the network's parameter '{parameters[0]}' is not finite; lower train.lr"
        else:
            widest = max(looked_up.keys(), key=lambda key: float(looked_up[key].abs().max()))
            largest = float(looked_up[widest].abs().max())
            cause = f"the logits overflow; the largest embedding is {largest:.3g} in table '{widest}'; lower train.table_lr or train.lr"
        position = batch.position
        return (
            f"the loss is {value} in step {step} (epoch {position.epoch}, batch {position.batch - 1}): {cause}, or "
            "warm up (train.warmup_steps), in a new run"
        )


def autocast(precision: str) -> contextlib.AbstractContextManager[object]:
    """bf16 for the network, or nothing."""
    return torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
