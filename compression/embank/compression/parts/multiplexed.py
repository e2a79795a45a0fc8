"""Feature multiplexing for any method: rows that several tables read, each at places of its own.

Coleman, Kang, Fahrbach, Wang, Hong, Chi, Cheng, "Unified Embedding: Battle-Tested Feature Representations for Web-Scale
ML Systems", NeurIPS 2023, whose principle is to let all features index one parameter space by hashes that differ from
feature to feature. `unified` is the principle applied to the hashing trick; here is what the other methods that take a
`table` need for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from embank.compression.budget.floors import as_plain, common_floor_error, refuse_fixed, refuse_sizes, size_within
from embank.tables import ConfigError, RowInit, TableSpec, default_init
from embank.tables.ids.hashing import hash_rows, salt64

SHARED_BOUND = 0.05
"""Rows of a shared table start in U(-0.05, 0.05), unless `init_std` says otherwise: no feature's own size may decide
it."""

SALT_NBYTES = 8


def shared_init(spec: TableSpec) -> RowInit:
    """Initial values of rows that several tables read."""
    return RowInit(scale=SHARED_BOUND) if spec.init_std is None else default_init(spec)


def lookup_salts(method: str, name: str, num_lookups: int) -> Tensor:
    """The salt of each lookup, int64 [c]: of the method, the table's name and the lookup's number, nothing else."""
    return torch.tensor([salt64(method, name, lookup) for lookup in range(num_lookups)])


def hashed_rows(ids_N: Tensor, *, sizes: Sequence[int], salts: Tensor) -> tuple[Tensor, ...]:
    """A row in each of several tables, by a hash for each; `salts` are int64 [c]. Tables of one size at once."""
    if len(set(sizes)) == 1:
        return hash_rows(ids_N.unsqueeze(0), num_rows=sizes[0], salt=salts.unsqueeze(1)).unbind()
    return tuple(hash_rows(ids_N, num_rows=size, salt=salt) for size, salt in zip(sizes, salts.unbind(), strict=True))


def physical_name(spec: TableSpec, *, table: str | None, num_rows: int | None) -> str:
    """The name of the rows that a table reads: those that it shares, if their number is given, or its own."""
    shared = table is not None and num_rows is not None
    return f"{spec.method}/{table}/{spec.embedding_dim}" if shared else spec.name


def shared_num_rows(spec: TableSpec, *, table: str, num_rows: int | None, fixed_nbytes: int, least: int) -> int:
    """Rows that a table with a name for shared rows reads: those given, or as many of its own as its budget has room
    for.

    Args:
        spec: of the table.
        table: name of the shared rows.
        num_rows: as the options give them; `allocate` does under a common budget.
        fixed_nbytes: what the table holds besides rows.
        least: fewest rows that the method can do with.

    Raises:
        BudgetError: the table's own budget does not hold the fewest rows.
        ConfigError: neither a number of rows nor a budget, both, or too few rows.
    """
    if num_rows is not None and num_rows < least:
        refuse_sizes(spec, num_rows=num_rows)
        raise ConfigError(f"table '{spec.name}' has num_rows {num_rows}; method '{spec.method}' needs {least}")
    if num_rows is None and spec.budget is None:
        raise ConfigError(
            f"table '{spec.name}' shares the rows '{table}' but does not say how many; give all of its tables the same "
            "num_rows=..., or one budget for all of them"
        )
    row_nbytes = 4 * spec.embedding_dim

    def room(nbytes: int) -> int:
        num_rows = (nbytes - fixed_nbytes) // row_nbytes
        return num_rows if num_rows >= least else 0

    needs, floor_nbytes = f"{least} rows and what is not shared", least * row_nbytes + fixed_nbytes
    return size_within(spec, num_rows=num_rows, default=least, room=room, needs=needs, floor_nbytes=floor_nbytes)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A table that shares rows, as `share_rows` sees it.

    Args:
        table: name of the shared rows.
        num_rows: as the options give them.
        fixed_nbytes: what the table holds besides rows.
        least: fewest rows that the method can do with.
        with_rows: the spec without a budget and with a number of rows.
    """

    table: str
    num_rows: int | None
    fixed_nbytes: int
    least: int
    with_rows: Callable[[int], TableSpec]


def share_rows(
    specs: Sequence[TableSpec],
    nbytes: int,
    *,
    reader: Callable[[TableSpec], Reader | None],
    alone: Callable[[Sequence[TableSpec], int], list[TableSpec]],
) -> list[TableSpec]:
    """Shares bytes between tables of one method: those of one shared name get equally many rows, whose bytes count
    once.

    Every name gets the part of the bytes that its tables' plain bytes are of all. Tables that are no larger plain than
    with what they can't share stay plain.

    Args:
        specs: tables of one method.
        nbytes: serving bytes for all of them.
        reader: what is to be known of a table that shares rows; None for one that does not.
        alone: the method's own rule, for the tables that share nothing.

    Raises:
        BudgetError: a name's bytes do not hold the fewest rows; states the floor.
        ConfigError: a table that has a number of rows already.
    """
    plain_nbytes = sum(spec.plain_nbytes for spec in specs)
    readers = {spec.name: found for spec in specs if (found := reader(spec)) is not None}
    done: dict[str, TableSpec] = {}
    left = nbytes
    for table in dict.fromkeys(found.table for found in readers.values()):
        members = [spec for spec in specs if spec.name in readers and readers[spec.name].table == table]
        own_nbytes = nbytes * sum(spec.plain_nbytes for spec in members) // plain_nbytes
        done |= {spec.name: spec for spec in _share(members, own_nbytes, readers=[readers[m.name] for m in members])}
        left -= own_nbytes
    rest = [spec for spec in specs if spec.name not in done]
    if rest:
        done |= {spec.name: spec for spec in alone(rest, left)}
    return [done[spec.name] for spec in specs]


def _share(specs: Sequence[TableSpec], nbytes: int, *, readers: Sequence[Reader]) -> list[TableSpec]:
    """Specs of tables that share rows of one name, within some bytes."""
    for spec, found in zip(specs, readers, strict=True):
        refuse_fixed(spec, num_rows=found.num_rows)
    pairs = list(zip(specs, readers, strict=True))
    hashed = [(spec, found) for spec, found in pairs if found.fixed_nbytes < spec.plain_nbytes]
    row_nbytes = 4 * sum({spec.embedding_dim for spec, _ in hashed})
    fixed = sum(min(spec.plain_nbytes, found.fixed_nbytes) for spec, found in pairs)
    least = max((found.least for _, found in hashed), default=0)
    if nbytes < fixed + least * row_nbytes:
        floor_nbytes = fixed + least * row_nbytes
        needs = (
            f"the rows '{readers[0].table}' of {len(specs)} tables of method '{specs[0].method}' and what these do not "
            f"share need {floor_nbytes:,} bytes"
        )
        raise common_floor_error(specs, needs=needs, floor_nbytes=floor_nbytes, nbytes=nbytes)
    return [
        found.with_rows((nbytes - fixed) // row_nbytes) if found.fixed_nbytes < spec.plain_nbytes else as_plain(spec)
        for spec, found in pairs
    ]
