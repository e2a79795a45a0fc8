"""The interface of row storage."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from embank.tables.ids.hashing import seed_of
from embank.tables.rows.held_bytes import distinct_nbytes
from embank.tables.rows.shards import TableShard
from embank.tables.rows.space import RowSpace
from embank.tables.rows.store_spec import StoreSpec

if TYPE_CHECKING:
    from embank.tables.rows.disk.prefetch import Prefetcher


class RowStore(nn.Module, ABC):
    """Rows of several physical tables (or of the parts of them that this process holds), looked up together with sum
    pooling.

    Rows are no parameters of the module: its own optimizer updates them, once for each backward pass that reaches a
    lookup. What a backward pass leaves to do (a projection, an update of what is on its way) is done by `update`, or at
    the latest before rows are looked up, read or saved again.

    Legend: S bags per lookup, K lookups, D_k width of lookup k's table.

    Args:
        spec: what is held and how. Its parts are attributes of the store.

    Attributes:
        space: what holds the rows; None where other stores do.
        prefetcher: of the space's files; None where there is nothing to fetch ahead.
    """

    space: RowSpace | None = None
    prefetcher: "Prefetcher | None" = None

    def __init__(self, spec: StoreSpec) -> None:
        super().__init__()
        self.spec = spec
        self.shards, self.lookups = tuple(spec.shards), tuple(spec.lookups)
        self.seed, self.optimizer, self.tier = spec.seed, spec.optimizer, spec.tier
        self.num_updates = 0
        self.is_counted = False  # the update that `update` is going to be called for

    @property
    def dims(self) -> list[int]:
        """Width of each lookup."""
        return self.spec.dims

    @abstractmethod
    def forward(self, indices: Tensor, offsets: Tensor) -> Tensor:
        """Sum-pooled rows.

        Args:
            indices: int64 [N], row ids, lookup after lookup, bag after bag.
            offsets: int64 [K * S + 1], where each bag starts in `indices`.

        Returns:
            [S, sum D_k], the lookups side by side. Backward updates the rows; several lookups of one backward pass one
            after the other.
        """

    def parts(self, indices: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
        """What `forward` returns, but one tensor [S, D_k] for each lookup: where a store has several kernels, nothing
        is copied."""
        split: tuple[Tensor, ...] = torch.split(self(indices, offsets), self.dims, dim=1)
        return split

    def prefetch(self, indices: Tensor, offsets: Tensor) -> None:
        """Says that `forward` will be called with these very tensors soon, in the order in which it is said. Never
        changes results.

        Args:
            indices, offsets: as `forward` takes them; not to be written to until then.

        Raises:
            WorkError: a file of the disk tier was cut.
        """
        if self.prefetcher is not None:
            self.prefetcher.prefetch(indices, offsets)

    def _before_lookup(self, indices: Tensor) -> None:
        """Rows are up to date and their pages there; to be called before indices are looked up in the space."""
        self.finish()
        if self.prefetcher is not None:
            self.prefetcher.wait(indices)

    def update(self) -> None:
        """Ends a training step: does what its backward pass has left to do, and counts the update."""
        if self.is_pending or not self.is_counted:
            if self.is_pending:
                self.check()
            self.num_updates += 1
            self._finish()
        self.is_counted = False

    def finish(self) -> None:
        """What `update` would do, where a training loop has not called it and rows are about to be used.

        Whoever hands out rows calls it first, so it is here that a file which was cut is noticed: touching what is
        missing would end the process without a word.

        Raises:
            WorkError: a file of the disk tier was cut.
        """
        self.check()
        if self.is_pending:
            self.num_updates += 1
            self._finish()
            self.is_counted = True

    @property
    @abstractmethod
    def is_pending(self) -> bool:
        """Whether a backward pass has left something to do."""

    @abstractmethod
    def _finish(self) -> None:
        """Does what backward passes have left to do, as update number `num_updates`."""

    @abstractmethod
    def set_lr(self, lr: float) -> None:
        """Sets the learning rate of the next update."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """Rows [R, D] of each physical table by name: views, not copies; writing to them changes the table, see
        `writing`."""

    def weight(self, table: str) -> Tensor:
        """The rows of one physical table, as `weights` has them."""
        return self.weights()[table]

    @abstractmethod
    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """Optimizer state by table and name: views, not copies. Row-wise Adagrad's is `sum` [R], see `padded_dim`."""

    @contextmanager
    def writing(self) -> Iterator[None]:
        """For changes in place of what `weights` and `optimizer_state` return.

            with rows.writing():
                rows.weight("item")[7] = 0

        What is on its way to the rows is there when the block begins, and what was fetched ahead of the change is not
        used after it. Nothing is looked up within the block.
        """
        self._land()
        try:
            yield
        finally:
            self._drop_prefetched()

    def _land(self) -> None:
        """Brings all updates to where rows are held."""
        self.finish()

    def _drop_prefetched(self) -> None:
        """Lets go of values that were fetched ahead; nothing to do where none are."""

    def load_step(self, step: int) -> None:
        """Tells how many updates have been made: Adam's bias correction and projections depend on it."""
        self.num_updates = step

    @torch.no_grad()
    def project(self, shard: TableShard, weight_RD: Tensor, rows_U: Tensor, *, numbers_U: Tensor | None = None) -> None:
        """Applies a table's projection to local rows that update number `num_updates` has just changed.

        Args:
            shard: whose rows they are.
            weight_RD: rows of the shard, or a copy of some of them; written in place.
            rows_U: which of `weight_RD` have changed.
            numbers_U: their numbers in the table, on its device; by default `rows_U` are local rows of the shard.
        """
        table = shard.table
        if table.projection is None or not rows_U.numel():
            return
        seed = seed_of(self.seed, "projection", table.name, self.num_updates)
        rows_U = rows_U.to(weight_RD.device)
        numbers_U = shard.row_numbers(rows_U) if numbers_U is None else numbers_U
        weight_RD[rows_U] = table.projection(weight_RD[rows_U], numbers_U, seed=seed)

    def check(self) -> None:
        """Raises WorkError if a file of the disk tier can no longer be used; to be asked before rows are read from
        views that `weights` gave earlier. Nothing to do elsewhere."""
        if self.space is not None:
            self.space.check()

    def flush(self) -> None:
        """Makes what is held durable (disk tier); nothing to do elsewhere.

        Raises:
            WorkError: a file was cut, or the disk reports an error.
        """
        self.finish()
        if self.space is not None:
            self.space.flush()

    def nbytes(self) -> int:
        """Bytes held, padding and optimizer state included."""
        return distinct_nbytes(self.held_tensors())

    @abstractmethod
    def held_tensors(self) -> list[Tensor]:
        """Every tensor that is really held for rows and their optimizer state, perhaps some of them twice."""


def padded_dim(dim: int) -> int:
    """Width of a row in FBGEMM: the next multiple of 4."""
    return -(-dim // 4) * 4


def rowwise_scale(dim: int) -> float:
    """What keeps row-wise Adagrad exact on padded rows.

    FBGEMM averages g**2 over the padded width P >= D, so its state is D / P of the textbook's. With k = sqrt(D / P),
    lr k g / (sqrt(s_P) + k eps) = lr g / (sqrt(s_D) + eps): the textbook's step, when both lr and eps are scaled by k.
    Both backends keep s_P, so that a checkpoint of one loads into the other.
    """
    return float((dim / padded_dim(dim)) ** 0.5)


def select_lookups(indices: Tensor, offsets: Tensor, positions: Sequence[int], num_bags: int) -> tuple[Tensor, Tensor]:
    """The part of (indices, offsets) that belongs to some lookups; a view of the indices where they are neighbours."""
    first, last = positions[0], positions[-1]
    if list(positions) == list(range(first, last + 1)):
        part = offsets[first * num_bags : (last + 1) * num_bags + 1]
        return indices[int(part[0]) : int(part[-1])], part - part[0]
    bounds = offsets[:: num_bags or 1].tolist() if num_bags else [0] * (max(positions) + 2)
    selected = torch.cat([indices[bounds[k] : bounds[k + 1]] for k in positions])
    lengths = torch.cat([offsets[k * num_bags : (k + 1) * num_bags + 1].diff() for k in positions])
    return selected, torch.cat([offsets.new_zeros(1), lengths.cumsum(0)])
