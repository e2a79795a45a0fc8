"""Rows as parameters of the model, with dense gradients: what TorchRec's own unsharded collections hold.

Any optimizer of the program updates them, each in its own way: with momentum or weight decay it also moves rows that
no batch has looked up. A gradient is as large as the table, so this is for small tables, for programs that count on it,
and for a model on the meta device, which holds nothing yet.
"""

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embank.tables.errors import ConfigError
from embank.tables.rows.base import RowStore
from embank.tables.rows.store_spec import StoreSpec

_REQUIRES_GRAD: Any = torch._C.TensorBase.requires_grad  # the descriptor, beneath what a parameter says


class RowsParameter(nn.Parameter):
    """Rows among a model's parameters. It requires a gradient while an optimizer of the program is to have one.

    Attributes:
        is_fused: the rows have an optimizer in the backward pass. They require no gradient then, and what a program
            sets says whether they are to be trained.
        is_frozen: they are fused and are not to be trained.
    """

    is_fused = False
    is_frozen = False

    @property
    def requires_grad(self) -> bool:
        return False if self.is_fused else bool(_REQUIRES_GRAD.__get__(self))

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if self.is_fused:
            self.is_frozen = not value
        else:
            _REQUIRES_GRAD.__set__(self, value)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Whether the rows are to be trained."""
        self.requires_grad = requires_grad
        return self

    def fuse(self) -> None:
        """Leaves them to an optimizer in the backward pass from now on; frozen ones stay frozen."""
        if not self.is_fused:
            self.is_frozen = not self.requires_grad
            self.requires_grad = False
            self.grad = None
            self.is_fused = True

    def view_as(self, other: Tensor) -> Tensor:
        """What `apply_optimizer_in_backward` begins with."""
        if self.is_fused:
            raise ConfigError(
                "these rows have an optimizer for the backward pass already; make the tables without optimizer= and "
                "call apply_optimizer_in_backward once, or leave their rows out of it"
            )
        return super().view_as(other)


class ParameterRows(RowStore):
    """Rows that an optimizer outside of the store updates.

    Args:
        spec: what is held and how: whole tables, on the tier "device".

    Raises:
        ConfigError: another tier, or a method that rounds rows after each update of theirs.
    """

    def __init__(self, spec: StoreSpec) -> None:
        super().__init__(spec)
        if not self.tier.is_meta:
            _refuse_impossible(spec)
        device = torch.device(self.tier.device)
        self.rows: list[Tensor] = []  # parameters, or what a program has put in their place
        for shard in self.shards:
            rows_RD = torch.empty(shard.num_rows, shard.num_columns, device="meta" if self.tier.is_meta else "cpu")
            if not self.tier.is_meta:
                shard.write_initial(rows_RD, seed=spec.seed)
            self.rows.append(RowsParameter(rows_RD.to(device=device, dtype=self.tier.torch_dtype)))

    def forward(self, indices: Tensor, offsets: Tensor) -> Tensor:
        num_bags = (offsets.numel() - 1) // len(self.lookups)
        bounds = offsets.tolist() if num_bags == 0 else offsets[::num_bags].tolist()
        device = self.rows[0].device
        indices, offsets = indices.to(device, non_blocking=True), offsets.to(device, non_blocking=True)
        outputs = []
        for k, table in enumerate(self.lookups):
            weight = self.rows[table]
            if num_bags == 0:
                outputs.append(weight[:0].float())
                continue
            ids_N = indices[bounds[k] : bounds[k + 1]]
            part = offsets[k * num_bags : (k + 1) * num_bags + 1] - bounds[k]
            outputs.append(F.embedding_bag(ids_N, weight, part, mode="sum", include_last_offset=True).float())
        return torch.cat(outputs, dim=1)

    @property
    def is_pending(self) -> bool:
        return False

    def _finish(self) -> None:
        pass

    def set_lr(self, lr: float) -> None:
        """Nothing: the rate is another optimizer's."""

    def parameter(self, table: str) -> Tensor:
        """The rows of a table, to be trained."""
        return self.rows[self._index(table)]

    def use(self, table: str, rows_RD: Tensor) -> None:
        """Looks up in other rows from now on.

        Raises:
            ConfigError: they have another shape.
        """
        index = self._index(table)
        if rows_RD.shape != self.rows[index].shape:
            raise ConfigError(
                f"the weight of table '{table}' was replaced by one of shape {tuple(rows_RD.shape)}; it must have "
                f"{tuple(self.rows[index].shape)}"
            )
        self.rows[index] = rows_RD

    def _index(self, table: str) -> int:
        return [shard.table.name for shard in self.shards].index(table)

    def weights(self) -> dict[str, Tensor]:
        return {shard.table.name: rows.detach() for shard, rows in zip(self.shards, self.rows, strict=True)}

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        return {shard.table.name: {} for shard in self.shards}

    def held_tensors(self) -> list[Tensor]:
        return list(self.rows)


def _refuse_impossible(spec: StoreSpec) -> None:
    cure = "give the tables an optimizer of their own, optimizer=RowOptimizer(name='rowwise_adagrad', lr=0.02)"
    if spec.tier.name != "device":
        raise ConfigError(
            f"rows on the tier '{spec.tier.name}' can't be parameters for an optimizer of the program, whose gradients "
            f"are as large as the tables; {cure}"
        )
    table = next((table for table in spec.tables if table.projection is not None), None)
    if table is not None:
        raise ConfigError(
            f"the method of table '{table.name}' puts rows on a grid after each update, so their optimizer must be the "
            f"tables'; {cure}"
        )
