"""The rows' optimizer as TorchRec's programs know one: a `KeyedOptimizer`."""

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torchrec.optim.fused import FusedOptimizer

from embank.tables.collections.state import refuse_parts, row_names

if TYPE_CHECKING:
    from embank.tables.collections.base import Tables

_MOMENTUM = {"sum": "momentum1"}
"""TorchRec's name of a state, where it is another than ours."""


class RowsOptimizer(FusedOptimizer):  # type: ignore[misc]
    """Rows are updated in the backward pass; `step` ends the training step as `Tables.step` does.

    `param_groups[0]["lr"]` is the rows' rate. What a scheduler writes there counts from the next forward pass on.

    Args:
        tables: whose rows they are.

    Example:
        >>> spec = TableSpec(name="item", num_embeddings=10, embedding_dim=2, feature_names=["item"])
        >>> tables = TableCollection([spec], optimizer=RowOptimizer(name="adagrad", lr=0.1))
        >>> optimizer = tables.fused_optimizer
        >>> list(optimizer.params), [list(state) for state in optimizer.state.values()]
        (['embedding_bags.item.weight'], [['item.momentum1']])
        >>> scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        >>> optimizer.param_groups[0]["lr"]
        0.1
    """

    def __init__(self, tables: "Tables") -> None:
        self.tables = (tables,)
        self.pushed = tables.lr
        params, state = self._held()
        super().__init__(params, state, [])
        self.refresh()

    def _held(self) -> tuple[dict[str, Tensor], dict[Tensor, dict[str, Any]]]:
        """Rows and states by TorchRec's names."""
        (tables,) = self.tables
        names = row_names(tables)
        views = {} if tables.optimizer.is_external else tables.weights()
        held = tables.optimizer_state()
        params = {names[table]: view for table, view in views.items()}
        state = {
            params[names[table]]: {f"{table}.{_MOMENTUM.get(kind, kind)}": view for kind, view in held[table].items()}
            for table in views
        }
        return params, state

    def refresh(self) -> None:
        """Takes over rows that have moved: programs hold on to an optimizer, and to its groups."""
        (tables,) = self.tables
        self.params, self.state = self._held()
        rows = list(self.params.values())
        if not self.param_groups and not tables.optimizer.is_external:
            self.param_groups.append({"params": rows, "lr": tables.lr, "initial_lr": tables.lr})
        for group in self.param_groups:
            group["params"] = rows

    def step(self, closure: Any = None) -> None:
        """Ends a training step, after the backward pass."""
        self.tables[0].step()
        self.push_lr()

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Rows have no gradients."""
        self.push_lr()

    def push_lr(self) -> None:
        """Tells the rows of a rate that was written into `param_groups`."""
        (tables,) = self.tables
        for group in self.param_groups:
            if group["lr"] != self.pushed:
                tables.set_lr(float(group["lr"]))

    def follow_lr(self, lr: float) -> None:
        """Takes over a rate that the tables were given."""
        self.pushed = lr
        for group in self.param_groups:
            group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        """States by parameter, as TorchRec names both.

        Raises:
            ConfigError: rows are sharded, so that this process has a part of them.
        """
        (tables,) = self.tables
        refuse_parts(tables)
        found: dict[str, Any] = super().state_dict()
        return found

    def load_state_dict(self, state_dict: Any) -> None:
        """The inverse: states are copied into place."""
        (tables,) = self.tables
        refuse_parts(tables)
        with tables.writing():
            super().load_state_dict(state_dict)
