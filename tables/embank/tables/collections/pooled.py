"""`TableCollection`: logical tables behind the interface of `torchrec.EmbeddingBagCollection`.

KeyedJaggedTensor in, KeyedTensor out. `address` may be called earlier, in the data loader; `forward` takes either its
result or plain ids, and gives the same.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor, KeyedTensor

from embank.tables.collections.addressed import Addressed, each_once, one_id_bags
from embank.tables.collections.bags import Bags, bag_configs
from embank.tables.collections.base import Tables
from embank.tables.errors import ConfigError
from embank.tables.method.base import Method
from embank.tables.rows import RowOptimizer, RowStore, RowTier
from embank.tables.rows.store_spec import Backend
from embank.tables.specs import TableSpec

if TYPE_CHECKING:
    from embank.tables.sharding.sharded_rows import Sharding


class TableCollection(Tables):
    """Tables for several features, each stored by its own method. A drop-in for `torchrec.EmbeddingBagCollection`.

    Args:
        specs: the logical tables; output columns come in this order, and within a table in the order of its features.
        seed: initial values depend on it and on the tables' names alone.
        backend: "fbgemm" (fused updates) or "torch" (the slow twin; Adam).
        optimizer: how rows are updated.
        tier: where rows are held.
        sharding: spreads rows over processes; None holds them all here.

    Raises:
        ConfigError: no table, two tables of one name, or what methods and backends refuse.
        BudgetError: a budget below its method's floor.
    """

    plain_prefix: ClassVar[str] = "embedding_bags"

    def __init__(
        self,
        specs: Sequence[TableSpec],
        *,
        seed: int = 0,
        backend: Backend = "fbgemm",
        optimizer: RowOptimizer | None = None,
        tier: RowTier | None = None,
        sharding: "Sharding | None" = None,
    ) -> None:
        super().__init__(specs, seed=seed, backend=backend, optimizer=optimizer, tier=tier, sharding=sharding)
        uses = [(method, feature) for method in self.built_methods() for feature in method.spec.feature_names]
        late = _pooled_late(list(self.built_methods()))
        kinds = {m.spec.name: _kind(m, late) for m in self.built_methods()}
        self.pooled_rows, self.pooled_uses = self._build((m, f) for m, f in uses if kinds[m.spec.name] == "pooled")
        self.per_id_rows, self.per_id_uses = self._build((m, f) for m, f in uses if kinds[m.spec.name] == "per id")
        self.distinct_rows, self.distinct_uses = self._build(
            ((m, f) for m, f in uses if kinds[m.spec.name] == "distinct"), one_lookup_per_table=True
        )
        self._refuse_split_tables()
        by_key = {use.key: use for use in (*self.pooled_uses, *self.per_id_uses, *self.distinct_uses)}
        self.keys = [self._key(spec, feature) for spec in self.specs for feature in spec.feature_names]
        self.dims = [by_key[key].method.spec.embedding_dim for key in self.keys]
        self.num_columns = sum(self.dims)

    def _refuse_split_tables(self) -> None:
        """Methods that look up in another way (see `Method.linear`, `Method.asks_once`) keep their rows apart, so they
        can't share a physical table."""
        names = [shard.table.name for rows in self.row_stores() for shard in rows.shards]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(
                    "a method that is linear in its rows and one that is not both declare the physical table "
                    f"'{name}'; give one of them another name"
                )

    def address(self, features: KeyedJaggedTensor) -> Addressed:
        """Physical row ids of a batch: pure, and meant to run ahead of `forward`, on the loader's thread.

        Args:
            features: ids by feature, unweighted; keys that no table uses are ignored.

        Raises:
            IdRangeError: an id outside its table.
            DataError: a feature is missing, or the ids carry weights.
        """
        batch = Bags(features)
        bags: dict[str, Tensor] = {}
        mean_lengths: dict[str, Tensor] = {}
        pooled_ids, pooled_lengths = [], []
        for use in self.pooled_uses:
            ids, length = batch.of(use.feature, spec=use.method.spec)
            for physical in use.method.address(ids):
                pooled_ids.append(physical)
                pooled_lengths.append(length)
            if use.method.spec.pooling == "mean":
                mean_lengths[use.key] = length
        per_id: list[Tensor] = []
        repeated: list[Tensor] = []
        sides: dict[str, Tensor] = {}
        for uses, row_ids in ((self.per_id_uses, per_id), (self.distinct_uses, repeated)):
            for use in uses:
                ids, length = batch.of(use.feature, spec=use.method.spec)
                row_ids += use.method.address(ids)
                side = use.method.side(ids)
                if side is not None:
                    sides[use.key] = side
                bags[use.key] = torch.cat([length.new_zeros(1, dtype=torch.int64), length.cumsum(0)])
        distinct, place_of = each_once(repeated, [k for use in self.distinct_uses for k in use.positions])
        places = iter(place_of)
        return Addressed(
            pooled=self._jagged(pooled_ids, pooled_lengths),
            per_id=self._jagged(per_id, one_id_bags(per_id)),
            distinct=self._jagged(distinct, one_id_bags(distinct)),
            places={use.key: torch.stack([next(places) for _ in use.positions]) for use in self.distinct_uses},
            bags=bags,
            sides=sides,
            lengths=mean_lengths,
            batch_size=batch.batch_size,
        )

    def prefetch(self, addressed: Addressed) -> None:
        """A hint that `forward` will be called with this very batch soon, in the order of the hints; results stay the
        same.

        On the disk tier a thread reads the rows' pages ahead (unless `RowTier.prefetch` is off). Where rows are
        sharded, ids
        travel to the processes that hold them: all must call this together, on the thread that calls `forward`.
        """
        stores = (self.pooled_rows, self.per_id_rows, self.distinct_rows)
        for rows, jagged in zip(stores, (addressed.pooled, addressed.per_id, addressed.distinct), strict=True):
            if rows is not None and jagged is not None:
                rows.prefetch(jagged.values(), jagged.offsets())

    def announce(self, features: KeyedJaggedTensor) -> Addressed:
        """What a data loader's thread does with a batch that is going to be trained on: `address`, and `prefetch` where
        it may."""
        addressed = self.address(features)
        if self.tier.on_gpu:
            addressed = addressed.pin_memory()
        if self.sharding is None:
            self.prefetch(addressed)
        return addressed

    @staticmethod
    def _jagged(ids: list[Tensor], lengths: list[Tensor]) -> KeyedJaggedTensor | None:
        if not ids:
            return None
        keys = [f"lookup{k}" for k in range(len(ids))]
        lengths_KS = torch.cat(lengths)
        offsets = torch.zeros(lengths_KS.numel() + 1, dtype=torch.int64)
        torch.cumsum(lengths_KS, 0, out=offsets[1:])
        return KeyedJaggedTensor(
            keys=keys, values=torch.cat(ids), lengths=lengths_KS, offsets=offsets, stride=lengths[0].numel()
        )

    def forward(self, features: KeyedJaggedTensor | Addressed) -> KeyedTensor:
        """Pooled logical rows: keys are the features, values [B, sum D].

        Args:
            features: ids by feature, or what `address` made of them.
        """
        return self.look_up(features)[0]

    def look_up(self, features: KeyedJaggedTensor | Addressed) -> tuple[KeyedTensor, dict[str, Tensor]]:
        """What `forward` returns, and by output key the logical rows [N, D] of the feature's ids, bag after bag, before
        pooling.

        Only the lookups in `keys_per_id` have such rows: of methods that are not linear in their rows, and of tables
        with `fused_pooling=False`.
        """
        self._begin_pass()
        addressed = features if isinstance(features, Addressed) else self.address(features)
        per_id: dict[str, Tensor] = {}
        if self._is_direct:
            values = self._look_up(self.pooled_rows, addressed.pooled)
        else:
            per_id = {**self._per_id(addressed), **self._distinct(addressed)}
            outputs = self._pooled(addressed)
            for use in (*self.per_id_uses, *self.distinct_uses):
                pooling = use.method.spec.pooling
                outputs[use.key] = pool(per_id[use.key], addressed.bags[use.key], pooling=pooling)
            values = torch.cat([outputs[key] for key in self.keys], dim=1)
            if values.shape[1] != self.num_columns:
                raise self._wrong_width(outputs)
        (values,) = self._end_pass([values])
        return KeyedTensor(keys=list(self.keys), length_per_key=list(self.dims), values=values), per_id

    def _wrong_width(self, outputs: Mapping[str, Tensor]) -> ConfigError:
        """The error about a method whose logical rows are not as wide as its table."""
        pairs = zip(self.keys, self.dims, strict=True)
        key, dim = next((key, dim) for key, dim in pairs if outputs[key].shape[1] != dim)
        return ConfigError(
            f"the method of '{key}' combines rows of {outputs[key].shape[1]} columns, but its table has embedding_dim "
            f"{dim}; mend its `combine`"
        )

    @property
    def keys_per_id(self) -> frozenset[str]:
        """Output keys whose rows `look_up` shows before they are pooled."""
        return frozenset(use.key for use in (*self.per_id_uses, *self.distinct_uses))

    @property
    def _is_direct(self) -> bool:
        """The row store's output is the collection's: every method linear and its rows side by side, every pooling a
        sum."""
        return (
            len(self.pooled_uses) == len(self.keys)
            and all(use.method.side_by_side for use in self.pooled_uses)
            and all(spec.pooling == "sum" for spec in self.specs)
        )

    def _parts(self, rows: RowStore, ids: KeyedJaggedTensor | None) -> tuple[Tensor, ...]:
        """Rows [S, width] of each lookup."""
        assert ids is not None
        with torch.set_grad_enabled(self.rows_learn and torch.is_grad_enabled()):
            return rows.parts(ids.values(), ids.offsets())

    def _look_up(self, rows: RowStore | None, ids: KeyedJaggedTensor | None) -> Tensor:
        """The same, side by side."""
        assert rows is not None
        assert ids is not None
        with torch.set_grad_enabled(self.rows_learn and torch.is_grad_enabled()):
            looked_up: Tensor = rows(ids.values(), ids.offsets())
        return looked_up

    def _pooled(self, addressed: Addressed) -> dict[str, Tensor]:
        if self.pooled_rows is None:
            return {}
        rows = self._parts(self.pooled_rows, addressed.pooled)
        outputs = {}
        for use in self.pooled_uses:
            out = use.method.combine(tuple(rows[k] for k in use.positions), None)
            if use.method.spec.pooling == "mean":
                out = out / self.there(addressed.lengths[use.key]).clamp(min=1)[:, None]
            outputs[use.key] = out
        return outputs

    def _per_id(self, addressed: Addressed) -> dict[str, Tensor]:
        """Logical rows [N, D] of the ids of each use."""
        rows: tuple[Tensor, ...] = ()
        if self.per_id_rows is not None:
            rows = self._parts(self.per_id_rows, addressed.per_id)
        outputs = {}
        for use in self.per_id_uses:
            num_ids = int(addressed.bags[use.key][-1])
            own = tuple(rows[k] if len(rows[k]) == num_ids else rows[k][:num_ids] for k in use.positions)
            outputs[use.key] = use.method.combine(own, self.side_of(use, addressed.sides))
        return outputs

    def _distinct(self, addressed: Addressed) -> dict[str, Tensor]:
        """The same, of the methods that ask for each row once."""
        if self.distinct_rows is None:
            return {}
        rows = self._parts(self.distinct_rows, addressed.distinct)
        outputs = {}
        for use in self.distinct_uses:
            own = tuple(rows[k] for k in use.positions)
            places_LN = self.there(addressed.places[use.key])
            outputs[use.key] = use.method.combine_distinct(own, places_LN, self.side_of(use, addressed.sides))
        return outputs

    def row_stores(self) -> list[RowStore]:
        """The row stores that are in use: at most one for linear methods, one for those that ask for rows once, one for
        the others."""
        stores = (self.pooled_rows, self.per_id_rows, self.distinct_rows)
        return [rows for rows in stores if rows is not None]

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """The logical tables as TorchRec describes them: its own models read this."""
        return bag_configs(self.specs)

    def is_weighted(self) -> bool:
        """False: ids carry no weights."""
        return False


def _pooled_late(methods: Sequence[Method]) -> set[str]:
    """Physical tables whose rows are shown before they are pooled: those of tables that ask for it, and those that
    share with them."""
    late = {table.name for method in methods if not method.spec.fused_pooling for table in method.physical}
    while True:
        names = [{table.name for table in method.physical} for method in methods]
        reached = late.union(*(own for own in names if own & late))
        if reached == late:
            return late
        late = reached


def _kind(method: Method, late: set[str]) -> Literal["pooled", "per id", "distinct"]:
    """How the rows of a method are looked up: pooled in the kernel, per id, or each distinct row of a batch once."""
    if not method.linear:
        return "distinct" if method.asks_once else "per id"
    return "per id" if late & {table.name for table in method.physical} else "pooled"


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
    lengths = lengths.to(rows_ND.device, non_blocking=True)
    bags_N = torch.repeat_interleave(
        torch.arange(lengths.numel(), device=lengths.device), lengths, output_size=rows_ND.shape[0]
    )
    pooled_BD = rows_ND.new_zeros(lengths.numel(), rows_ND.shape[1]).index_add(0, bags_N, rows_ND)
    return pooled_BD / lengths.clamp(min=1)[:, None] if pooling == "mean" else pooled_BD
