"""`SequenceCollection`: logical tables whose every id keeps its row, for the memory tables of language models.

Two inputs, two outputs, one lookup:

* a dict of id tensors [B, T, H] by group, for hashed n-grams (Engram, Cheng et al., arXiv 2601.07372) and token tables
  (STEM, arXiv 2601.10639): every token has exactly one id per table, so a tensor says it all, and the rows come as [B,
  T, sum D] without a copy. Column h of a group is looked up in the h-th table that names the group.
* a KeyedJaggedTensor, for histories of recommenders: each row has as many ids as it has, and a feature's ids are looked
  up in every table that names it. Rows come as JaggedTensors, as from `torchrec.EmbeddingCollection`.

`address` may be called earlier, in the data loader; `forward` takes either its result or plain ids, and gives the same.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torchrec import JaggedTensor, KeyedJaggedTensor

from embank.tables.collections.addressed import AddressedSequence, each_once, one_id_bags
from embank.tables.collections.bags import Bags, missing_ids, out_of_range
from embank.tables.collections.base import Tables, Use
from embank.tables.errors import ConfigError, DataError
from embank.tables.method.base import Method
from embank.tables.rows import RowOptimizer, RowStore, RowTier
from embank.tables.rows.store_spec import Backend
from embank.tables.specs import TableSpec

if TYPE_CHECKING:
    from embank.tables.sharding.sharded_rows import Sharding


class SequenceCollection(Tables):
    """Tables looked up without pooling: ids [B, T, H] in, rows [B, T, sum D] out, all groups in one call.

    The tables of a group are those that name it among their `feature_names`, in the order of the specs. Every id is a
    bag of its own with sum pooling, which is FBGEMM's vectorised path; its unpooled kernels update row by row through a
    hash map.

    All rows of a collection share one optimizer and learning rate (`set_lr`). Tables with another rate go into a
    collection of their own.

    Args:
        specs: the logical tables, each stored by any registered method; within a group dims may differ.
        seed: initial values depend on it and on the tables' names alone, so they equal those of a `TableCollection`.
        backend: "fbgemm" (fused updates) or "torch" (the slow twin; Adam).
        optimizer: how rows are updated.
        tier: where rows are held.
        sharding: spreads rows over processes; None holds them all here.
        dedupe: `address` looks every distinct physical row up once, and rows are spread to their ids afterwards. The
            same rows come out; sums of gradients may round differently. It pays where a row is dear to fetch; the
            kernels sum the gradients of repeated rows themselves, so on rows that lie in memory it costs more than it
            saves.

    Raises:
        ConfigError: no table, two tables of one name, mean pooling, or what methods and backends refuse.
        BudgetError: a budget below its method's floor.
    """

    plain_prefix: ClassVar[str] = "embeddings"

    def __init__(
        self,
        specs: Sequence[TableSpec],
        *,
        seed: int = 0,
        backend: Backend = "fbgemm",
        optimizer: RowOptimizer | None = None,
        tier: RowTier | None = None,
        sharding: "Sharding | None" = None,
        dedupe: bool = False,
    ) -> None:
        super().__init__(specs, seed=seed, backend=backend, optimizer=optimizer, tier=tier, sharding=sharding)
        self.dedupe = dedupe
        for spec in self.specs:
            if spec.pooling != "sum":
                raise ConfigError(
                    f"table '{spec.name}' has pooling '{spec.pooling}'; a SequenceCollection does not pool. "
                    "Leave it out, or use a TableCollection"
                )
        members: dict[str, list[Method]] = {}
        for method in self.built_methods():
            for group in method.spec.feature_names:
                members.setdefault(group, []).append(method)
        pairs = [(method, group) for group, methods in members.items() for method in methods]
        self.rows, self.uses = self._build(pairs, one_lookup_per_table=dedupe)
        self.groups = {group: tuple(use for use in self.uses if use.feature == group) for group in members}
        self.dims = {group: sum(use.method.spec.embedding_dim for use in uses) for group, uses in self.groups.items()}

    def address(self, ids: Mapping[str, Tensor] | KeyedJaggedTensor) -> AddressedSequence:
        """Physical rows of a batch: pure, and meant to run ahead of `forward`, on the loader's thread.

        Args:
            ids: by group, integers [B, T, H] of any layout, H the group's number of tables; or jagged ids by feature.
                Groups that no table names are ignored.

        Raises:
            IdRangeError: an id outside its table.
            DataError: a group is missing, has another shape, is not of integers, or carries weights.
        """
        lengths: dict[str, Tensor] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        columns: list[Tensor] = []  # ids [N] of each use
        if isinstance(ids, KeyedJaggedTensor):
            jagged = Bags(ids)
            for use in self.uses:
                ids_N, lengths[use.feature] = jagged.of(use.feature, spec=use.method.spec)
                shapes[use.feature] = (ids_N.numel(),)
                columns.append(ids_N)
        else:
            for group, uses in self.groups.items():
                if group not in ids:
                    raise missing_ids(group, table=uses[0].method.spec.name, present=ids)
                columns += _columns(ids[group], group=group, uses=uses)
                shapes[group] = tuple(ids[group].shape[:2])
        physical: list[Tensor] = []
        sides: dict[str, Tensor] = {}
        for use, ids_N in zip(self.uses, columns, strict=True):
            physical += use.method.address(ids_N)
            side = use.method.side(ids_N)
            if side is not None:
                sides[use.key] = side
        places = None
        if self.dedupe:
            physical, places = each_once(physical, [position for use in self.uses for position in use.positions])
        offsets, row_ids = torch.zeros(1, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
        if physical:
            bag_lengths = torch.cat(one_id_bags(physical))
            offsets, row_ids = torch.cat([offsets, bag_lengths.cumsum(0)]), torch.cat(physical)
        return AddressedSequence(
            row_ids=row_ids, offsets=offsets, places=places, sides=sides, shapes=shapes, lengths=lengths
        )

    def prefetch(self, addressed: AddressedSequence) -> None:
        """A hint that `forward` will be called with this batch soon, in the order of the hints. Never changes
        results."""
        if self.rows is not None:
            self.rows.prefetch(addressed.row_ids, addressed.offsets)

    def forward(
        self, ids: Mapping[str, Tensor] | KeyedJaggedTensor | AddressedSequence
    ) -> dict[str, Tensor] | dict[str, JaggedTensor]:
        """Logical rows, one per id.

        Args:
            ids: by group, or what `address` made of them.

        Returns:
            By group [B, T, sum D], tables side by side in their order. For jagged ids by feature ("feature@table" where
            several tables look it up): JaggedTensors with rows [N, D] and the input's lengths.
        """
        self._begin_pass()
        addressed = ids if isinstance(ids, AddressedSequence) else self.address(ids)
        blocks = self._blocks(addressed)
        if not addressed.lengths:
            joined = {group: self._joined(group, blocks[group], addressed) for group in addressed.shapes}
            ended = zip(addressed.shapes.items(), self._end_pass(list(joined.values())), strict=True)
            return {group: rows_NW.view(*shape, self.dims[group]) for (group, shape), rows_NW in ended}
        keyed = {
            (group, use.key): rows_ND
            for group, uses in self.groups.items()
            for use, rows_ND in zip(uses, self._combined(group, blocks[group], addressed), strict=True)
        }
        return {
            key: JaggedTensor(values=rows_ND, lengths=self.there(addressed.lengths[group]))
            for (group, key), rows_ND in zip(keyed, self._end_pass(list(keyed.values())), strict=True)
        }

    def _blocks(self, addressed: AddressedSequence) -> dict[str, Tensor]:
        """Physical rows [N, sum width] of each group's ids, lookups side by side."""
        sizes = {group: prod(shape) for group, shape in addressed.shapes.items()}
        if self.rows is None:
            return {group: torch.empty(size, 0, device=self.device) for group, size in sizes.items()}
        with torch.set_grad_enabled(self.rows_learn and torch.is_grad_enabled()):
            looked_up = self.rows(addressed.row_ids, addressed.offsets)
        if addressed.places is None:
            blocks = _split(looked_up, [sum(self._widths(group)) for group in self.groups])
            pairs = zip(self.groups, blocks, strict=True)
            return {group: block if len(block) == sizes[group] else block[: sizes[group]] for group, block in pairs}
        by_table = _split(looked_up, self.rows.dims)
        places = iter(addressed.places)
        spread = {}
        for group, uses in self.groups.items():
            rows = [by_table[k].index_select(0, self.there(next(places))) for use in uses for k in use.positions]
            spread[group] = torch.cat(rows, dim=1) if rows else torch.empty(sizes[group], 0, device=self.device)
        return spread

    def _widths(self, group: str) -> list[int]:
        """Width of each lookup of a group."""
        return [self.rows.dims[k] for use in self.groups[group] for k in use.positions] if self.rows is not None else []

    def _joined(self, group: str, block_NW: Tensor, addressed: AddressedSequence) -> Tensor:
        """Logical rows [N, sum D] of a group; where these lie side by side they are its physical rows, and nothing is
        copied."""
        if all(use.method.side_by_side for use in self.groups[group]):
            return block_NW
        return torch.cat(self._combined(group, block_NW, addressed), dim=1)

    def _combined(self, group: str, block_NW: Tensor, addressed: AddressedSequence) -> list[Tensor]:
        """Logical rows [N, D] of each table of a group."""
        lookups = iter(_split(block_NW, self._widths(group)))
        return [
            use.method.combine(tuple(next(lookups) for _ in use.positions), self.side_of(use, addressed.sides))
            for use in self.groups[group]
        ]

    @property
    def arguments(self) -> dict[str, Any]:
        """What a collection like this one is made with, besides specs and sharding."""
        return {**super().arguments, "dedupe": self.dedupe}

    def row_stores(self) -> list[RowStore]:
        """The row store, if there is a table with rows."""
        return [] if self.rows is None else [self.rows]


def _columns(ids_BTH: Tensor, *, group: str, uses: Sequence[Use]) -> list[Tensor]:
    """Ids int64 [B * T] of each of a group's tables, checked in one pass over all of them."""
    num_tables = len(uses)
    if ids_BTH.is_floating_point():
        raise DataError(f"ids of group '{group}' are {ids_BTH.dtype}; they must be integers")
    if ids_BTH.dim() != 3 or ids_BTH.shape[2] != num_tables:
        raise DataError(
            f"ids of group '{group}' have shape {tuple(ids_BTH.shape)}; give [B, T, {num_tables}], one id per token "
            "and table"
        )
    ids_HN = ids_BTH.reshape(-1, num_tables).t().long().contiguous()
    if ids_HN.numel():
        low_H, high_H = ids_HN.aminmax(dim=1)
        for use, low, high in zip(uses, low_H.tolist(), high_H.tolist(), strict=True):
            spec = use.method.spec
            if low < 0 or high >= spec.num_embeddings:
                raise out_of_range(
                    f"group '{group}'", low=low, high=high, table=spec.name, num_embeddings=spec.num_embeddings
                )
    return list(ids_HN.unbind(0))


def _split(rows_NW: Tensor, widths: Sequence[int]) -> Sequence[Tensor]:
    """Columns of each width; the tensor itself where there is one, which spares the backward pass a copy."""
    return [rows_NW] if len(widths) == 1 else torch.split(rows_NW, list(widths), dim=1)
