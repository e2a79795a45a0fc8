"""`TableCollection`: logical tables behind the interface of `torchrec.EmbeddingBagCollection`.

KeyedJaggedTensor in, KeyedTensor out. `address` may be called earlier, in the data loader; `forward` takes either its
result or plain ids, and gives the same.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor, KeyedTensor
from torchrec.modules.embedding_modules import EmbeddingBagCollectionInterface

from embank.tables.collections.addressed import Addressed
from embank.tables.collections.bags import Bags, bag_configs, expanded
from embank.tables.collections.base import Tables
from embank.tables.collections.ids import bag_offsets
from embank.tables.collections.paths import PATHS, Asked, LookupPath, choose_paths, pool
from embank.tables.errors import ConfigError
from embank.tables.rows import RowOptimizer, RowStore, RowTier
from embank.tables.rows.store_spec import Backend
from embank.tables.specs import TableSpec

if TYPE_CHECKING:
    from embank.tables.sharding.sharded_rows import Sharding


class TableCollection(Tables, EmbeddingBagCollectionInterface):  # type: ignore[misc]
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

    Example:
        Two rows of a batch: a user has one id, the genres of a film are a bag of any number of ids.

            row      user   genre
            0        3      1, 2
            1        0      (none)

        >>> from torchrec import KeyedJaggedTensor
        >>> tables = TableCollection(
        ...     [
        ...         TableSpec(name="user", num_embeddings=4, embedding_dim=3, feature_names=["user"]),
        ...         TableSpec(name="genre", num_embeddings=3, embedding_dim=2, feature_names=["genre"]),
        ...     ],
        ...     optimizer=RowOptimizer(name="sgd", lr=0.5),
        ... )
        >>> tables.set_rows("genre", torch.tensor([[0.0, 0.0], [1.0, 10.0], [2.0, 20.0]]))
        >>> ids, lengths = torch.tensor([3, 0, 1, 2]), torch.tensor([1, 1, 2, 0])  # feature after feature
        >>> kjt = KeyedJaggedTensor(keys=["user", "genre"], values=ids, lengths=lengths)
        >>> pooled = tables(kjt)  # a KeyedTensor
        >>> pooled["genre"].tolist()  # the sum of rows 1 and 2; an empty bag gives zeros
        [[3.0, 30.0], [0.0, 0.0]]
        >>> pooled.keys(), pooled.values().shape  # [B, sum D]
        (['user', 'genre'], torch.Size([2, 5]))
        >>> pooled["genre"].sum().backward()  # updates the rows that were looked up
        >>> tables.step()
        >>> tables.weights()["genre"].tolist()
        [[0.0, 0.0], [0.5, 9.5], [1.5, 19.5]]
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
        self._make()

    def _make_paths(self) -> None:
        kinds = choose_paths(list(self.built_methods()))
        pairs = [(method, feature) for method in self.built_methods() for feature in method.spec.feature_names]
        self.paths = {
            kind: self._path(kind, own)
            for kind in PATHS
            if (own := [(method, feature) for method, feature in pairs if kinds[method.spec.name] == kind])
        }
        self._refuse_split_tables()
        by_key = {use.key: use for path in self.paths.values() for use in path.uses}
        self.keys = [self._key(spec, feature) for spec in self.specs for feature in spec.feature_names]
        self.uses = [by_key[key] for key in self.keys]
        self.dims = [use.method.spec.embedding_dim for use in self.uses]
        self.num_columns = sum(self.dims)

    def _refuse_split_tables(self) -> None:
        """Methods on other paths keep their rows apart, so they can't share a physical table."""
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
            features: ids by feature, with weights where tables pool by them; keys that no table uses are ignored.

        Raises:
            IdRangeError: an id outside its table.
            DataError: a feature is missing, or weights that a table needs.
        """
        return self.joined(self.asked(Bags(features)))

    def asked(self, batch: Bags) -> Asked:
        """What a batch asks of the tables: the first half of `address`, with its errors."""
        uses, per_id = self.use_rows(batch), self.keys_per_id
        inverse = batch.inverse([use.feature for use in self.uses])
        weights = {use.key: batch.weights_of(use.feature, spec=use.method.spec) for use in self.uses}
        rest = Addressed(
            paths={},
            bags={use.key: bag_offsets(batch.lengths_of(use.feature)) for use in self.uses if use.key in per_id},
            batch_size=batch.batch_size,
            weights={key: weights_N for key, weights_N in weights.items() if weights_N is not None},
            inverse=inverse or (),
        )
        return Asked(uses, rest)

    def lookup_paths(self) -> Mapping[str, LookupPath]:
        """The lookup paths by their kinds."""
        return self.paths

    def prefetch(self, addressed: Addressed) -> None:
        """A hint that `forward` will be called with this very batch soon, in the order of the hints; results stay the
        same.

        On the disk tier a thread reads the rows' pages ahead (unless `RowTier.prefetch` is off). Where rows are
        sharded, ids travel to the processes that hold them: all must call this together, on the thread that calls
        `forward`.
        """
        for kind, path in self.paths.items():
            path.prefetch(addressed.paths[kind])

    def address_ahead(self, features: KeyedJaggedTensor) -> Addressed:
        """What a data loader's thread does with a batch that is going to be trained on: `address`, and `prefetch` where
        it may."""
        addressed = self.address(features)
        if self.tier.on_gpu:
            addressed = addressed.pin_memory()
        if self.sharding is None:
            self.prefetch(addressed)
        return addressed

    def forward(self, features: KeyedJaggedTensor | Addressed) -> KeyedTensor:
        """Pooled logical rows: keys are the features, values [B, sum D].

        Args:
            features: ids by feature, or what `address` made of them.
        """
        step = self.step_of(features)
        return self.look_up(features)[0] if step is None else step

    def look_up(self, features: KeyedJaggedTensor | Addressed) -> tuple[KeyedTensor, dict[str, Tensor]]:
        """What `forward` returns, and by output key the logical rows [N, D] of the feature's ids, bag after bag, before
        pooling.

        Only the lookups in `keys_per_id` have such rows: of methods that are not linear in their rows, and of tables
        with `fused_pooling=False`.
        """
        if self.tier.is_meta and isinstance(features, KeyedJaggedTensor):
            return self._shaped(features.stride()), {}
        addressed = features if isinstance(features, Addressed) else self.address(features)
        per_id: dict[str, Tensor] = {}
        with self._pass() as within:
            if self._is_direct:
                ((kind, path),) = self.paths.items()
                values = path.block(addressed.paths[kind], within)
            else:
                outputs: dict[str, Tensor] = {}
                for kind, path in self.paths.items():
                    rows = path.forward(addressed.paths[kind], within)
                    if path.pools:
                        outputs |= rows
                    else:
                        per_id |= rows
                for use in self.uses:
                    if use.key in per_id:
                        offsets, pooling = addressed.bags[use.key], use.method.spec.pooling
                        rows_ND = per_id[use.key]
                        if use.key in addressed.weights:
                            rows_ND = rows_ND * addressed.weights[use.key].to(rows_ND.device)[:, None]
                        outputs[use.key] = pool(rows_ND, offsets, pooling=pooling)
                values = torch.cat([outputs[key] for key in self.keys], dim=1)
            if addressed.inverse:
                values = expanded(values, addressed.inverse, dims=self.dims)
            (values,) = self._end_pass([values], within)
        return KeyedTensor(keys=list(self.keys), length_per_key=list(self.dims), values=values), per_id

    def _shaped(self, batch_size: int) -> KeyedTensor:
        """An output without values."""
        values = torch.empty(batch_size, self.num_columns, device="meta")
        return KeyedTensor(keys=list(self.keys), length_per_key=list(self.dims), values=values)

    @property
    def keys_per_id(self) -> frozenset[str]:
        """Output keys whose rows `look_up` shows before they are pooled."""
        return frozenset(use.key for path in self.paths.values() if not path.pools for use in path.uses)

    @property
    def _is_direct(self) -> bool:
        """The row store's output is the collection's."""
        return len(self.paths) == 1 and all(path.pools and path.is_direct for path in self.paths.values())

    def row_stores(self) -> list[RowStore]:
        """The row stores that are in use: one for each path that has rows."""
        return [path.store for path in self.paths.values() if path.store is not None]

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """The logical tables as TorchRec describes them: its own models read this."""
        return bag_configs(self.specs)

    def is_weighted(self) -> bool:
        """Whether tables pool by the ids' weights."""
        return any(spec.weighted for spec in self.specs)
