"""Row storage in plain torch: the slow, obvious twin that the fast one is checked against.

It also serves where FBGEMM has no kernel (Adam on a CPU, rows wider than 2048). One parameter per table, one
`embedding_bag` per lookup, sparse gradients, one optimizer.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embank.tables.rows.base import RowOptimizer, RowStore, RowTier, padded_dim, rowwise_scale
from embank.tables.rows.mapped import mapped_tensor, sync_file
from embank.tables.specs import PhysicalTable

_STATES = {"sgd": (), "adagrad": ("sum",), "rowwise_adagrad": ("sum",), "adam": ("exp_avg", "exp_avg_sq")}


class TorchRows(RowStore):
    """Rows in torch parameters with sparse gradients; `update` applies them."""

    def __init__(
        self,
        tables: Sequence[PhysicalTable],
        *,
        lookups: Sequence[int],
        seed: int,
        optimizer: RowOptimizer,
        tier: RowTier,
    ) -> None:
        super().__init__(tables, lookups=lookups, optimizer=optimizer, tier=tier)
        self.parameters_by_table = nn.ParameterList()
        self.state: list[dict[str, Tensor]] = []
        self.lr = optimizer.lr
        self.num_updates = 0
        for table in self.tables:
            weight = self._allocate(table, "weights", (table.num_embeddings, table.embedding_dim))
            table.init.fill(weight, seed=seed, table=table.name)
            self.parameters_by_table.append(nn.Parameter(weight))
            rowwise = optimizer.name == "rowwise_adagrad"
            shape = (table.num_embeddings,) if rowwise else (table.num_embeddings, table.embedding_dim)
            self.state.append({name: self._allocate(table, name, shape) for name in _STATES[optimizer.name]})

    def _allocate(self, table: PhysicalTable, kind: str, shape: tuple[int, ...]) -> Tensor:
        if self.tier.name != "disk":
            return torch.zeros(shape)
        assert self.tier.directory is not None
        path = self.tier.directory / f"{table.name.replace('/', '-')}.{kind}.f32"
        return mapped_tensor(path, numel=torch.Size(shape).numel()).view(shape)

    def forward(self, indices: Tensor, offsets: Tensor) -> Tensor:
        num_bags = (offsets.numel() - 1) // len(self.lookups)
        bounds = offsets.tolist() if num_bags == 0 else offsets[::num_bags].tolist()
        outputs = []
        for k, table in enumerate(self.lookups):
            weight = self.parameters_by_table[table]
            if num_bags == 0:
                outputs.append(weight.new_zeros(0, weight.shape[1]))
                continue
            ids = indices[bounds[k] : bounds[k + 1]]
            part = offsets[k * num_bags : (k + 1) * num_bags + 1] - bounds[k]
            outputs.append(F.embedding_bag(ids, weight, part, mode="sum", sparse=True, include_last_offset=True))
        return torch.cat(outputs, dim=1)

    @torch.no_grad()
    def update(self) -> None:
        self.num_updates += 1
        for table, weight, state in zip(self.tables, self.parameters_by_table, self.state, strict=True):
            if weight.grad is None:
                continue
            grad = weight.grad.coalesce()
            self._update_rows(table, weight, state, grad.indices()[0], grad.values())
            weight.grad = None

    def _update_rows(
        self, table: PhysicalTable, weight: Tensor, state: dict[str, Tensor], rows_U: Tensor, grad_UD: Tensor
    ) -> None:
        lr, eps, name = self.lr, self.optimizer.eps, self.optimizer.name
        if name == "sgd":
            weight.index_add_(0, rows_U, grad_UD, alpha=-lr)
        elif name == "adagrad":
            sums_UD = state["sum"][rows_U] + grad_UD.square()
            state["sum"][rows_U] = sums_UD
            weight.index_add_(0, rows_U, grad_UD / (sums_UD.sqrt() + eps), alpha=-lr)
        elif name == "rowwise_adagrad":
            scale = rowwise_scale(table.embedding_dim)
            sums_U = state["sum"][rows_U] + grad_UD.square().sum(1) / padded_dim(table.embedding_dim)
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

    def load_step(self, step: int) -> None:
        self.num_updates = step

    def weights(self) -> dict[str, Tensor]:
        return {t.name: w.detach() for t, w in zip(self.tables, self.parameters_by_table, strict=True)}

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        return {t.name: dict(state) for t, state in zip(self.tables, self.state, strict=True)}

    def flush(self) -> None:
        if self.tier.name == "disk":
            assert self.tier.directory is not None
            for path in self.tier.directory.glob("*.f32"):
                sync_file(path)

    def held_tensors(self) -> list[Tensor]:
        return [*self.parameters_by_table, *(t for state in self.state for t in state.values())]
