"""Row stores made of others."""

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from embank.tables.rows.base import RowStore, select_lookups
from embank.tables.rows.store_spec import StoreSpec

MAX_AHEAD = 32
"""Batches that `MixedRows` remembers to have been prefetched."""


class CompositeRows(RowStore):
    """A store whose rows lie in other stores: everything besides lookups."""

    @abstractmethod
    def parts_held(self) -> Iterator[RowStore]:
        """The stores. Each table is in one of them."""

    def _holder(self, table: str) -> RowStore:
        return next(s for s in self.parts_held() if any(shard.table.name == table for shard in s.shards))

    def update(self) -> None:
        self.num_updates += 1
        for store in self.parts_held():
            store.update()

    def finish(self) -> None:
        for store in self.parts_held():
            store.finish()

    @property
    def is_pending(self) -> bool:
        return any(store.is_pending for store in self.parts_held())

    def _finish(self) -> None:
        self.finish()

    def set_lr(self, lr: float) -> None:
        for store in self.parts_held():
            store.set_lr(lr)

    def load_step(self, step: int) -> None:
        super().load_step(step)
        for store in self.parts_held():
            store.load_step(step)

    def weights(self) -> dict[str, Tensor]:
        """Rows that this process holds, by physical table; tables of which it holds nothing are left out."""
        return {name: view for store in self.parts_held() for name, view in store.weights().items()}

    def weight(self, table: str) -> Tensor:
        return self._holder(table).weight(table)

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        return {name: state for store in self.parts_held() for name, state in store.optimizer_state().items()}

    @contextmanager
    def writing(self) -> Iterator[None]:
        with ExitStack() as stack:
            for store in self.parts_held():
                stack.enter_context(store.writing())
            yield

    def check(self) -> None:
        for store in self.parts_held():
            store.check()

    def flush(self) -> None:
        for store in self.parts_held():
            store.flush()

    def held_tensors(self) -> list[Tensor]:
        return [tensor for store in self.parts_held() for tensor in store.held_tensors()]


@dataclass(frozen=True, eq=False)
class _Prefetched:
    """A batch, and each store's part of it as the store was given it. It equals itself alone: tensors of other batches
    can't be compared with its own."""

    indices: Tensor
    offsets: Tensor
    parts: list[tuple[Tensor, Tensor]]


class MixedRows(CompositeRows):
    """Tables that need stores of different kinds, looked up together.

    Args:
        spec: what is held and how.
        stores: the stores; each of the spec's tables is in one of them, in the spec's order.
    """

    def __init__(self, spec: StoreSpec, stores: Sequence[RowStore]) -> None:
        super().__init__(spec)
        self.stores = nn.ModuleList(stores)
        names = [{shard.table.name for shard in store.shards} for store in stores]
        used = [self.shards[table].table.name for table in self.lookups]
        self.positions = [[k for k, name in enumerate(used) if name in held] for held in names]
        self.ahead: deque[_Prefetched] = deque(maxlen=MAX_AHEAD)

    @classmethod
    def subset(cls, spec: StoreSpec, tables: Sequence[int]) -> StoreSpec:
        """The spec of some of a spec's tables and their lookups."""
        local = {table: number for number, table in enumerate(tables)}
        lookups = [local[table] for table in spec.lookups if table in local]
        return replace(spec, shards=[spec.shards[table] for table in tables], lookups=lookups)

    def parts_held(self) -> Iterator[RowStore]:
        for store in self.stores:
            assert isinstance(store, RowStore)
            yield store

    def _asked(self) -> Iterator[tuple[RowStore, list[int]]]:
        """The stores that lookups go to, and which."""
        return ((store, own) for store, own in zip(self.parts_held(), self.positions, strict=True) if own)

    def _select(self, indices: Tensor, offsets: Tensor) -> list[tuple[Tensor, Tensor]]:
        num_bags = (offsets.numel() - 1) // len(self.lookups)
        return [select_lookups(indices, offsets, own, num_bags) for own in self.positions if own]

    def prefetch(self, indices: Tensor, offsets: Tensor) -> None:
        made = _Prefetched(indices, offsets, self._select(indices, offsets))
        self.ahead.append(made)
        for (store, _), part in zip(self._asked(), made.parts, strict=True):
            store.prefetch(*part)

    def forward(self, indices: Tensor, offsets: Tensor) -> Tensor:
        return torch.cat(self.parts(indices, offsets), dim=1)

    def parts(self, indices: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
        # Stores know a batch that was prefetched by its tensors, so they get those again.
        known = next((p for p in self.ahead if p.indices is indices and p.offsets is offsets), None)
        if known is not None:
            self.ahead.remove(known)
        selected = self._select(indices, offsets) if known is None else known.parts
        by_lookup: dict[int, Tensor] = {}
        for (store, own), part in zip(self._asked(), selected, strict=True):
            by_lookup |= zip(own, store.parts(*part), strict=True)
        return tuple(by_lookup[k] for k in range(len(self.lookups)))
