"""Where the training of a collection stands, and what methods add to the loss, as any PyTorch loop makes it."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from embank.tables.collections.paths import Losses
from embank.tables.errors import ConfigError
from embank.tables.method.base import Method
from embank.tables.method.schedule import Schedule
from embank.tables.scalars import as_whole

if TYPE_CHECKING:
    from embank.tables.collections.base import Tables


class PassLoss:
    """What methods add to the loss of one forward pass.

    Args:
        value: a scalar; None where they add nothing.

    Attributes:
        is_taken: somebody has added it to the loss, so the backward pass must not do it once more.
    """

    def __init__(self, value: Tensor | None) -> None:
        self.value = value
        self.is_taken = False


class TrainingState:
    """Steps of a training.

    Attributes:
        num_steps: of the training, or of its current stage; None if nobody has said.
        num_done: steps so far.
        num_unfinished: backward passes since the last step.
    """

    def __init__(self) -> None:
        self.num_steps: int | None = None
        self.num_done = 0
        self.num_unfinished = 0
        self.last: PassLoss | None = None  # until the pass has its backward pass, or the next one runs

    def begin(self, *, num_steps: int, step: int) -> None:
        """See `Tables.begin`."""
        total, done = as_whole(num_steps), as_whole(step)
        if total is None or done is None or total < 1 or not 0 <= done <= total:
            raise ConfigError(
                f"a training begins at step {step!r} of {num_steps!r}; give at least 1 step, and from 0 to as many "
                "done, in whole numbers"
            )
        self.num_steps, self.num_done = total, done

    def facts(self) -> dict[str, int | None]:
        """What a copy goes on with."""
        return {"num_steps": self.num_steps, "num_done": self.num_done, "num_unfinished": self.num_unfinished}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """The inverse of `facts`."""
        vars(self).update(facts)

    def take_loss(self) -> Tensor | None:
        """The loss of the last training pass, for its caller to add; None if there is none, or its backward pass has
        taken it along."""
        loss, self.last = self.last, None
        if loss is None:
            return None
        loss.is_taken = True
        return loss.value


class _Accompanied(torch.autograd.Function):
    """Outputs of a forward pass as they are; their backward pass is noted, and takes the methods' loss along."""

    @staticmethod
    def forward(ctx: Any, tables: "Tables", loss: PassLoss, value: Tensor | None, *outputs: Tensor) -> Any:
        ctx.state, ctx.loss, ctx.rows_learn = tables.training_state, loss, tables.rows_learn
        ctx.set_materialize_grads(False)
        # The same memory, but no views of the inputs to autograd, which would forbid to write to them in place.
        return tuple(output.detach() for output in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        ctx.state.num_unfinished += ctx.rows_learn
        value = None if ctx.loss.is_taken or ctx.loss.value is None else torch.ones_like(ctx.loss.value)
        if ctx.state.last is ctx.loss:
            ctx.state.last = None
        return None, None, value, *grads


def accompanied(tables: "Tables", outputs: Sequence[Tensor], losses: Losses) -> Sequence[Tensor]:
    """The outputs of a training pass, so that a backward pass from any of them also trains by what methods add to the
    loss."""
    value = summed_losses(tables, losses)
    loss = PassLoss(value)
    tables.training_state.last = loss
    result: tuple[Tensor, ...] = _Accompanied.apply(tables, loss, value, *outputs)  # type: ignore[no-untyped-call]
    return result


def needs_company(method: Method) -> bool:
    """Whether a method may add to the loss, or must know of backward passes."""
    schedule = method.traits.schedule
    return schedule.is_followed(method) or type(schedule).loss is not Schedule.loss or method.traits.adds_loss


def summed_losses(tables: "Tables", losses: Losses) -> Tensor | None:
    """What methods add to the loss of a forward pass, method by method.

    Args:
        tables: whose methods they are.
        losses: what their rows added in it.
    """
    total: list[Tensor] = []
    for method in tables.built_methods():
        own = [loss for other, loss in losses if other is method]
        constant = method.traits.schedule.loss(method)
        total += [torch.stack(own).sum()] if own else []
        total += [] if constant is None else [constant]
    return torch.stack(total).sum() if total else None


def replica_error() -> ConfigError:
    """For tables that several processes train by themselves."""
    return ConfigError(
        f"these tables are trained by one of {dist.get_world_size()} processes, each of which would update its own "
        "rows, so that they drift apart. Spread the rows over the processes: TableCollection(..., "
        "sharding=Sharding(plan=...)), of embank.tables.sharding.sharded_rows, as docs/sharding.md shows. To look up "
        "without training, use torch.no_grad()"
    )


def forbid_backward(outputs: Sequence[Tensor], *, error: Callable[[], Exception]) -> None:
    """Raises an error when a backward pass comes by."""

    def refuse(_grad: Tensor) -> None:
        raise error()

    for output in outputs:
        if output.requires_grad:
            output.register_hook(refuse)  # type: ignore[no-untyped-call]


def scheduled(tables: "Tables") -> Method | None:
    """A method that follows a schedule in the stage that it is in, if there is one."""
    return next((method for method in tables.built_methods() if method.traits.schedule.is_followed(method)), None)


def refuse_unknown_length(tables: "Tables") -> None:
    """Raises ConfigError where a schedule runs over a training whose length nobody has said."""
    method = scheduled(tables)
    if method is not None and tables.training_state.num_steps is None:
        raise ConfigError(
            f"table '{method.spec.name}' (method '{method.spec.method}') follows a schedule over the whole training; "
            "say how long it is, tables.begin(num_steps=...), before the first step"
        )


def refuse_unfinished(tables: "Tables") -> None:
    """Raises ConfigError where a method's schedule has not been followed to the last backward pass."""
    method, count = scheduled(tables), tables.training_state.num_unfinished
    if method is not None and count:
        raise ConfigError(
            f"rows were trained by {count:,} backward pass{'es' if count > 1 else ''} since the last tables.step(), "
            f"which table '{method.spec.name}' (method '{method.spec.method}') needs for its schedule; call it after "
            "each backward pass"
        )
