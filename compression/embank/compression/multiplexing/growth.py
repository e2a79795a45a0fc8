"""Growth of a trained Unified Embedding that leaves every output as it is, bit for bit; further training then separates
values.

The published method has one size for life. Both steps follow from its form: a row is a hash modulo the number of rows,
and a lookup enters through weights of its own.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from embank.compression.methods.unified import Unified, UnifiedConfig
from embank.tables import ConfigError, Tables
from embank.tables.wording import nearest_or_all

AnyTables = TypeVar("AnyTables", bound=Tables)


@torch.no_grad()
def with_doubled_rows(tables: AnyTables, *, table: str = "shared") -> AnyTables:
    """A collection whose shared table has twice the rows: h mod 2M is h mod M or M more, so row r is copied to r and r
    + M.

    Args:
        tables: not sharded; it stays as it is.
        table: the shared table's name (`UnifiedConfig.table`), in all of its widths.

    Returns:
        A new collection with the same outputs. Optimizer state is copied with the rows.

    Raises:
        ConfigError: no table shares one of this name, or the rows are sharded.

    Example:
        >>> tables = TableCollection(unified_specs(rows=100, width=8, lookups={"user": 2}))
        >>> grown = with_doubled_rows(tables)
        >>> [(name, rows_RD.shape) for name, rows_RD in grown.weights().items()]
        [('unified/shared/8', torch.Size([200, 8]))]
        >>> (rows_RD,), (grown_RD,) = tables.weights().values(), grown.weights().values()
        >>> torch.equal(grown_RD, torch.cat([rows_RD, rows_RD]))
        True
    """
    _refuse_sharded(tables)
    sharing = {method.spec.name: method for method in _unified(tables) if _shares(method, table)}
    if not sharing:
        known = sorted({method.options.table for method in _unified(tables) if method.placement == "shared"})
        raise ConfigError(f"no table shares table '{table}'; {nearest_or_all(table, known, label='shared tables')}")
    specs = [
        replace(spec, options=replace(spec.options, rows=2 * sharing[spec.name].num_rows))
        if spec.name in sharing
        else spec
        for spec in tables.specs
    ]
    grown = tables.rebuilt(specs)
    for old, new in zip(tables.built_methods(), grown.built_methods(), strict=True):
        new.load_state_dict(old.state_dict())
    _carry(tables, grown)
    return grown


@torch.no_grad()
def with_lookups(tables: AnyTables, lookups: Mapping[str, int]) -> AnyTables:
    """A collection in which some tables have more lookups, whose rows enter through a matrix of zeros.

    The embedding dim stays, so a model fits as before. A table that had no projection gets the identity for its old
    lookups.

    Args:
        tables: not sharded; it stays as it is.
        lookups: by table, the new number of lookups.

    Returns:
        A new collection with the same outputs; rows and optimizer state are copied.

    Raises:
        ConfigError: an unknown table, one that is exact or of another method, no more lookups than before, or sharded
            rows.

    Example:
        >>> from torchrec import KeyedJaggedTensor
        >>> tables = TableCollection(unified_specs(rows=100, width=8, lookups={"user": 2}))
        >>> grown = with_lookups(tables, {"user": 3})
        >>> kjt = KeyedJaggedTensor(keys=["user"], values=torch.tensor([7]), lengths=torch.tensor([1]))
        >>> torch.equal(tables(kjt)["user"], grown(kjt)["user"])
        True
    """
    _refuse_sharded(tables)
    methods = {method.spec.name: method for method in _unified(tables) if method.placement != "exact"}
    options: dict[str, UnifiedConfig] = {}
    for name, count in lookups.items():
        if name not in methods:
            raise ConfigError(
                f"no table '{name}' is hashed by 'unified'; {nearest_or_all(name, methods, label='there are')}"
            )
        method = methods[name]
        if count <= method.num_lookups:
            raise ConfigError(
                f"table '{name}' has {method.num_lookups} lookups; {count} are no more. Give a larger number"
            )
        options[name] = replace(
            method.options, width=method.width, lookups=count, placement=method.placement, rows=method.num_rows
        )
    specs = [
        replace(spec, options=options[spec.name], budget=None) if spec.name in options else spec
        for spec in tables.specs
    ]
    grown = tables.rebuilt(specs)
    for old, new in zip(tables.built_methods(), grown.built_methods(), strict=True):
        if new.spec.name in options:
            assert isinstance(old, Unified)
            assert isinstance(new, Unified)
            assert new.projection is not None
            matrices_cwD = _matrices(old)
            new.projection.zero_()
            new.projection[: old.num_lookups] = matrices_cwD
        else:
            new.load_state_dict(old.state_dict())
    _carry(tables, grown)
    return grown


def _unified(tables: Tables) -> list[Unified]:
    return [method for method in tables.built_methods() if isinstance(method, Unified)]


def _shares(method: Unified, table: str) -> bool:
    return method.placement == "shared" and method.options.table == table


def _refuse_sharded(tables: Tables) -> None:
    if tables.sharding is not None:
        raise ConfigError(
            "the rows are sharded; load a checkpoint in one process, grow the tables there, save them and shard what "
            "was saved"
        )


def _matrices(method: Unified) -> Tensor:
    """The projection [c, w, D] of a table, the identity where it has none."""
    if method.projection is not None:
        return method.projection
    shape = (method.num_lookups, method.width, method.spec.embedding_dim)
    return torch.eye(method.spec.embedding_dim).view(shape)


def _carry(source: Tables, target: Tables) -> None:
    """Copies rows and their optimizer state, as often as the target has room for: once or twice."""
    with target.writing():
        weights, states = target.weights(), target.optimizer_state()
        for name, old in source.weights().items():
            _repeat(old, weights[name])
        for name, state in source.optimizer_state().items():
            for key, old in state.items():
                _repeat(old, states[name][key])
    for old_store, new_store in zip(source.row_stores(), target.row_stores(), strict=True):
        new_store.load_step(old_store.num_updates)


def _repeat(old: Tensor, new: Tensor) -> None:
    for part in torch.split(new, old.shape[0]):
        part.copy_(old)
