"""What stands for rows among a model's parameters, so that what a program does to all parameters reaches them or is
refused."""

from typing import Any, Protocol, Self
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from embank.tables.errors import ConfigError


class HasRows(Protocol):
    """What has rows, and is told whether they are to be trained."""

    rows_learn: bool


class RowMark(nn.Parameter):
    """An empty parameter that no optimizer moves. `requires_grad_(False)` on it holds the rows, and an optimizer for
    the backward pass
    is refused: rows have one.

    It never requires a gradient itself: where all parameters must have one (DistributedDataParallel), it is left out.
    """

    owner: ReferenceType[HasRows]

    @classmethod
    def of(cls, owner: HasRows) -> "RowMark":
        """The mark of what has rows."""
        mark = cls(torch.empty(0), requires_grad=False)
        mark.owner = ref(owner)
        return mark

    @property
    def requires_grad(self) -> bool:
        return False

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        owner = self.owner()
        if owner is not None:
            owner.rows_learn = value

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Whether the rows are to be trained."""
        self.requires_grad = requires_grad
        return self

    def view_as(self, other: Tensor) -> Tensor:
        """What `apply_optimizer_in_backward` begins with."""
        raise ConfigError(
            "rows have an optimizer of their own, which runs in the backward pass already: choose it when the tables "
            "are made, optimizer=RowOptimizer(name='rowwise_adagrad', lr=0.02), and leave them out of "
            "apply_optimizer_in_backward"
        )


class RowMarkHolder(nn.Module):
    """The module whose one parameter is the mark. It has no state, and no cast or move changes it.

    Args:
        owner: what has the rows.
        is_shown: whether there is a mark already; not where the rows are parameters themselves, see `show`.
    """

    def __init__(self, owner: HasRows, *, is_shown: bool = True) -> None:
        super().__init__()
        self.owner = ref(owner)
        if is_shown:
            self.show()

    def show(self) -> None:
        """Makes the mark, if there is none."""
        owner = self.owner()
        if owner is not None and "rows" not in self._parameters:
            self.rows = RowMark.of(owner)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        pass

    def _load_from_state_dict(self, *args: Any) -> None:
        pass
