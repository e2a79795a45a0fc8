"""`TableCollection`: logical tables behind the interface of `torchrec.EmbeddingBagCollection`.

KeyedJaggedTensor in, KeyedTensor out. `address` may be called earlier, in the data loader; `forward` takes either its
result or plain ids, and gives the same.
"""

import difflib
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor, KeyedTensor, PoolingType

from embank.tables.addressed import Addressed
from embank.tables.errors import ConfigError, DataError
from embank.tables.hashing import seed_of
from embank.tables.method import Method, build_method
from embank.tables.rows import RowOptimizer, RowStore, RowTier, build_rows
from embank.tables.rows.build import Backend
from embank.tables.specs import PhysicalTable, TableShard, TableSpec


class IdRangeError(DataError, IndexError):
    """An id outside its table."""


class _Use(NamedTuple):
    """One feature looked up in one table."""

    method: Method
    feature: str
    key: str  # of the output; "feature@table" where a feature is looked up in several tables
    positions: tuple[int, ...]  # of its lookups in the row store


def check_ids(ids: Tensor, *, table: str, feature: str, num_embeddings: int) -> None:
    """Refuses ids outside 0 .. num_embeddings - 1.

    Raises:
        IdRangeError: names table, feature, the id and the valid range.
    """
    if not ids.numel():
        return
    low, high = (int(bound) for bound in ids.aminmax())
    if low < 0 or high >= num_embeddings:
        wrong = low if low < 0 else high
        raise IdRangeError(
            f"feature '{feature}' has id {wrong}, outside table '{table}' of {num_embeddings:,} ids (0 .. {num_embeddings - 1:,}); "
            "prepare the data with the vocabulary that the table was made for, or give the table more rows"
        )


class TableCollection(nn.Module):
    """Tables for several features, each stored by its own method. A drop-in for `torchrec.EmbeddingBagCollection`.

    Args:
        specs: the logical tables; output columns come in this order, and within a table in the order of its features.
        seed: initial values depend on it and on the tables' names alone.
        backend: "fbgemm" (fused updates) or "torch" (the slow twin; Adam).
        optimizer: how rows are updated.
        tier: where rows are held.

    Raises:
        ConfigError: no table, two tables of one name, or what methods and backends refuse.
        BudgetError: a budget below its method's floor.
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        *,
        seed: int = 0,
        backend: Backend = "fbgemm",
        optimizer: RowOptimizer | None = None,
        tier: RowTier | None = None,
    ) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.seed = seed
        self.backend = backend
        self.optimizer = optimizer or RowOptimizer()
        self.tier = tier or RowTier()
        self._refuse_bad_names()
        with torch.random.fork_rng(devices=[]):
            self.methods = nn.ModuleList([self._method(spec) for spec in self.specs])
        self.pooled_rows, self.pooled_uses = self._build([m for m in self.built_methods() if m.linear])
        self.per_id_rows, self.per_id_uses = self._build([m for m in self.built_methods() if not m.linear])
        self._refuse_split_tables()
        by_key = {use.key: use for use in (*self.pooled_uses, *self.per_id_uses)}
        self.keys = [self._key(spec, feature) for spec in self.specs for feature in spec.feature_names]
        self.dims = [by_key[key].method.spec.embedding_dim for key in self.keys]

    def _method(self, spec: TableSpec) -> Method:
        """A method whose dense parameters depend on the seed and its table's name alone."""
        torch.manual_seed(seed_of(self.seed, "method", spec.name))
        return build_method(spec)

    def built_methods(self) -> Iterator[Method]:
        """The method of each spec, in order."""
        for method in self.methods:
            assert isinstance(method, Method)
            yield method

    def _refuse_bad_names(self) -> None:
        if not self.specs:
            raise ConfigError("a TableCollection needs at least one TableSpec")
        names = [spec.name for spec in self.specs]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"two tables are named '{name}'; names must be unique in a collection")
        for feature in {f for spec in self.specs for f in spec.feature_names}:
            if "@" in feature:
                raise ConfigError(f"feature '{feature}' has '@' in its name, which is reserved; rename it")

    def _refuse_split_tables(self) -> None:
        """Linear methods and others keep their rows apart, so they can't share a physical table."""
        stores = [{shard.table.name for shard in rows.shards} for rows in self.row_stores()]
        for name in set.intersection(*stores) if len(stores) > 1 else ():
            raise ConfigError(
                f"a method that is linear in its rows and one that is not both declare the physical table '{name}'; give one of them another name"
            )

    def _key(self, spec: TableSpec, feature: str) -> str:
        shared = sum(feature in other.feature_names for other in self.specs) > 1
        return f"{feature}@{spec.name}" if shared else feature

    def _build(self, methods: Sequence[Method]) -> tuple[RowStore | None, list[_Use]]:
        """A row store for the physical tables of some methods, and what is looked up in it."""
        tables: dict[str, PhysicalTable] = {}
        lookups: list[int] = []
        uses: list[_Use] = []
        for method in methods:
            for table in method.physical:
                if tables.setdefault(table.name, table) != table:
                    raise ConfigError(
                        f"two methods declare the physical table '{table.name}' with different shapes: {tables[table.name]} and {table}"
                    )
            places = list(tables)
            for feature in method.spec.feature_names:
                own = [places.index(method.physical[i].name) for i in method.lookups]
                uses.append(
                    _Use(
                        method,
                        feature,
                        self._key(method.spec, feature),
                        (*range(len(lookups), len(lookups) + len(own)),),
                    )
                )
                lookups += own
        if not tables:
            return None, uses
        rows = build_rows(
            [TableShard.whole(table) for table in tables.values()],
            lookups=lookups,
            seed=self.seed,
            backend=self.backend,
            optimizer=self.optimizer,
            tier=self.tier,
        )
        return rows, uses

    def address(self, features: KeyedJaggedTensor) -> Addressed:
        """Physical row ids of a batch: pure, and meant to run ahead of `forward`, on the loader's thread.

        Args:
            features: ids by feature, unweighted; keys that no table uses are ignored.

        Raises:
            IdRangeError: an id outside its table.
            DataError: a feature is missing, or the ids carry weights.
        """
        if features.weights_or_none() is not None:
            raise DataError("the input carries per-id weights; TableCollection pools by sum or mean, without weights")
        places = {key: i for i, key in enumerate(features.keys())}
        starts = features.offset_per_key()
        if features.variable_stride_per_key():
            raise DataError("the input has another batch size for each feature; give every feature one bag per row")
        if features.values().is_floating_point():
            raise DataError(f"ids are {features.values().dtype}; they must be integers")
        values, size = features.values().long(), features.stride()
        lengths = features.lengths().view(len(places), size)

        def bags_of(use: _Use) -> tuple[Tensor, Tensor]:
            if use.feature not in places:
                near = difflib.get_close_matches(use.feature, places, n=1)
                raise DataError(
                    f"table '{use.method.spec.name}' looks up feature '{use.feature}', which the batch lacks; "
                    f"{'did you mean ' + repr(near[0]) if near else 'it has: ' + ', '.join(places)}"
                )
            place = places[use.feature]
            ids = values[starts[place] : starts[place + 1]]
            spec = use.method.spec
            check_ids(ids, table=spec.name, feature=use.feature, num_embeddings=spec.num_embeddings)
            return ids, lengths[place]

        bags: dict[str, Tensor] = {}
        mean_lengths: dict[str, Tensor] = {}
        pooled_ids, pooled_lengths = [], []
        for use in self.pooled_uses:
            ids, length = bags_of(use)
            for physical in use.method.address(ids):
                pooled_ids.append(physical)
                pooled_lengths.append(length)
            if use.method.spec.pooling == "mean":
                mean_lengths[use.key] = length
        per_id: list[Tensor] = []
        sides: dict[str, Tensor] = {}
        for use in self.per_id_uses:
            ids, length = bags_of(use)
            per_id += use.method.address(ids)
            side = use.method.side(ids)
            if side is not None:
                sides[use.key] = side
            bags[use.key] = torch.cat([length.new_zeros(1, dtype=torch.int64), length.cumsum(0)])
        return Addressed(
            pooled=self._jagged(self.pooled_uses, pooled_ids, pooled_lengths),
            per_id=self._jagged(self.per_id_uses, per_id, _one_id_bags(per_id)),
            bags=bags,
            sides=sides,
            lengths=mean_lengths,
            batch_size=size,
        )

    def prefetch(self, addressed: Addressed) -> None:
        """A hint that `forward` will be called with this very batch soon, in the order of the hints; results stay the same.

        On the disk tier a thread reads the rows' pages ahead (unless `RowTier.prefetch` is off); elsewhere nothing is done.
        """
        for rows, jagged in ((self.pooled_rows, addressed.pooled), (self.per_id_rows, addressed.per_id)):
            if rows is not None and jagged is not None:
                rows.prefetch(jagged.values(), jagged.offsets())

    def announce(self, features: KeyedJaggedTensor) -> Addressed:
        """`address` and `prefetch`: what a data loader's thread does with a batch that is going to be trained on."""
        addressed = self.address(features)
        self.prefetch(addressed)
        return addressed

    @staticmethod
    def _jagged(uses: Sequence[_Use], ids: list[Tensor], lengths: list[Tensor]) -> KeyedJaggedTensor | None:
        if not ids:
            return None
        keys = [f"{use.key}#{i}" for use in uses for i in range(len(use.positions))]
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
        addressed = features if isinstance(features, Addressed) else self.address(features)
        if self._is_direct:
            assert self.pooled_rows is not None
            assert addressed.pooled is not None
            values = self.pooled_rows(addressed.pooled.values(), addressed.pooled.offsets())
        else:
            outputs = {**self._pooled(addressed), **self._per_id(addressed)}
            values = torch.cat([outputs[key] for key in self.keys], dim=1)
        return KeyedTensor(keys=list(self.keys), length_per_key=list(self.dims), values=values)

    @property
    def _is_direct(self) -> bool:
        """The row store's output is the collection's: every method linear, every pooling a sum."""
        return not self.per_id_uses and all(spec.pooling == "sum" for spec in self.specs)

    def _pooled(self, addressed: Addressed) -> dict[str, Tensor]:
        if self.pooled_rows is None:
            return {}
        assert addressed.pooled is not None
        rows = self.pooled_rows(addressed.pooled.values(), addressed.pooled.offsets()).split(
            self.pooled_rows.dims, dim=1
        )
        outputs = {}
        for use in self.pooled_uses:
            out = use.method.combine(tuple(rows[k] for k in use.positions), None)
            if use.method.spec.pooling == "mean":
                out = out / addressed.lengths[use.key].clamp(min=1)[:, None]
            outputs[use.key] = out
        return outputs

    def _per_id(self, addressed: Addressed) -> dict[str, Tensor]:
        rows: tuple[Tensor, ...] = ()
        if self.per_id_rows is not None:
            assert addressed.per_id is not None
            rows = self.per_id_rows(addressed.per_id.values(), addressed.per_id.offsets()).split(
                self.per_id_rows.dims, dim=1
            )
        outputs = {}
        for use in self.per_id_uses:
            offsets = addressed.bags[use.key]
            num_ids = int(offsets[-1])
            own = tuple(rows[k][:num_ids] for k in use.positions)
            logical_ND = use.method.combine(own, addressed.sides.get(use.key))
            outputs[use.key] = pool(logical_ND, offsets, pooling=use.method.spec.pooling)
        return outputs

    def extra_loss(self) -> Tensor | None:
        """What methods add to the loss of the step whose forward pass has just run; None if nothing."""
        losses = [loss for method in self.built_methods() if (loss := method.extra_loss()) is not None]
        return torch.stack(losses).sum() if losses else None

    def rebuilt(self, specs: Sequence[TableSpec]) -> "TableCollection":
        """A new collection of other specs with everything else as here."""
        return TableCollection(specs, seed=self.seed, backend=self.backend, optimizer=self.optimizer, tier=self.tier)

    def row_stores(self) -> list[RowStore]:
        """The row stores that are in use: at most one for linear methods and one for the others."""
        return [rows for rows in (self.pooled_rows, self.per_id_rows) if rows is not None]

    def update_rows(self) -> None:
        """Applies the rows' update after a backward pass. With FBGEMM the backward pass has done it already."""
        for rows in self.row_stores():
            rows.update()

    def set_lr(self, lr: float) -> None:
        """Sets the rows' learning rate for the next step."""
        for rows in self.row_stores():
            rows.set_lr(lr)

    def weights(self) -> dict[str, Tensor]:
        """Rows [R, D] of each physical table by name: views, not copies."""
        return {name: view for rows in self.row_stores() for name, view in rows.weights().items()}

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """Row-optimizer state by physical table and name: views, not copies."""
        return {name: state for rows in self.row_stores() for name, state in rows.optimizer_state().items()}

    def dense_parameters(self) -> list[nn.Parameter]:
        """What methods hold besides rows; an ordinary optimizer updates it."""
        return list(self.methods.parameters())

    def nbytes(self, kind: Literal["training", "serving"]) -> int:
        """Bytes held in training (padding and optimizer state included), or by the packed form.

        Raises:
            ConfigError: another kind.
        """
        if kind == "training":
            held = [t for rows in self.row_stores() for t in rows.held_tensors()]
            return distinct_nbytes([*held, *self.methods.parameters(), *self.methods.buffers()])
        if kind == "serving":
            packs = [method.pack(self.weights()) for method in self.built_methods()]
            return distinct_nbytes([t for pack in packs for t in (*pack.parameters(), *pack.buffers())])
        raise ConfigError(f"there are no '{kind}' bytes; ask for 'training' or 'serving'")

    @property
    def plain_nbytes(self) -> int:
        """Bytes of the plain fp32 tables, what budgets refer to."""
        return sum(spec.plain_nbytes for spec in self.specs)

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """The logical tables as TorchRec describes them: its own models read this."""
        pooling = {"sum": PoolingType.SUM, "mean": PoolingType.MEAN}
        return [
            EmbeddingBagConfig(
                name=spec.name,
                num_embeddings=spec.num_embeddings,
                embedding_dim=spec.embedding_dim,
                feature_names=list(spec.feature_names),
                pooling=pooling[spec.pooling],
            )
            for spec in self.specs
        ]

    def is_weighted(self) -> bool:
        """False: ids carry no weights."""
        return False

    @property
    def device(self) -> torch.device:
        """Where the output is."""
        return torch.device("cpu")


def distinct_nbytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of some tensors, those that several tables share counted once."""
    places = {(t.data_ptr(), t.numel(), t.dtype): t for t in tensors if t.numel()}
    return sum(t.numel() * t.element_size() for t in places.values())


def _one_id_bags(ids: Sequence[Tensor]) -> list[Tensor]:
    """Lengths 1 for every id, filled up with empty bags to the longest."""
    longest = max((t.numel() for t in ids), default=0)
    return [(torch.arange(longest) < t.numel()).int() for t in ids]


def pool(rows_ND: Tensor, offsets: Tensor, *, pooling: str) -> Tensor:
    """Rows of each bag to one: their sum or mean, zeros for an empty bag.

    Args:
        rows_ND: logical rows, bag after bag.
        offsets: int64 [B + 1].

    Returns:
        [B, D].
    """
    lengths = offsets.diff()
    if rows_ND.shape[0] == lengths.numel() and bool((lengths == 1).all()):
        return rows_ND
    bags_N = torch.repeat_interleave(torch.arange(lengths.numel(), device=lengths.device), lengths)
    pooled_BD = rows_ND.new_zeros(lengths.numel(), rows_ND.shape[1]).index_add(0, bags_N, rows_ND)
    return pooled_BD / lengths.clamp(min=1)[:, None] if pooling == "mean" else pooled_BD
