"""Row storage in plain torch: the slow, obvious twin that the fast one is checked against.

It also serves where FBGEMM has no kernel (Adam on a CPU, rows wider than 2048). One tensor per table, one
`embedding_bag` per lookup, sparse gradients, one optimizer, which runs inside the backward pass as FBGEMM's does.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embank.tables.ids.hashing import seed_of
from embank.tables.rows.base import RowStore, padded_dim, rowwise_scale
from embank.tables.rows.disk.prefetch import Prefetcher
from embank.tables.rows.rounding import noise, round_to
from embank.tables.rows.shards import TableShard
from embank.tables.rows.space import RowSpace
from embank.tables.rows.store_spec import StoreSpec

_STATES = {"sgd": (), "adagrad": ("sum",), "rowwise_adagrad": ("sum",), "adam": ("exp_avg", "exp_avg_sq")}


class TorchRows(RowStore):
    """Rows in torch tensors with sparse gradients, applied as soon as a backward pass has them.

    Args:
        spec: what is held and how.
        is_replica: rows are parameters with dense gradients, so that `DistributedDataParallel` can average these over
            processes, and `update` applies them. Rows whose gradient is 0 throughout count as not looked up.
    """

    def __init__(self, spec: StoreSpec, *, is_replica: bool = False) -> None:
        super().__init__(spec)
        spec.refuse_half_projected()
        self.is_replica = is_replica
        self.rows: list[Tensor] = []
        self.state: list[dict[str, Tensor]] = []
        # By table, rows that backward passes have updated and `_finish` has not seen.
        self.changed: dict[int, list[Tensor]] = {}
        self.lr = spec.optimizer.lr
        self.space: RowSpace = RowSpace(spec.tier)
        for shard in self.shards:
            name, size = shard.table.name, shard.num_rows * shard.num_columns
            chunks = shard.initial_chunks(seed=spec.seed)
            weight = self.space.hold(f"{name}.weights", numel=size, chunks=chunks, dtype=self.tier.torch_dtype)
            weight_RD = weight.view(shard.num_rows, shard.num_columns)
            shard.scatter_initial(weight_RD, seed=spec.seed)
            self.rows.append(weight_RD)
            self.state.append({kind: self._state(shard, kind) for kind in _STATES[spec.optimizer.name]})
        self.replicas = nn.ParameterList([nn.Parameter(rows) for rows in self.rows] if is_replica else [])
        self.prefetcher = Prefetcher.of(self, self.space)

    def _state(self, shard: TableShard, kind: str) -> Tensor:
        rowwise = self.optimizer.name == "rowwise_adagrad"
        shape = (shard.num_rows,) if rowwise else (shard.num_rows, shard.num_columns)
        return self.space.hold(f"{shard.table.name}.{kind}", numel=torch.Size(shape).numel()).view(shape)

    def forward(self, indices: Tensor, offsets: Tensor) -> Tensor:
        return torch.cat(self.parts(indices, offsets), dim=1)

    def parts(self, indices: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
        self._before_lookup(indices)
        num_bags = (offsets.numel() - 1) // len(self.lookups)
        bounds = offsets.tolist() if num_bags == 0 else offsets[::num_bags].tolist()
        device = self.rows[0].device
        indices, offsets = indices.to(device, non_blocking=True), offsets.to(device, non_blocking=True)
        ids = [indices[bounds[k] : bounds[k + 1]] if num_bags else indices[:0] for k in range(len(self.lookups))]
        weights, ids = self._widened(ids) if self.tier.is_half else (self._leaves(), ids)
        is_sparse, outputs = not self.is_replica and not self.tier.is_half, []
        for k, table in enumerate(self.lookups):
            weight = weights[table]
            if num_bags == 0:
                outputs.append(F.embedding(ids[k], weight, sparse=True) if is_sparse else weight[:0])
                continue
            part = offsets[k * num_bags : (k + 1) * num_bags + 1] - bounds[k]
            outputs.append(
                F.embedding_bag(ids[k], weight, part, mode="sum", sparse=is_sparse, include_last_offset=True)
            )
        return tuple(outputs)

    def _widened(self, ids: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Rows in fp32, where they are held in fewer bits: those that one lookup asks for, and where each id's is."""
        weights, found = [], list(ids)
        for table, rows in enumerate(self.rows):
            own = [k for k, used in enumerate(self.lookups) if used == table]
            asked = torch.cat([ids[k] for k in own]) if own else torch.zeros(0, dtype=torch.int64, device=rows.device)
            rows_U, local_N = torch.unique(asked, return_inverse=True)
            leaf = rows.data[rows_U].float()
            if torch.is_grad_enabled():
                leaf.requires_grad_()
                leaf.register_post_accumulate_grad_hook(partial(self._take_widened, table, rows_U))  # type: ignore[no-untyped-call]
            weights.append(leaf)
            for k, part in zip(own, local_N.split([ids[k].numel() for k in own]), strict=True):
                found[k] = part
        return weights, found

    @torch.no_grad()
    def _take_widened(self, table: int, rows_U: Tensor, leaf: Tensor) -> None:
        """Updates a table's rows by the gradient of what `_widened` has made of them."""
        assert leaf.grad is not None
        shard, rows, number = self.shards[table], self.rows[table], self.num_updates + 1
        values_UD, state = rows[rows_U].float(), {kind: value[rows_U] for kind, value in self.state[table].items()}
        every_U = torch.arange(rows_U.numel(), device=rows.device)
        self.apply_gradient(shard, values_UD, state, every_U, leaf.grad, number=number)
        leaf.grad = None
        for kind, value in state.items():
            self.state[table][kind][rows_U] = value
        rows[rows_U] = self.rounded(
            shard, values_UD, shard.row_numbers(rows_U.cpu() if shard.is_striped else rows_U), number=number
        )
        self.changed.setdefault(table, []).append(rows_U)

    def rounded(self, shard: TableShard, values_UD: Tensor, numbers_U: Tensor, *, number: int) -> Tensor:
        """Updated rows as they are held, where that is in fewer bits than they were updated in.

        Args:
            shard: whose rows they are.
            values_UD: float32.
            numbers_U: their numbers in the table.
            number: of the update, from 1.
        """
        seed = seed_of(self.seed, "rounding", shard.table.name, number)
        columns = slice(shard.first_column, shard.first_column + shard.num_columns)
        noise_UD = noise(numbers_U.to(values_UD.device), num_columns=shard.table.embedding_dim, seed=seed)[:, columns]
        return round_to(self.tier.torch_dtype, values_UD, noise_UD)

    def _leaves(self) -> list[Tensor]:
        """Rows as one lookup's graph begins with them. Views of their own: gradients of other lookups are not added to
        theirs."""
        if self.is_replica or not torch.is_grad_enabled():
            return list(self.replicas or self.rows)
        # Not `detach`: with a version counter in common, the update of one lookup would break the backward pass of
        # another.
        leaves = [rows.data.requires_grad_() for rows in self.rows]
        for table, leaf in enumerate(leaves):
            leaf.register_post_accumulate_grad_hook(partial(self._take_gradient, table))  # type: ignore[no-untyped-call]
        return leaves

    def _take_gradient(self, table: int, leaf: Tensor) -> None:
        """Updates a table's rows by the gradient of a leaf, which is complete."""
        self._update_table(table, leaf, number=self.num_updates + 1)

    @torch.no_grad()
    def _update_table(self, table: int, leaf: Tensor, *, number: int) -> None:
        assert leaf.grad is not None
        rows_U, grad_UD = self._touched(leaf.grad)
        leaf.grad = None
        self.apply_gradient(self.shards[table], self.rows[table], self.state[table], rows_U, grad_UD, number=number)
        self.changed.setdefault(table, []).append(rows_U)

    @property
    def is_pending(self) -> bool:
        return bool(self.changed) or any(replica.grad is not None for replica in self.replicas)

    def _finish(self) -> None:
        for table, replica in enumerate(self.replicas):
            if replica.grad is not None:
                self._update_table(table, replica, number=self.num_updates)
        for table, rows in self.changed.items():
            if self.shards[table].table.projection is not None:
                self.project(self.shards[table], self.rows[table], torch.unique(torch.cat(rows)))
        self.changed.clear()

    def _touched(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        if self.is_replica:
            rows_U = grad.any(1).nonzero().squeeze(1)
            return rows_U, grad[rows_U]
        grad = grad.coalesce()
        return grad.indices()[0], grad.values()

    @torch.no_grad()
    def apply_gradient(
        self,
        shard: TableShard,
        weight: Tensor,
        state: dict[str, Tensor],
        rows_U: Tensor,
        grad_UD: Tensor,
        *,
        number: int,
    ) -> None:
        """One update of some rows.

        Args:
            shard: whose rows they are.
            weight: float [R, D], rows of the shard or a copy of some of them, on any device; written in place.
            state: their optimizer state by name, as `optimizer_state` has it; written in place.
            rows_U: distinct rows of `weight`.
            grad_UD: their gradients.
            number: of the update, from 1.
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
            self._adam(weight, state, rows_U, grad_UD, number=number)

    def _adam(self, weight: Tensor, state: dict[str, Tensor], rows_U: Tensor, grad_UD: Tensor, *, number: int) -> None:
        beta1, beta2 = self.optimizer.betas
        mean_UD = state["exp_avg"][rows_U].lerp(grad_UD, 1 - beta1)
        square_UD = state["exp_avg_sq"][rows_U].lerp(grad_UD.square(), 1 - beta2)
        state["exp_avg"][rows_U], state["exp_avg_sq"][rows_U] = mean_UD, square_UD
        correction1, correction2 = 1 - beta1**number, 1 - beta2**number
        denominator_UD = square_UD.sqrt().add_(self.optimizer.eps)
        weight.index_add_(0, rows_U, mean_UD / denominator_UD, alpha=-self.lr * correction2**0.5 / correction1)

    def set_lr(self, lr: float) -> None:
        self.lr = lr

    def weights(self) -> dict[str, Tensor]:
        self.finish()
        return {shard.table.name: rows.detach() for shard, rows in zip(self.shards, self.rows, strict=True)}

    def weight(self, table: str) -> Tensor:
        self.finish()
        names = [shard.table.name for shard in self.shards]
        return self.rows[names.index(table)].detach()

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        self.finish()
        return {s.table.name: dict(state) for s, state in zip(self.shards, self.state, strict=True)}

    def held_tensors(self) -> list[Tensor]:
        return [*self.rows, *(t for state in self.state for t in state.values())]
