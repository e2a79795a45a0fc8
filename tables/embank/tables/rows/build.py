"""Chooses the implementation of row storage by its name, never silently."""

from collections.abc import Sequence
from typing import Literal

from embank.tables.errors import ConfigError
from embank.tables.rows.base import RowOptimizer, RowStore, RowTier
from embank.tables.rows.shards import TableShard

Backend = Literal["fbgemm", "torch"]


def build_rows(
    shards: Sequence[TableShard],
    *,
    lookups: Sequence[int],
    seed: int,
    backend: Backend,
    optimizer: RowOptimizer,
    tier: RowTier,
) -> RowStore:
    """Row storage with initial values.

    Raises:
        ConfigError: a backend that does not exist, or that can't do what is asked; a device that is not there.
    """
    tier.refuse_missing_device()
    if backend == "fbgemm":
        from embank.tables.rows.fbgemm import FbgemmRows

        return FbgemmRows(shards, lookups=lookups, seed=seed, optimizer=optimizer, tier=tier)
    if backend == "torch" and tier.on_gpu and tier.name != "device":
        from embank.tables.rows.staged import StagedRows

        return StagedRows(shards, lookups=lookups, seed=seed, optimizer=optimizer, tier=tier)
    if backend == "torch":
        from embank.tables.rows.torch_rows import TorchRows

        return TorchRows(shards, lookups=lookups, seed=seed, optimizer=optimizer, tier=tier)
    raise ConfigError(f"there is no backend '{backend}'; use 'fbgemm' or 'torch'")
