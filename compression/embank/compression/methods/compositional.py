"""Compositional embeddings: a row is put together from one row of each of several small tables.

Shi, Mudigere, Naumov, Yang, "Compositional Embeddings Using Complementary Partitions for Memory-Efficient
Recommendation Systems", KDD 2020. With two partitions this is the quotient-remainder trick.

Its tables may be shared by several features, see `embank.compression.parts.multiplexed`.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from embank.compression.budget.floors import budget_nbytes, floor_error, refuse_sizes, share
from embank.compression.fitting.sums import PartitionedRows
from embank.compression.parts.multiplexed import (
    SALT_NBYTES,
    hashed_rows,
    lookup_salts,
    physical_name,
    shared_init,
    shared_num_rows,
)
from embank.compression.parts.shared_rows import SharedRowsAllocation
from embank.tables import ConfigError, Held, Method, RowInit, TableSpec, Traits, default_init, option_class, own_table
from embank.tables.method.options import options_of

Combine = Literal["mul", "sum"]

_DIVISOR = 4  # ids per row of the large table, as in most of the paper's experiments


@option_class
class CompositionalConfig:
    """Options of compositional embeddings.

    Args:
        num_partitions: tables that a row is put together from; None takes two, or as many more as the budget asks for.
        combine: rows are multiplied ("mul") or added ("sum"), element by element.
        divisor: rows of each small table; None takes the smallest that the budget allows, or 4 without a budget.
        table: features that give the same name (and dim, partitions and number of rows) read the same rows. Their ids
            are hashed into each partition instead of divided, so that features have independent places.
        num_rows: with `table`, rows of all its partitions together, dealt out evenly; `Compositional.allocate` sets it
            from a budget for all features. Without it, under a budget of its own, a feature is hashed into rows of its
            own.
    """

    num_partitions: int | None = field(default=None, metadata={"choices": (2, 3, 4)})
    combine: Combine = "mul"
    divisor: int | None = None
    table: str | None = None
    num_rows: int | None = None


def even_split(total: int, parts: int) -> tuple[int, ...]:
    """Whole numbers that differ by at most 1 and sum up to `total`: those of the largest product."""
    return tuple(total // parts + (i < total % parts) for i in range(parts))


def partition_sizes(num_embeddings: int, divisors: Sequence[int]) -> tuple[int, ...]:
    """Rows of each table: the large one's, then the small ones'. Their product is at least `num_embeddings`."""
    *most, last = divisors
    large = -(-num_embeddings // math.prod(divisors))
    return large, *most, min(last, -(-num_embeddings // (large * math.prod(most))))


@dataclass(frozen=True)
class Partitions:
    """All ways to store a number of ids in a number of tables, by the rows of the small tables together.

    More of these rows mean fewer rows in all, down to `tightest`: `total + num_embeddings / product` is convex in the
    total, since the product of an even split grows by a factor that falls.
    """

    num_embeddings: int
    num_partitions: int

    @property
    def loosest(self) -> int:
        """Fewest rows of the small tables: two per table, or one for a single id."""
        return (self.num_partitions - 1) * min(2, self.num_embeddings)

    @cached_property
    def tightest(self) -> int:
        """Rows of the small tables at which the sum of all rows is the least."""

        def grows(total: int) -> bool:
            now, more = (math.prod(even_split(t, self.num_partitions - 1)) for t in (total, total + 1))
            return now * more >= self.num_embeddings * (more - now)

        return self.loosest + bisect_left(range(self.loosest, 2 * self.num_embeddings + 2), True, key=grows)

    def sizes(self, total: int) -> tuple[int, ...]:
        """Rows of each table with `total` rows in the small ones."""
        return partition_sizes(self.num_embeddings, even_split(total, self.num_partitions - 1))

    def num_rows(self, total: int) -> int:
        """Rows of all tables with `total` of them in the small ones."""
        return sum(self.sizes(total))

    @cached_property
    def floor(self) -> int:
        """Fewest rows of all tables."""
        return self.num_rows(self.tightest)

    def within(self, num_rows: int) -> tuple[int, ...] | None:
        """Rows of each table, the large one's as many as `num_rows` in all allow; None if nothing fits."""
        totals = range(self.loosest, self.tightest + 1)
        place = bisect_left(totals, True, key=lambda total: self.num_rows(total) <= num_rows)
        return self.sizes(totals[place]) if place < len(totals) else None


def possible(num_embeddings: int, num_partitions: int | None) -> list[Partitions]:
    """The numbers of tables to try, few first: a fixed one, or all that may save rows."""
    most = max(2, (num_embeddings - 1).bit_length())
    counts = range(2, most + 1) if num_partitions is None else [num_partitions]
    return [Partitions(num_embeddings, count) for count in counts]


def _options(spec: TableSpec) -> CompositionalConfig:
    return options_of(spec, CompositionalConfig)


def _num_shared(spec: TableSpec) -> int:
    """Partitions of a table whose rows are shared; each has at least one."""
    return _options(spec).num_partitions or 2


def _salt_nbytes(spec: TableSpec) -> int:
    """Bytes of the salts of a table whose rows are shared."""
    return SALT_NBYTES * _num_shared(spec)


class _Shares(SharedRowsAllocation):
    """The smallest common divisor that fits, no table's beyond its own best, and what is left to the tables of few ids;
    equally many rows for tables that share them."""

    def alone(self, specs: Sequence[TableSpec], nbytes: int) -> list[TableSpec]:
        largest = max(spec.num_embeddings for spec in specs)
        levels = [
            (ways.num_partitions, total)
            for ways in reversed(possible(largest, None))
            for total in range(ways.tightest, ways.loosest - 1, -1)
        ]
        costs = [_cost(spec, levels) for spec in specs]
        return share(specs, costs, num_levels=len(levels), nbytes=nbytes)


class Compositional(Method):
    """Digits of the id in a mixed radix choose a row in each table; the rows are multiplied or added.

    The digits of `x` are `x mod b0`, `x div b0 mod b1`, ... and the quotient that is left: no two ids have all digits
    in common. The remainder `x mod b0` chooses from the largest table. After ranking by frequency its rows thus tell
    the b0 hottest ids apart, and each of these shares its row with colder ones alone.

    Differences from public implementations: there the largest table is the quotient's, where neighbours share a row,
    which are the hottest ids among themselves (on 60,000 rows of Criteo that costs .007 to .013 AUC). The quotient is
    an integer division (a true division of int64 goes through float32 in PyTorch and is wrong for ids above 2**24). The
    small tables start near 1 and the large one like the plain table, so that the product starts with the plain table's
    spread and each factor gets gradients of the plain table's size. The divisor is each table's own and the smallest
    that its budget allows; where two tables are too large, three are used, and so on.

    With a `table` that features share, digits of ids would give all features the same places, and ids that are
    neighbours the same quotient. There a salted hash chooses the row in each partition, the feature and the partition
    being in the salt. Partitions of
    equal size then tell the most ids apart: two ids have all rows in common with probability (k / R)**k in k partitions
    of R rows in all. The paper of feature multiplexing does not say how it shares quotient and remainder tables.

    Raises:
        BudgetError: the budget is below the fewest rows that any number of tables needs.
        ConfigError: fewer than two partitions, both a budget and a divisor or rows, or shared rows of no known number.

    Example:
        >>> table = build_table(method="compositional", num_embeddings=1000, embedding_dim=8, budget=0.1)
        >>> {name: tuple(rows.shape) for name, rows in table.collection.weights().items()}
        {'table/part0': (84, 8), 'table/part1': (12, 8)}
        >>> table.nbytes("serving") / table.spec.plain_nbytes
        0.096
    """

    Config = CompositionalConfig
    traits = Traits(
        allocation=_Shares(options=_options, fixed_nbytes=_salt_nbytes, least=_num_shared), fitting=PartitionedRows()
    )
    held = Held(facts=("sizes", "how", "is_hashed"), on_host=("salts",))
    sizes: tuple[int, ...]
    salts: Tensor

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        options: CompositionalConfig = self.options
        _refuse_mixed(spec, options)
        if options.num_partitions is not None and options.num_partitions < 2:
            raise ConfigError(
                f"table '{spec.name}' has num_partitions {options.num_partitions}; use at least 2, or method 'full'"
            )
        self.how: Combine = options.combine
        self.is_hashed = options.table is not None
        self.sizes = _shared_sizes(spec, options) if self.is_hashed else _sizes(spec, options)
        if self.is_hashed:
            self.register_buffer("salts", lookup_salts("compositional", spec.name, len(self.sizes)), persistent=False)
        plain = shared_init(spec) if self.is_hashed else default_init(spec)
        name = physical_name(spec, table=options.table, num_rows=options.num_rows)
        self.physical = tuple(
            own_table(spec, name=f"{name}/part{i}", num_rows=size, init=init)
            for i, (size, init) in enumerate(zip(self.sizes, _inits(plain, self.how, len(self.sizes)), strict=True))
        )

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        if self.is_hashed:
            return hashed_rows(ids_N, sizes=self.sizes, salts=self.salts)
        return tuple(digits(ids_N, self.sizes))

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        return combined(rows, self.how)


def _refuse_mixed(spec: TableSpec, options: CompositionalConfig) -> None:
    refuse_sizes(spec, divisor=options.divisor)
    if options.table is None and options.num_rows is not None:
        raise ConfigError(
            f"table '{spec.name}' has num_rows {options.num_rows} but no table to share them; give table='...', or a "
            "divisor instead"
        )
    if options.table is not None and options.divisor is not None:
        raise ConfigError(
            f"table '{spec.name}' shares the rows '{options.table}', where ids are hashed, but has divisor "
            f"{options.divisor}; give num_rows instead"
        )


def _shared_sizes(spec: TableSpec, options: CompositionalConfig) -> tuple[int, ...]:
    """Rows of each partition, where ids are hashed."""
    assert options.table is not None
    parts = _num_shared(spec)
    num_rows = shared_num_rows(
        spec, table=options.table, num_rows=options.num_rows, fixed_nbytes=_salt_nbytes(spec), least=parts
    )
    return even_split(num_rows, parts)


def _sizes(spec: TableSpec, options: CompositionalConfig) -> tuple[int, ...]:
    """Rows of each table, by the options or within the budget."""
    limit = budget_nbytes(spec)
    if limit is None:
        divisor = min(options.divisor or _DIVISOR, spec.num_embeddings)
        return partition_sizes(spec.num_embeddings, [divisor] * ((options.num_partitions or 2) - 1))
    row_nbytes = 4 * spec.embedding_dim
    ways = possible(spec.num_embeddings, options.num_partitions)
    for way in ways:
        sizes = way.within(limit // row_nbytes)
        if sizes is not None:
            return sizes
    floor = min(way.floor for way in ways)
    raise floor_error(spec, needs=f"{floor} rows", floor_nbytes=floor * row_nbytes)


def _cost(spec: TableSpec, levels: Sequence[tuple[int, int]]) -> "_LevelCost":
    ways = {way.num_partitions: way for way in possible(spec.num_embeddings, _options(spec).num_partitions)}
    return _LevelCost(ways=ways, levels=levels, row_nbytes=4 * spec.embedding_dim)


@dataclass(frozen=True, kw_only=True)
class _LevelCost:
    """Bytes of a table at a level (number of tables, rows of the small ones), from the most and smallest tables to two
    large ones."""

    ways: Mapping[int, Partitions]
    levels: Sequence[tuple[int, int]]
    row_nbytes: int

    def __call__(self, level: int) -> int:
        count, total = self.levels[level]
        if count < min(self.ways):
            way = self.ways[min(self.ways)]
            return way.num_rows(way.loosest) * self.row_nbytes
        fewer = [way.floor for other, way in self.ways.items() if other < count]
        if count not in self.ways:
            return min(fewer) * self.row_nbytes
        way = self.ways[count]
        num_rows = way.num_rows(max(way.loosest, min(total, way.tightest)))
        return min([num_rows, *fewer]) * self.row_nbytes


def _inits(plain: RowInit, how: Combine, num_tables: int) -> list[RowInit]:
    """Initial values of each table, the large one's first, whose product or sum has a given spread."""
    if how == "sum":
        return [RowInit(kind=plain.kind, scale=plain.scale / num_tables**0.5)] * num_tables
    return [plain, *[RowInit(kind="normal", scale=0.01, mean=1.0)] * (num_tables - 1)]


def digits(ids_N: Tensor, sizes: Sequence[int]) -> Iterator[Tensor]:
    """The row in each table: the remainders, least significant first, then the quotient."""
    for size in sizes[:-1]:
        yield ids_N % size
        ids_N = torch.div(ids_N, size, rounding_mode="floor")
    yield ids_N


def combined(rows: Sequence[Tensor], how: Combine) -> Tensor:
    """Product or sum of rows [N, D], element by element."""
    out_ND = rows[0]
    for row_ND in rows[1:]:
        out_ND = out_ND * row_ND if how == "mul" else out_ND + row_ND
    return out_ND
