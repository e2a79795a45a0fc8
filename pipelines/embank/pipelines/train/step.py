"""One training step: look up, score, back-propagate, update rows and dense parameters. And one search step."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from embank.ctr_models import CTRModel
from embank.pipelines.config.sections import TrainConfig
from embank.pipelines.data.loading.batch import Batch, Position
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.runs.memory import keep_freed_memory
from embank.pipelines.runs.score import compiled_score, score
from embank.pipelines.train.divergence import divergence
from embank.pipelines.train.optimizer import dense_optimizer
from embank.pipelines.train.penalty import Penalised, RowPenalty
from embank.pipelines.train.schedule import lr_factor
from embank.tables import ConfigError, TableCollection, WorkError
from embank.tables.collections.stages import rows_held, search_parameters
from embank.tables.collections.straight_through import StraightThrough, UncodedRowsError
from embank.tables.sharding.processes import Processes


class NonFiniteLossError(WorkError):
    """The loss is NaN or infinite; training has stopped before this step changed anything."""


class Stepper:
    """Trains a model step by step through one stage. Rows and dense parameters each have an optimizer of their own.

    Args:
        model: tables and network.
        config: how it is trained.
        batch_size: rows per full batch.
        num_rows: rows of the training split.
        num_steps: steps of the stage.
        held: dense parameters that are left alone.
        coded: the codecs that rows are trained through, if any.
    """

    def __init__(
        self,
        model: CTRModel,
        *,
        config: TrainConfig,
        batch_size: int,
        num_rows: int,
        num_steps: int,
        held: Sequence[nn.Parameter] = (),
        coded: StraightThrough | None = None,
    ) -> None:
        assert isinstance(model.tables, TableCollection)
        self.coded: AbstractContextManager[None] = nullcontext() if coded is None else coded
        self.model, self.tables, self.processes = model, model.tables, model.tables.processes
        self.config = config
        rank, count = self.processes.rank, self.processes.count
        self.full_rows = batch_size * (rank + 1) // count - batch_size * rank // count
        self.num_steps, self.held = num_steps, held
        self.tables.begin(num_steps=num_steps)
        self.penalty: RowPenalty | None = None
        if config.embedding_l2:
            self.penalty = RowPenalty(self.tables, l2=config.embedding_l2, num_rows=num_rows, batch_size=batch_size)
        left_alone = {id(parameter) for parameter in held}
        learned = [p for p in self.tables.dense_parameters() if id(p) not in left_alone]
        self.parameters = [*model.network.parameters(), *learned]
        self.optimizer = dense_optimizer(model.network, learned, config=config)
        # Only full batches go through the compiled network: a short last batch would compile it once more.
        self.compiled = compiled_score(model.network) if config.compile is True else None
        self.factor: float | None = None

    @property
    def address(self) -> Callable[[KeyedJaggedTensor], object]:
        """What the loader's thread does with the ids of a batch before this is called with it."""
        return self.tables.address_ahead if self.penalty is None else self.penalty.address

    def looking_ahead(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Batches, each after the next one's ids have been sent on their way to the processes that hold their rows."""
        if self.processes.count == 1:
            yield from batches
            return
        waiting = next(batches, None)
        while waiting is not None:
            following = next(batches, None)
            if following is not None:
                sparse = following.sparse
                self.tables.prefetch(sparse.addressed if isinstance(sparse, Penalised) else sparse)
            yield waiting
            waiting = following

    def __call__(
        self, batch: Batch, *, step: int, num_plateaus: int = 0, votes: Sequence[bool] = ()
    ) -> tuple[float, list[bool]]:
        """Trains on a batch; where tables are sharded, all processes call this together.

        Args:
            batch: as the loader gives it, with at least one row over all processes.
            step: 0 for the first one of the stage.
            num_plateaus: evaluations without improvement so far.
            votes: questions on which processes must agree; they travel with the loss.

        Returns:
            The batch's mean log loss over all processes, without penalties and what methods add to it; and for each
            vote whether any process has said yes.

        Raises:
            NonFiniteLossError: names the step, the batch and the table or parameter.
            UncodedRowsError: the codec that rows are trained through can't hold those that training begins with.
        """
        self._set_learning_rates(step, num_plateaus)
        batch = batch.to(self.tables.device)
        with ExitStack() as coded:
            try:
                coded.enter_context(self.coded)
            except UncodedRowsError as error:
                if step == 0:  # no step of this stage has moved them
                    raise
                raise self.uncoded(f"in {_place(batch, step)}", error) from error
            value, agreed = self._update(batch, step=step, votes=votes)
        self.tables.step()
        return value, agreed

    @keep_freed_memory()
    def _update(self, batch: Batch, *, step: int, votes: Sequence[bool]) -> tuple[float, list[bool]]:
        log_loss, loss = self._losses(batch)
        value, is_bad, agreed = self._agree(batch, log_loss.item(), loss.item(), votes)
        if is_bad:
            self._refuse(batch, step, loss.item())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in self.held:
            parameter.grad = None
        average_gradients(self.parameters, self.processes)
        if self.config.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_grad_norm)
        self.optimizer.step()
        return value, agreed

    def _agree(
        self, batch: Batch, log_loss: float, loss: float, votes: Sequence[bool]
    ) -> tuple[float, bool, list[bool]]:
        """The mean log loss, whether a loss is not finite anywhere, and the votes."""
        is_bad = not (math.isfinite(log_loss) and math.isfinite(loss))
        if self.processes.count == 1:
            return log_loss, is_bad, list(votes)
        said = torch.tensor([log_loss / self.processes.count, is_bad, *votes], dtype=torch.float64)
        mean, bad, *raised = self.processes.sum(said).tolist()
        return mean, bad > 0, [vote > 0 for vote in raised]

    def _refuse(self, batch: Batch, step: int, loss: float) -> None:
        """Ends training on all processes: the cause is looked for by all, since looking up takes all, and told by those
        that have it."""
        message = self._diagnosis(batch, step, loss)
        with self.processes.together():
            if not math.isfinite(loss):
                raise NonFiniteLossError(message)

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
        self.tables.set_lr(self.config.rows_lr * factor)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * factor

    @property
    def rates(self) -> dict[str, float]:
        """The learning rates of the last step."""
        factor = 1.0 if self.factor is None else self.factor
        return {"lr": self.config.lr * factor, "table_lr": self.config.rows_lr * factor}

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The mean log loss, and the same with the penalty and what methods add.

        With several processes, each one's share of them: times the number of processes, since gradients are averaged.
        """
        penalised = batch.sparse if isinstance(batch.sparse, Penalised) else None
        looked_up, rows = self.tables.look_up(penalised.addressed if penalised else batch.sparse)
        values: Tensor = looked_up.values()
        is_full = batch.labels.numel() == self.full_rows
        network = self.compiled if self.compiled is not None and is_full else self.model.network.score
        logits_B = score(network, batch.dense, values, precision=self.config.precision)
        log_loss = loss = mean_log_loss(logits_B, batch, self.processes)
        if self.penalty is not None and penalised is not None:
            loss = loss + self.penalty(values, rows, penalised) * self.processes.count
        extra = self.tables.extra_loss()
        if not batch.labels.numel():
            extra = None
        return log_loss, loss if extra is None else loss + extra

    @torch.no_grad()
    def _diagnosis(self, batch: Batch, step: int, value: float) -> str:
        """Where the first number came from that is not finite."""
        looked_up = self.tables(batch.sparse.addressed if isinstance(batch.sparse, Penalised) else batch.sparse)
        cause = divergence(self.model, batch.dense, looked_up)
        return f"the loss is {value} in {_place(batch, step)}: {cause}, or {_IN_A_NEW_RUN}"

    def uncoded(self, where: str, error: ConfigError) -> NonFiniteLossError:
        """That rows have grown beyond what their codec holds. Its own cure, another codec, would only let them grow
        on.

        Args:
            where: in the training, the beginning of an adverbial.
            error: the codec's.
        """
        fact = str(error).partition(";")[0]
        rate = self.rates["table_lr"]
        return NonFiniteLossError(
            f"training diverges {where}: {fact}; lower train.table_lr ({rate:.4g}), or {_IN_A_NEW_RUN}"
        )


_IN_A_NEW_RUN = "warm up (train.warmup_steps), in a new run"


def _place(batch: Batch, step: int) -> str:
    """Where training stands, in words."""
    return f"step {step} (epoch {batch.position.epoch}, batch {batch.position.batch - 1})"


class SearchStepper:
    """Moves the methods' search parameters on validation batches, and nothing else.

    The network scores without dropout and with its running statistics, so that nothing of it changes; rows are looked
    up without a gradient, so that the update that FBGEMM fuses into the backward pass does not happen.

    Args:
        model: tables and network.
        config: how it is trained.
        loader: of the validation split.
        start: the loader's position after the last batch of an interrupted run.

    Source: alternation of weights on training and architecture on validation batches, first order: Liu et al., DARTS,
    ICLR
        2019, section 2.3; Zhao et al., AutoDim, WWW 2021, algorithm 1.
    """

    def __init__(self, model: CTRModel, *, config: TrainConfig, loader: Loader, start: Position | None) -> None:
        assert isinstance(model.tables, TableCollection)
        self.model, self.tables, self.config = model, model.tables, config
        self.parameters = search_parameters(model.tables)
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.search_lr)
        self.loader, self.batches = loader, endless(loader, start=start)

    @keep_freed_memory()
    def __call__(self) -> Batch:
        """A step on the next validation batch, which is returned.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
        """
        batch = next(self.batches).to(self.tables.device)
        self.model.network.eval()
        with rows_held(self.tables):
            values: Tensor = self.tables(batch.sparse).values()
        logits_B = score(self.model.network.score, batch.dense, values, precision=self.config.precision)
        self.model.network.train()
        loss = mean_log_loss(logits_B, batch, self.tables.processes)
        extra = self.tables.extra_loss()
        if not batch.labels.numel():
            extra = None
        loss = loss if extra is None else loss + extra
        with self.tables.processes.together():
            if not math.isfinite(loss.item()):
                raise NonFiniteLossError(
                    f"the loss is {loss.item()} on a validation batch (pass {batch.position.epoch}, batch "
                    f"{batch.position.batch - 1}); lower train.search_lr or train.table_lr in a new run"
                )
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        average_gradients(self.parameters, self.tables.processes)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return batch


def mean_log_loss(logits_B: Tensor, batch: Batch, processes: Processes) -> Tensor:
    """A process's share of the mean log loss of a batch over all processes, times their number: shares average to the
    mean."""
    if processes.count == 1:
        return F.binary_cross_entropy_with_logits(logits_B, batch.labels)
    total = F.binary_cross_entropy_with_logits(logits_B, batch.labels, reduction="sum")
    return total * (processes.count / batch.num_global_rows)


def average_gradients(parameters: Sequence[nn.Parameter], processes: Processes) -> None:
    """Gradients averaged over processes, as DistributedDataParallel does; one that a process lacks counts as 0."""
    if processes.count == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    processes.average([parameter.grad for parameter in parameters if parameter.grad is not None])


def endless(loader: Loader, *, start: Position | None) -> Iterator[Batch]:
    """Batches of a split, pass after pass."""
    number = 0 if start is None else start.epoch
    while True:
        yield from loader.epoch(number, start=start)
        number, start = number + 1, None
