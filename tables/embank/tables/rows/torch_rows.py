"""Row storage in plain torch: the slow, obvious twin that the fast one is checked against.

It also serves where FBGEMM has no kernel (Adam on a CPU, rows wider than 2048). One parameter per table, one
`embedding_bag` per lookup, sparse gradients, one optimizer.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embank.tables.rows.base import RowOptimizer, RowStore, RowTier, padded_dim, rowwise_scale
from embank.tables.rows.space import RowSpace
from embank.tables.rows.warm import Warmer
from embank.tables.specs import TableShard

_STATES = {"sgd": (), "adagrad": ("sum",), "rowwise_adagrad": ("sum",), "adam": ("exp_avg", "exp_avg_sq")}


class TorchRows(RowStore):
    """Rows in torch parameters with sparse gradients; `update` applies them.

    Args:
        is_replica: gradients are dense, so that they can be averaged over processes; rows whose gradient is 0 throughout
            count as not looked up.
    """

    def __init__(
        self,
        shards: Sequence[TableShard],
        *,
        lookups: Sequence[int],
        seed: int,
        optimizer: RowOptimizer,
        tier: RowTier,
        is_replica: bool = False,
    ) -> None:
        super().__init__(shards, lookups=lookups, seed=seed, optimizer=optimizer, tier=tier)
        self.is_replica = is_replica
        self.parameters_by_table = nn.ParameterList()
        self.state: list[dict[str, Tensor]] = []
        self.lr = optimizer.lr
        self.space = RowSpace(tier)
        for shard in self.shards:
            name, size = shard.table.name, shard.num_rows * shard.num_columns
            weight = self.space.hold(f"{name}.weights", numel=size, chunks=shard.initial_chunks(seed=seed))
            weight_RD = weight.view(shard.num_rows, shard.num_columns)
            shard.scatter_initial(weight_RD, seed=seed)
            self.parameters_by_table.append(nn.Parameter(weight_RD))
            self.state.append({kind: self._state(shard, kind) for kind in _STATES[optimizer.name]})
        self.warmer = Warmer.of(self, self.space)

    def _state(self, shard: TableShard, kind: str) -> Tensor:
        rowwise = self.optimizer.name == "rowwise_adagrad"
        shape = (shard.num_rows,) if rowwise else (shard.num_rows, shard.num_columns)
        return self.space.hold(f"{shard.table.name}.{kind}", numel=torch.Size(shape).numel()).view(shape)

    def prefetch(self, indices: Tensor, offsets: Tensor) -> None:
        if self.warmer is not None:
            self.warmer.hint(indices, offsets)

    def forward(self, indices: Tensor, offsets: Tensor) -> Tensor:
        self.space.check()
        if self.warmer is not None:
            self.warmer.wait(indices)
        num_bags = (offsets.numel() - 1) // len(self.lookups)
        bounds = offsets.tolist() if num_bags == 0 else offsets[::num_bags].tolist()
        device = self.parameters_by_table[0].device
        indices, offsets = indices.to(device, non_blocking=True), offsets.to(device, non_blocking=True)
        outputs = []
        for k, table in enumerate(self.lookups):
            weight = self.parameters_by_table[table]
            if num_bags == 0:
                outputs.append(weight[:0] if self.is_replica else F.embedding(indices[:0], weight, sparse=True))
                continue
            ids = indices[bounds[k] : bounds[k + 1]]
            part = offsets[k * num_bags : (k + 1) * num_bags + 1] - bounds[k]
            outputs.append(
                F.embedding_bag(ids, weight, part, mode="sum", sparse=not self.is_replica, include_last_offset=True)
            )
        return torch.cat(outputs, dim=1)

    @torch.no_grad()
    def update(self) -> None:
        self.num_updates += 1
        for shard, weight, state in zip(self.shards, self.parameters_by_table, self.state, strict=True):
            if weight.grad is None:
                continue
            rows_U, grad_UD = self._touched(weight.grad)
            self.apply_gradient(shard, weight, state, rows_U, grad_UD)
            self.project(shard, weight, rows_U)
            weight.grad = None

    def _touched(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        if self.is_replica:
            rows_U = grad.any(1).nonzero().squeeze(1)
            return rows_U, grad[rows_U]
        grad = grad.coalesce()
        return grad.indices()[0], grad.values()

    @torch.no_grad()
    def apply_gradient(
        self, shard: TableShard, weight: Tensor, state: dict[str, Tensor], rows_U: Tensor, grad_UD: Tensor
    ) -> None:
        """One update of some rows, number `num_updates`.

        Args:
            shard: whose rows they are.
            weight: float [R, D], rows of the shard or a copy of some of them, on any device; written in place.
            state: their optimizer state by name, as `optimizer_state` has it; written in place.
            rows_U: distinct rows of `weight`.
            grad_UD: their gradients.
        """
        lr, eps, name = self.lr, self.optimizer.eps, self.optimizer.name
        if name == "sgd":
            weight.index_add_(0, rows_U, grad_UD, alpha=-lr)
        elif name == "adagrad":
            sums_UD = state["sum"][rows_U] + grad_UD.square()
            state["sum"][rows_U] = sums_UD
            weight.index_add_(0, rows_U, grad_UD / (sums_UD.sqrt() + eps), alpha=-lr)
        elif name == "rowwise_adagrad":
            scale = rowwise_scale(shard.num_columns)
            sums_U = state["sum"][rows_U] + grad_UD.square().sum(1) / padded_dim(shard.num_columns)
            state["sum"][rows_U] = sums_U
            weight.index_add_(0, rows_U, grad_UD / (sums_U.sqrt() + eps * scale)[:, None], alpha=-lr * scale)
        else:
            self._adam(weight, state, rows_U, grad_UD)

    def _adam(self, weight: Tensor, state: dict[str, Tensor], rows_U: Tensor, grad_UD: Tensor) -> None:
        beta1, beta2 = self.optimizer.betas
        mean_UD = state["exp_avg"][rows_U].lerp(grad_UD, 1 - beta1)
        square_UD = state["exp_avg_sq"][rows_U].lerp(grad_UD.square(), 1 - beta2)
        state["exp_avg"][rows_U], state["exp_avg_sq"][rows_U] = mean_UD, square_UD
        correction1, correction2 = 1 - beta1**self.num_updates, 1 - beta2**self.num_updates
        denominator_UD = square_UD.sqrt().add_(self.optimizer.eps)
        weight.index_add_(0, rows_U, mean_UD / denominator_UD, alpha=-self.lr * correction2**0.5 / correction1)

    def set_lr(self, lr: float) -> None:
        self.lr = lr

    def weights(self) -> dict[str, Tensor]:
        return {s.table.name: w.detach() for s, w in zip(self.shards, self.parameters_by_table, strict=True)}

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        return {s.table.name: dict(state) for s, state in zip(self.shards, self.state, strict=True)}

    def flush(self) -> None:
        self.space.flush()

    def held_tensors(self) -> list[Tensor]:
        return [*self.parameters_by_table, *(t for state in self.state for t in state.values())]
