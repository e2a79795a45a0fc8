"""Rows wider than FBGEMM's kernels take, in the host's memory."""

from torch import Tensor

from embank.tables.rows.native.passes import HeldTable, Passes, changed_rows, where_plain
from embank.tables.rows.store_spec import StoreSpec
from embank.tables.rows.torch_rows import TorchRows


class WideRows(TorchRows):
    """Rows as `TorchRows` holds them, looked up and updated by compiled code; without a compiler, and in graphs that
    torch follows, as `TorchRows` does it.

    Args:
        spec: what is held and how; fp32, with an optimizer of FBGEMM's.
    """

    passes: Passes | None = None

    def __init__(self, spec: StoreSpec) -> None:
        super().__init__(spec)
        held = [
            HeldTable(
                name=shard.table.name,
                weights=rows.view(-1),
                state=next((value.view(-1) for value in state.values()), None),
                num_rows=shard.num_rows,
                pitch=shard.num_columns,
                columns=shard.num_columns,
            )
            for shard, rows, state in zip(self.shards, self.rows, self.state, strict=True)
        ]
        self.is_projected = [shard.table.projection is not None for shard in self.shards]
        self.passes = Passes.of(held, self.lookups, self.optimizer, is_noted=any(self.is_projected))

    def forward(self, indices: Tensor, offsets: Tensor) -> Tensor:
        if (passes := where_plain(self.passes, indices)) is None:
            return super().forward(indices, offsets)
        self._before_lookup(indices)
        return passes.joined(indices, offsets)

    def parts(self, indices: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
        if (passes := where_plain(self.passes, indices)) is None:
            return super().parts(indices, offsets)
        self._before_lookup(indices)
        return passes.parts(indices, offsets)

    @property
    def is_pending(self) -> bool:
        return super().is_pending or (self.passes is not None and bool(self.passes.changed))

    def _finish(self) -> None:
        if self.passes is not None:
            for table, rows_U in changed_rows(self.passes.changed, self.lookups, self.is_projected).items():
                self.changed.setdefault(table, []).append(rows_U)
            self.passes.changed.clear()
        super()._finish()

    def set_lr(self, lr: float) -> None:
        super().set_lr(lr)
        if self.passes is not None:
            self.passes.lr = lr
