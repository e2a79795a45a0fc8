"""Row storage in FBGEMM's modules, optimizer fused into the backward pass.

In the host's memory embank's own compiled code looks rows up and updates them (`rows.native.passes`), all tables in one
pass. Where that can't be, FBGEMM's kernels do: on a GPU, without a compiler, in graphs that torch follows.

All their lookups go into one call where dims allow: FBGEMM wants widths that are multiples of 4, so odd widths are
padded with zeros, which stay zero, and sliced off. Row-wise Adagrad averages over the padded width; tables with
different ratios of real to padded width therefore get kernels of their own (see `rowwise_scale`). So does a table that
is looked up several times: as one lookup of so many times the bags, which FBGEMM does on a CPU in about half the time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from embank.tables.errors import ConfigError
from embank.tables.rows.base import RowStore, rowwise_scale, select_lookups
from embank.tables.rows.build import build_rows
from embank.tables.rows.composite import MixedRows
from embank.tables.rows.disk.prefetch import Prefetcher
from embank.tables.rows.fbgemm_kernel import OPTIMIZERS, FbgemmKernel
from embank.tables.rows.fbgemm_memory import placement
from embank.tables.rows.native.passes import Passes, changed_rows, where_plain
from embank.tables.rows.shards import TableShard
from embank.tables.rows.space import RowSpace
from embank.tables.rows.store_spec import StoreSpec
from embank.tables.rows.wide import WideRows

MAX_DIM = 2048
"""Columns that FBGEMM's kernels take. On a CPU some take more, some end the process."""

MAX_ROWS = 2**31 - 2


class FbgemmRows(RowStore):
    """Rows in FBGEMM, updated inside the backward pass.

    Args:
        spec: what is held and how; of tables of at most `MAX_DIM` columns, see `fbgemm_rows`.

    Raises:
        ConfigError: an optimizer without a CPU kernel (adam), a table of 2**31 - 1 rows or more.
    """

    def __init__(self, spec: StoreSpec) -> None:
        super().__init__(spec)
        _refuse_impossible(spec)
        self.space = RowSpace(spec.tier)
        groups = self._groups()
        self.kernels = nn.ModuleList()
        self.kernel_lookups: list[list[int]] = []
        for number, members in enumerate(groups):
            local = {table: i for i, table in enumerate(members)}
            positions = [k for k, table in enumerate(self.lookups) if table in local]
            self.kernel_lookups.append(positions)
            self.kernels.append(
                FbgemmKernel(
                    replace(
                        spec,
                        shards=[self.shards[t] for t in members],
                        lookups=[local[self.lookups[k]] for k in positions],
                    ),
                    space=self.space,
                    label=f"{self.shards[members[0]].table.name}.{number}",
                )
            )
        self.is_one_call = self.kernel_lookups == [list(range(len(self.lookups)))]
        self.passes: Passes | None = None
        if not spec.tier.on_gpu and self.lookups:
            held = {table.name: table for kernel in self._kernels() for table in kernel.held_tables()}
            in_order = [held[shard.table.name] for shard in self.shards]
            self.passes = Passes.of(in_order, self.lookups, self.optimizer, is_noted=any(_projected(self.shards)))
        self.prefetcher = Prefetcher.of(self, self.space)

    def _groups(self) -> list[list[int]]:
        """Tables that can share a kernel, in order of their first appearance."""
        groups: dict[tuple[float, int | None], list[int]] = {}
        for index, shard in enumerate(self.shards):
            scale = rowwise_scale(shard.num_columns) if self.optimizer.name == "rowwise_adagrad" else 1.0
            alone = index if self.lookups.count(index) > 1 else None
            groups.setdefault((scale, alone), []).append(index)
        return list(groups.values())

    def _kernels(self) -> Iterator[FbgemmKernel]:
        for kernel in self.kernels:
            assert isinstance(kernel, FbgemmKernel)
            yield kernel

    def forward(self, indices: Tensor, offsets: Tensor) -> Tensor:
        if (passes := where_plain(self.passes, indices)) is not None:
            self._before_lookup(indices)
            return passes.joined(indices, offsets)
        if not self.is_one_call:
            return torch.cat(self.parts(indices, offsets), dim=1)
        self._before_lookup(indices)
        result: Tensor = self.kernels[0](indices, offsets)
        return result

    def parts(self, indices: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
        self._before_lookup(indices)
        if (passes := where_plain(self.passes, indices)) is not None:
            return passes.parts(indices, offsets)
        if self.is_one_call:
            return next(self._kernels()).parts(indices, offsets)
        num_bags = (offsets.numel() - 1) // len(self.lookups)
        by_lookup: dict[int, Tensor] = {}
        for kernel, positions in zip(self._kernels(), self.kernel_lookups, strict=True):
            own = kernel.parts(*select_lookups(indices, offsets, positions, num_bags))
            by_lookup |= zip(positions, own, strict=True)
        return tuple(by_lookup[k] for k in range(len(self.lookups)))

    @property
    def is_pending(self) -> bool:
        is_left = self.passes is not None and bool(self.passes.changed)
        return is_left or any(kernel.changed for kernel in self._kernels())

    def _finish(self) -> None:
        """The backward pass has updated the rows; what is left is their projection."""
        owners = [(kernel.changed, kernel.shards, kernel.lookups) for kernel in self._kernels()]
        if self.passes is not None:
            owners.append((self.passes.changed, self.shards, list(self.lookups)))
        for changed, shards, lookups in owners:
            for table, rows_U in changed_rows(changed, lookups, _projected(shards)).items():
                kernel = next(kernel for kernel in self._kernels() if shards[table].table.name in kernel.numbers)
                self.project(shards[table], kernel.weights()[shards[table].table.name], rows_U)
            changed.clear()

    def set_lr(self, lr: float) -> None:
        if self.passes is not None:
            self.passes.lr = lr
        for kernel in self._kernels():
            kernel.tbe.set_learning_rate(lr * kernel.scale)

    def weights(self) -> dict[str, Tensor]:
        self.finish()
        return {name: view for kernel in self._kernels() for name, view in kernel.weights().items()}

    def weight(self, table: str) -> Tensor:
        self.finish()
        return next(kernel for kernel in self._kernels() if table in kernel.numbers).weight(table)

    def _land(self) -> None:
        self.finish()
        for kernel in self._kernels():
            kernel.empty_cache()

    def _drop_prefetched(self) -> None:
        for kernel in self._kernels():
            kernel.forget_cache()

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        self.finish()
        return {name: state for kernel in self._kernels() for name, state in kernel.optimizer_state().items()}

    def held_tensors(self) -> list[Tensor]:
        return [tensor for kernel in self._kernels() for tensor in kernel.held_tensors()]


def _projected(shards: Sequence[TableShard]) -> list[bool]:
    """Which of some tables have a projection."""
    return [shard.table.projection is not None for shard in shards]


def fbgemm_rows(spec: StoreSpec) -> RowStore:
    """A store of the backend "fbgemm". Tables wider than its kernels take are held as torch's operations update them.

    A kernel would have to take such rows in parts, each with a statistic of its own, where row-wise Adagrad's step
    needs the whole row.

    Raises:
        ConfigError: an optimizer without a CPU kernel (adam), a table of 2**31 - 1 rows or more.
    """
    wide = [index for index, shard in enumerate(spec.shards) if shard.num_columns > MAX_DIM]
    if not wide:
        return FbgemmRows(spec)
    _refuse_impossible(spec)
    by_torch = MixedRows.subset(spec, wide)
    others: RowStore = build_rows(replace(by_torch, backend="torch")) if spec.tier.on_gpu else WideRows(by_torch)
    narrow = [index for index in range(len(spec.shards)) if index not in wide]
    return MixedRows(spec, [FbgemmRows(MixedRows.subset(spec, narrow)), others]) if narrow else others


def _refuse_impossible(spec: StoreSpec) -> None:
    placement(spec.tier)
    if spec.optimizer.name not in OPTIMIZERS:
        raise ConfigError(
            f"the fbgemm backend has no '{spec.optimizer.name}' for rows here; use {', '.join(OPTIMIZERS)}, or "
            "backend='torch'"
        )
    if spec.tier.is_half and not spec.tier.on_gpu:
        raise ConfigError(
            f"rows are to be {spec.tier.dtype}; FBGEMM's kernels for a CPU train fp32 only (in fp16 they lose small "
            "updates, bf16 they don't have). Use backend='torch', or dtype 'fp32'"
        )
    spec.refuse_half_projected()
    for shard in spec.shards:
        if shard.num_rows > MAX_ROWS:
            raise ConfigError(
                f"table '{shard.table.name}' has {shard.num_rows:,} rows; the fbgemm backend takes at most "
                f"{MAX_ROWS:,}. Use a method that needs fewer rows, shard the table, or backend='torch'"
            )
