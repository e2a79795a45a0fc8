"""TorchRec's sharded collection with embank's row stores as its lookups: the extension that its "customized kernel" is
meant for."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor
from torchrec.distributed.embedding_kernel import BaseEmbedding
from torchrec.distributed.embedding_lookup import GroupedPooledEmbeddingsLookup
from torchrec.distributed.embedding_types import GroupedEmbeddingConfig
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.types import ParameterSharding, ShardingEnv

from embank.tables.rows import RowStore, StoreSpec, build_rows
from embank.tables.rows.physical import PhysicalTable
from embank.tables.rows.shards import TableShard
from embank.tables.sharding.plan import Plan


class RowSharder(EmbeddingBagCollectionSharder):  # type: ignore[misc]
    """Tells TorchRec to look up in our row stores.

    Args:
        tables: by the name that TorchRec knows them by.
        spec: how they are held; each local store holds some of them.
        plan: who holds what.
        rank: this process.
    """

    def __init__(self, tables: dict[str, PhysicalTable], spec: StoreSpec, *, plan: Plan, rank: int) -> None:
        super().__init__()
        self.tables, self.spec, self.plan, self.rank = tables, spec, plan, rank

    def store(self, shards: Sequence[TableShard], lookups: Sequence[int], *, part: str) -> RowStore:
        """A local store, whose files, if it has some, go to a folder of their own."""
        tier = self.spec.tier
        if tier.directory is not None:
            tier = replace(tier, directory=tier.directory / part)
        return build_rows(replace(self.spec, shards=shards, lookups=lookups, tier=tier))

    def shard(
        self,
        module: EmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> "ShardedCollection":
        return ShardedCollection(self, module, params, env, device, module_fqn)


class ShardedCollection(ShardedEmbeddingBagCollection):  # type: ignore[misc]
    """TorchRec's sharded collection with other lookups: the extension that its "customized kernel" is meant for."""

    def __init__(
        self,
        sharder: RowSharder,
        module: EmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None,
        module_fqn: str | None,
    ) -> None:
        self._embank = sharder  # the base class calls _create_lookups while it is being built
        super().__init__(
            module=module, table_name_to_parameter_sharding=params, env=env, device=device, module_fqn=module_fqn
        )

    def _create_lookups(self) -> None:
        for kind, sharding in zip(self._sharding_types, self._embedding_shardings, strict=True):
            self._lookups.append(
                _Lookup(self._embank, kind, sharding._grouped_embedding_configs, sharding._pg, self._device)
            )

    def reset_parameters(self) -> None:
        """Nothing: the stores have their initial values."""

    def prefetch(self, received: Sequence[KeyedJaggedTensor]) -> None:
        """Tells the row stores what they are going to look up: the ids that have come in, for each kind of
        placement."""
        for lookup, ids in zip(self._lookups, received, strict=True):
            lookup.prefetch(ids)

    def stores(self) -> Iterator[RowStore]:
        """The row stores of this rank: at most one for each kind of placement."""
        for lookup in self._lookups:
            for kernel in lookup._emb_modules:
                yield kernel.store


class _Lookup(GroupedPooledEmbeddingsLookup):  # type: ignore[misc]
    """What one rank looks up for all: its row stores, behind TorchRec's interface."""

    def __init__(
        self,
        sharder: RowSharder,
        kind: str,
        groups: list[GroupedEmbeddingConfig],
        group: dist.ProcessGroup,
        device: torch.device | None,
    ) -> None:
        self._embank, self._kind = sharder, kind
        super().__init__(grouped_configs=groups, device=device, pg=group)

    def _create_embedding_kernel(self, config: GroupedEmbeddingConfig, *_unused: Any) -> BaseEmbedding:
        return _Kernel(config, self._embank, self._kind)

    def prefetch(self, ids: KeyedJaggedTensor) -> None:
        for kernel, own in zip(self._emb_modules, ids.split(self._feature_splits), strict=True):
            kernel.store.prefetch(own.values().long(), own.offsets().long())

    def state_dict(self, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        return {} if destination is None else destination

    def named_parameters_by_table(self) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(())


class _Kernel(BaseEmbedding):  # type: ignore[misc]
    """A row store as TorchRec's lookups call it."""

    def __init__(self, config: GroupedEmbeddingConfig, sharder: RowSharder, kind: str) -> None:
        super().__init__()
        self._config = config
        plan, rank = sharder.plan, sharder.rank
        shards, lookups = [], []
        for index, table in enumerate(config.embedding_tables):
            shard = plan.shard(sharder.tables[table.name], rank)
            assert shard is not None
            assert (shard.num_rows, shard.num_columns) == (table.local_rows, table.local_cols)
            shards.append(shard)
            lookups += [index] * len(table.feature_names)
        self.store = sharder.store(shards, lookups, part=f"{kind}-{rank}")

    @property
    def config(self) -> GroupedEmbeddingConfig:
        return self._config

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        result: Tensor = self.store(features.values().long(), features.offsets().long())
        return result
