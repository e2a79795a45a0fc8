"""How ids of a batch become logical rows: pooled in the kernel, one by one, or each distinct row once.

A collection puts each of its methods on one path. A path has its own row store, says which rows a batch needs
(`address`, early), and makes logical rows of them (`forward`).

Legend: K lookups of a store, S bags of each, B bags of a batch, N ids of a feature.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from embank.tables.collections.addressed import Addressed, PathIds
from embank.tables.errors import ConfigError
from embank.tables.method.base import Combined, DistinctMethod, Method, combination
from embank.tables.rows import RowStore


class Use(NamedTuple):
    """One feature looked up in one table."""

    method: Method
    feature: str
    key: str  # of the output; "feature@table" where a feature is looked up in several tables
    positions: tuple[int, ...]  # of its lookups in the row store


class Ids(NamedTuple):
    """The ids of one use in a batch: int64 [N], bag after bag, and the bags' lengths [B], where there are bags."""

    ids_N: Tensor
    lengths_B: Tensor | None = None


class UseRows(NamedTuple):
    """What one use makes of its ids.

    Args:
        ids: the ids.
        rows: of each lookup, int64 [N].
        side: what is to be known of them besides; None where there is nothing, or where the path pools before
            `combine`.
    """

    ids: Ids
    rows: tuple[Tensor, ...]
    side: Tensor | None


class Asked(NamedTuple):
    """What a batch asks of a collection, use by use: nothing of it is refused any more.

    Args:
        uses: by the key of a use, what it makes of its ids.
        rest: what else the batch comes to, without paths.
    """

    uses: dict[str, UseRows]
    rest: Addressed


Losses = list[tuple[Method, Tensor]]
"""What methods add to the loss of a pass, use by use."""


class Pass(NamedTuple):
    """One forward pass of a collection.

    Args:
        rows_learn: whether the backward pass may update rows; otherwise they are looked up without a graph.
        losses: what methods add to the loss is put there.
    """

    rows_learn: bool
    losses: Losses

    def graph(self) -> torch.set_grad_enabled:
        """For the block that looks rows up."""
        return torch.set_grad_enabled(self.rows_learn and torch.is_grad_enabled())


class LookupPath(ABC):
    """A way from ids to logical rows, for some uses of tables.

    Args:
        store: rows of the methods' physical tables; None where they have none.
        uses: what is looked up, and where in the store.
        device: where logical rows come out.
    """

    pools: ClassVar[bool] = False
    """Whether `forward` gives pooled rows, one for each bag."""

    asks_once: ClassVar[bool] = False
    """Whether all uses of a table share one lookup, so that a batch asks for each of its rows once."""

    def __init__(self, store: RowStore | None, uses: Sequence[Use], *, device: torch.device) -> None:
        self.store = store
        self.uses = tuple(uses)
        self.device = device

    def address(self, ids: Mapping[str, Ids]) -> PathIds:
        """The rows that a batch needs: pure.

        Args:
            ids: by the key of a use, its ids.
        """
        return self.joined({use.key: self.use_rows(use, ids[use.key]) for use in self.uses})

    def use_rows(self, use: Use, ids: Ids) -> UseRows:
        """What one of the uses makes of its ids."""
        side = None if self.pools else use.method.side(ids.ids_N)
        return UseRows(ids, tuple(use.method.address(ids.ids_N)), side)

    @abstractmethod
    def joined(self, uses: Mapping[str, UseRows]) -> PathIds:
        """The rows of all uses of a batch, as the store looks them up.

        Args:
            uses: by the key of a use, what it makes of its ids.
        """

    @abstractmethod
    def forward(self, batch: PathIds, within: Pass) -> dict[str, Tensor]:
        """Logical rows by the key of a use: [B, D] where the path pools, else [N, D].

        Args:
            batch: what `address` made.
            within: the pass that it is part of.
        """

    @property
    def is_direct(self) -> bool:
        """Whether what the kernel looks up is the output already, side by side."""
        return False

    def prefetch(self, batch: PathIds) -> None:
        """Tells the store that `forward` will be called with this very batch. Never changes results."""
        if self.store is not None:
            self.store.prefetch(batch.row_ids, batch.offsets)

    def parts(self, batch: PathIds, within: Pass) -> tuple[Tensor, ...]:
        """Rows [S, width] of each lookup."""
        if self.store is None:
            return ()
        with within.graph():
            return self.store.parts(batch.row_ids, batch.offsets)

    def block(self, batch: PathIds, within: Pass) -> Tensor:
        """The same side by side, [S, sum width]: as the kernel leaves them, without a copy where there is one."""
        assert self.store is not None
        with within.graph():
            values: Tensor = self.store(batch.row_ids, batch.offsets)
        return values

    def combined(self, use: Use, rows: tuple[Tensor, ...], batch: PathIds, within: Pass) -> Tensor:
        """What a method makes of its rows."""
        return taken(use.method, use.method.combine(rows, self.side(use, batch)), within)

    def _rows(self, uses: Mapping[str, UseRows]) -> list[Tensor]:
        """Row ids [N] of each lookup of each use."""
        return [rows_N for use in self.uses for rows_N in uses[use.key].rows]

    def _sides(self, uses: Mapping[str, UseRows]) -> dict[str, Tensor]:
        """What is to be known besides, by the key of a use that has it."""
        return {use.key: side for use in self.uses if (side := uses[use.key].side) is not None}

    def _num_ids(self, uses: Mapping[str, UseRows]) -> list[int]:
        return [uses[use.key].ids.ids_N.numel() for use in self.uses]

    def side(self, use: Use, batch: PathIds) -> Tensor | None:
        """What `side` said of a use's ids, on the device."""
        return self.moved(batch.sides[use.key]) if use.key in batch.sides else None

    def moved(self, tensor: Tensor) -> Tensor:
        """A tensor on the device; from pinned memory without waiting for the copy."""
        return tensor.to(self.device, non_blocking=True)


class PooledPath(LookupPath):
    """Bags are summed in the lookup kernel, before `combine`: for methods that are linear in their rows."""

    pools: ClassVar[bool] = True

    @property
    def is_direct(self) -> bool:
        return all(combination(u.method) == "side by side" and u.method.spec.pooling == "sum" for u in self.uses)

    def joined(self, uses: Mapping[str, UseRows]) -> PathIds:
        lengths: list[Tensor] = []
        means: dict[str, Tensor] = {}
        for use in self.uses:
            own = uses[use.key]
            lengths_B = own.ids.lengths_B
            assert lengths_B is not None
            lengths += [lengths_B] * len(own.rows)
            if use.method.spec.pooling == "mean":
                means[use.key] = lengths_B
        lengths_S = torch.cat(lengths) if lengths else torch.empty(0, dtype=torch.int64)
        offsets = torch.zeros(lengths_S.numel() + 1, dtype=torch.int64)
        torch.cumsum(lengths_S, 0, out=offsets[1:])
        return PathIds(row_ids=_joined(self._rows(uses)), offsets=offsets, num_ids=self._num_ids(uses), lengths=means)

    def forward(self, batch: PathIds, within: Pass) -> dict[str, Tensor]:
        rows = self.parts(batch, within)
        outputs = {}
        for use in self.uses:
            out_BD = self.combined(use, tuple(rows[k] for k in use.positions), batch, within)
            if use.key in batch.lengths:
                out_BD = out_BD / self.moved(batch.lengths[use.key]).clamp(min=1)[:, None]
            outputs[use.key] = out_BD
        return outputs


class PerIdPath(LookupPath):
    """Every id is a bag of its own, so that pooling can come after `combine`."""

    @property
    def is_direct(self) -> bool:
        return all(combination(use.method) == "side by side" for use in self.uses)

    def joined(self, uses: Mapping[str, UseRows]) -> PathIds:
        rows = self._rows(uses)
        return PathIds(
            row_ids=_joined(rows),
            offsets=one_id_offsets(rows),
            num_ids=self._num_ids(uses),
            sides=self._sides(uses),
        )

    def forward(self, batch: PathIds, within: Pass) -> dict[str, Tensor]:
        rows = self.parts(batch, within)
        outputs = {}
        for use, num_ids in zip(self.uses, batch.num_ids, strict=True):
            own = tuple(rows[k] if len(rows[k]) == num_ids else rows[k][:num_ids] for k in use.positions)
            outputs[use.key] = self.combined(use, own, batch, within)
        return outputs


class DistinctPath(LookupPath):
    """Each distinct row of a batch is looked up once, and spread to its ids afterwards."""

    asks_once: ClassVar[bool] = True

    def joined(self, uses: Mapping[str, UseRows]) -> PathIds:
        distinct, places = each_once(self._rows(uses), [k for use in self.uses for k in use.positions])
        return PathIds(
            row_ids=_joined(distinct),
            offsets=one_id_offsets(distinct),
            num_ids=self._num_ids(uses),
            places=places,
            sides=self._sides(uses),
        )

    def forward(self, batch: PathIds, within: Pass) -> dict[str, Tensor]:
        rows = self.parts(batch, within)
        places = iter(batch.places)
        outputs = {}
        for use in self.uses:
            own = tuple(rows[k] for k in use.positions)
            spread = [next(places) for _ in use.positions]
            if isinstance(use.method, DistinctMethod):
                result = use.method.combine_distinct(own, self.moved(torch.stack(spread)), self.side(use, batch))
                outputs[use.key] = taken(use.method, result, within)
            else:
                each = tuple(rows_UW.index_select(0, self.moved(at)) for rows_UW, at in zip(own, spread, strict=True))
                outputs[use.key] = self.combined(use, each, batch, within)
        return outputs


PATHS: dict[str, type[LookupPath]] = {"pooled": PooledPath, "per id": PerIdPath, "distinct": DistinctPath}


def choose_paths(methods: Sequence[Method]) -> dict[str, str]:
    """By table, the name of its path in a collection that pools.

    A table whose rows are to be seen before they are pooled (`TableSpec.fused_pooling`), or have weights, goes one by
    one, and so do those that share its rows.
    """
    apart = [method for method in methods if method.spec.weighted or not method.spec.fused_pooling]
    late = {table.name for method in apart for table in method.physical}
    while True:
        names = [{table.name for table in method.physical} for method in methods]
        reached = late.union(*(own for own in names if own & late))
        if reached == late:
            break
        late = reached
    return {method.spec.name: _path_of(method, late) for method in methods}


def _path_of(method: Method, late: set[str]) -> str:
    if isinstance(method, DistinctMethod):
        return "distinct"
    if combination(method) == "freely" or late & {table.name for table in method.physical}:
        return "per id"
    return "pooled"


def taken(method: Method, result: Tensor | Combined, within: Pass) -> Tensor:
    """The logical rows that a method has made; what it adds to the loss goes to the others'.

    Raises:
        ConfigError: rows of another width than the table's, or a loss that nobody would add.
    """
    if isinstance(result, Combined):
        _refuse_unheard(method, result.loss)
        within.losses.append((method, result.loss))
        rows_ND = result.rows_ND
    else:
        rows_ND = result
    if rows_ND.dim() != 2 or rows_ND.shape[1] != method.spec.embedding_dim:
        raise ConfigError(
            f"table '{method.spec.name}': method '{method.spec.method}': combine gives rows of shape "
            f"{list(rows_ND.shape)}, but the table has embedding_dim {method.spec.embedding_dim}; mend combine"
        )
    return rows_ND


def _refuse_unheard(method: Method, loss: Tensor) -> None:
    """Raises ConfigError where what `combine` adds to the loss is not declared, or no single number."""
    who = f"table '{method.spec.name}': method '{method.spec.method}': combine adds"
    if not method.traits.adds_loss:
        raise ConfigError(f"{who} to the loss, which its traits do not say; give traits = Traits(adds_loss=True)")
    if not isinstance(loss, Tensor) or loss.dim():
        what = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise ConfigError(f"{who} {what} to the loss; give a tensor of one number, such as a mean over the ids")


def _joined(rows: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(rows)) if rows else torch.empty(0, dtype=torch.int64)


def one_id_offsets(rows: Sequence[Tensor]) -> Tensor:
    """Offsets of a bag for every id of every lookup, filled up with empty bags to the longest."""
    longest = max((t.numel() for t in rows), default=0)
    return torch.cat([torch.zeros(1, dtype=torch.int64), *_cumulated(rows, longest)])


def _cumulated(rows: Sequence[Tensor], longest: int) -> Iterator[Tensor]:
    steps, first = torch.arange(1, longest + 1), 0
    for rows_N in rows:
        yield first + steps.clamp(max=rows_N.numel())
        first += rows_N.numel()


def each_once(row_ids: Sequence[Tensor], lookups: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Each row of a batch once.

    Args:
        row_ids: rows of a physical table for each of several uses.
        lookups: the lookup in the row store that each use shares with the others of its table; every lookup has a use.

    Returns:
        Distinct rows of each lookup, ascending; and for each use where its rows are among them.
    """
    by_lookup: dict[int, list[int]] = {}
    for number, lookup in enumerate(lookups):
        by_lookup.setdefault(lookup, []).append(number)
    distinct = []
    places = list(row_ids)
    for _, numbers in sorted(by_lookup.items()):
        rows_U, inverse = torch.unique(torch.cat([row_ids[n] for n in numbers]), return_inverse=True)
        distinct.append(rows_U)
        for number, place in zip(numbers, inverse.split([row_ids[n].numel() for n in numbers]), strict=True):
            places[number] = place
    return distinct, places


def pool(rows_ND: Tensor, offsets: Tensor, *, pooling: str) -> Tensor:
    """Rows of each bag to one: their sum or mean, zeros for an empty bag.

    Args:
        rows_ND: logical rows, bag after bag.
        offsets: int64 [B + 1], best in host memory: they are read.

    Returns:
        [B, D].
    """
    lengths = offsets.diff()
    if rows_ND.shape[0] == lengths.numel() and bool((lengths == 1).all()):
        return rows_ND
    return summed(rows_ND, lengths.to(rows_ND.device, non_blocking=True), pooling=pooling)


def summed(rows_ND: Tensor, lengths_B: Tensor, *, pooling: str) -> Tensor:
    """The same of the bags' lengths, where the rows are, without a look at them: what `torch.export` can follow."""
    bags = torch.arange(lengths_B.shape[0], device=lengths_B.device)
    bags_N = torch.repeat_interleave(bags, lengths_B, output_size=rows_ND.shape[0])
    pooled_BD = rows_ND.new_zeros(lengths_B.shape[0], rows_ND.shape[1]).index_add(0, bags_N, rows_ND)
    return pooled_BD / lengths_B.clamp(min=1)[:, None] if pooling == "mean" else pooled_BD
