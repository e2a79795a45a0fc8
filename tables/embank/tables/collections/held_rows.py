"""The rows that a collection holds in this process, as methods see them between steps."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from embank.tables.method.base import Method
from embank.tables.method.local_rows import LocalRows
from embank.tables.method.schedule import is_last_stage
from embank.tables.rows.base import RowStore
from embank.tables.rows.physical import ROWS_PER_CHUNK
from embank.tables.rows.shards import TableShard

if TYPE_CHECKING:
    from embank.tables.collections.base import Tables


class HeldRows(LocalRows):
    """The rows that a collection holds in this process. A table's are fetched when it is asked for, since a store may
    have to finish what is on its way first.

    Use it as a context where rows may be written to: a store whose table was asked for is told so (`RowStore.writing`),
    the others are left alone. Rows of fewer bits are handed out as fp32 and written back when the context ends.

    Args:
        tables: the collection.
        copied: physical tables of which copies are handed out, which may be written to without changing the
            collection's rows.
    """

    def __init__(self, tables: "Tables", *, copied: Collection[str] = ()) -> None:
        self.stores = {shard.table.name: store for store in tables.row_stores() for shard in store.shards}
        self.shards = {shard.table.name: shard for store in tables.row_stores() for shard in store.shards}
        self.physical = {table.name: table for method in tables.built_methods() for table in method.physical}
        self.seed = tables.seed  # of initial values
        self.processes = tables.processes
        self.sharding = tables.sharding
        self.copied = frozenset(copied)
        self.views: dict[str, Tensor] = {}
        self.is_open = False
        self.open = ExitStack()  # of the stores that may be written to
        self.opened: set[RowStore] = set()
        self.widened: dict[str, Tensor] = {}  # to be written back

    def __enter__(self) -> Self:
        self.is_open = True
        return self

    @torch.no_grad()
    def __exit__(self, *error: object) -> None:
        self.is_open = False
        for table, values in self.widened.items():
            self.stores[table].weight(table).copy_(values)
        self.widened.clear()
        self.opened.clear()
        self.open.close()

    def __getitem__(self, table: str) -> Tensor:
        if table not in self.stores:
            return torch.empty(0, self.physical[table].embedding_dim, dtype=torch.float32)
        if table not in self.views:
            store = self.stores[table]
            if self.is_open and table not in self.copied and store not in self.opened:
                self.open.enter_context(store.writing())
                self.opened.add(store)
            view = store.weight(table)
            is_half = view.dtype != torch.float32
            self.views[table] = view.float() if is_half else view.clone() if table in self.copied else view
            if is_half and store in self.opened and table not in self.copied:
                self.widened[table] = self.views[table]
        return self.views[table]

    def row_numbers(self, table: str, first: int, last: int) -> Tensor:
        if table not in self.shards:
            return torch.arange(first, last)
        shard = self.shards[table]
        numbers = shard.row_numbers(torch.arange(first, last))
        return torch.where(numbers < shard.table.num_embeddings, numbers, -1)

    def find(self, table: str, rows_N: Tensor) -> tuple[Tensor, Tensor]:
        if table in self.shards:
            return self.shards[table].local_rows(rows_N)
        return rows_N[:0], rows_N[:0]

    def is_counted(self, table: str) -> bool:
        return self.sharding is None or self.processes.is_first or not self.sharding.is_replicated(table)

    def sum(self, values: Tensor) -> Tensor:
        return self.processes.sum(values)

    def initial(self, table: str, rows_N: Tensor) -> Tensor:
        """What some rows of a table began with; costs the drawing of the table from the first of them to the last."""
        physical, first = self.physical[table], int(rows_N.min()) // ROWS_PER_CHUNK * ROWS_PER_CHUNK
        num_rows = int(rows_N.max()) + 1 - first
        wanted = replace(TableShard.whole(physical), first_position=first, num_rows=num_rows)
        values, start = torch.empty(rows_N.numel(), physical.embedding_dim, dtype=torch.float32), first
        for chunk in wanted.initial_chunks(seed=self.seed):
            chosen = ((rows_N >= start) & (rows_N < start + len(chunk))).nonzero()[:, 0]
            values[chosen] = chunk[rows_N[chosen] - start]
            start += len(chunk)
        return values

    def gathered(self, table: str, rows_N: Tensor) -> Tensor:
        """Some rows of a table, wherever they are held; all processes ask for the same ones."""
        if self.sharding is None:
            return self[table][rows_N].cpu()
        parts = torch.zeros(rows_N.numel(), self.physical[table].embedding_dim, dtype=torch.float32)
        if table in self.shards and self.is_counted(table):
            shard = self.shards[table]
            held, local = shard.local_rows(rows_N)
            parts[held, shard.first_column : shard.first_column + shard.num_columns] = self[table][local].cpu()
        return self.processes.sum(parts)


def fp32_rows(tables: "Tables") -> dict[str, Tensor]:
    """The rows that a collection holds in this process, by physical table: views, and copies of those of fewer bits."""
    return {name: view.float() for name, view in tables.weights().items()}


@contextmanager
def writing(tables: "Tables") -> Iterator[None]:
    """`RowStore.writing` of all stores of a collection."""
    with ExitStack() as stack:
        for store in tables.row_stores():
            stack.enter_context(store.writing())
        yield


def by_class(tables: "Tables") -> dict[type[Method], list[Method]]:
    """The methods of a collection by their class, each list in the order of the specs."""
    groups: dict[type[Method], list[Method]] = {}
    for method in tables.built_methods():
        groups.setdefault(type(method), []).append(method)
    return groups


@torch.no_grad()
def settled_copies(tables: "Tables") -> dict[str, Tensor]:
    """Copies of the rows that `Schedule.settle` changes, settled, by physical table."""
    settled: dict[str, Tensor] = {}
    for methods in by_class(tables).values():
        schedule = methods[0].traits.schedule
        if schedule.settles and is_last_stage(methods[0]):
            rows = HeldRows(tables, copied=[table.name for method in methods for table in method.physical])
            schedule.settle(methods, rows)
            settled |= {name: rows[name] for name in rows.copied}
    return settled
