"""How many rows ids share where each id also has numbers of its own: as many as a budget leaves room for (`memcom`,
`hash_embedding`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Protocol

from embank.compression.budget.floors import share, size_within
from embank.compression.parts.multiplexed import Reader, physical_name, share_rows, shared_init, shared_num_rows
from embank.tables import Allocation, PhysicalTable, TableSpec, default_init, own_table

_COLLISIONS = 4
_LEVELS = 1000


class SharedRowsConfig(Protocol):
    """Options of such a method.

    Attributes:
        num_rows: rows that ids share; None takes what the budget leaves, or a quarter of the ids without one.
        table: name of rows that several features share.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def num_rows(self) -> int | None: ...

    @property
    def table(self) -> str | None: ...


def num_shared_rows(spec: TableSpec, options: SharedRowsConfig, *, fixed_nbytes: int, needs: str) -> int:
    """Rows by the options, or as many as the budget leaves room for.

    Args:
        spec: of the table.
        options: its options.
        fixed_nbytes: what the table holds besides rows.
        needs: the least that it can do with, for the error.

    Raises:
        BudgetError: the budget does not hold what is fixed and one row.
        ConfigError: both a budget and a number of rows, or shared rows of no known number.
    """
    if options.table is not None:
        return shared_num_rows(spec, table=options.table, num_rows=options.num_rows, fixed_nbytes=fixed_nbytes, least=1)
    whole, row_nbytes = spec.num_embeddings, 4 * spec.embedding_dim
    return size_within(
        spec,
        num_rows=options.num_rows,
        default=-(-whole // _COLLISIONS),
        room=lambda nbytes: min((nbytes - fixed_nbytes) // row_nbytes, whole),
        needs=needs,
        floor_nbytes=fixed_nbytes + row_nbytes,
    )


def shared_rows(spec: TableSpec, options: SharedRowsConfig, *, num_rows: int) -> PhysicalTable:
    """The physical table of these rows: the table's own, or the one that features share."""
    name = physical_name(spec, table=options.table, num_rows=options.num_rows)
    init = default_init(spec) if options.table is None else shared_init(spec)
    return own_table(spec, name=f"{name}/rows", num_rows=num_rows, init=init)


@dataclass(frozen=True, kw_only=True)
class SharedRowsAllocation(Allocation):
    """The largest common share of rows, or equally many rows for tables that share them; tables that what is fixed
    would not make smaller stay plain.

    Args:
        options: those of a table.
        fixed_nbytes: what a table holds besides rows.
        least: fewest rows of a table that shares them.
    """

    options: Callable[[TableSpec], SharedRowsConfig]
    fixed_nbytes: Callable[[TableSpec], int]
    least: Callable[[TableSpec], int] = lambda spec: 1

    def share(self, specs: Sequence[TableSpec], nbytes: int) -> list[TableSpec]:
        return share_rows(specs, nbytes, reader=self._reader, alone=self.alone)

    def _with_rows(self, spec: TableSpec, num_rows: int) -> TableSpec:
        return replace(spec, budget=None, options=replace(self.options(spec), num_rows=num_rows))

    def _reader(self, spec: TableSpec) -> Reader | None:
        own = self.options(spec)
        if own.table is None:
            return None
        return Reader(
            table=own.table,
            num_rows=own.num_rows,
            fixed_nbytes=self.fixed_nbytes(spec),
            least=self.least(spec),
            with_rows=partial(self._with_rows, spec),
        )

    def _nbytes_at(self, spec: TableSpec, level: int) -> int:
        """Bytes with `level + 1` rows for every thousand ids."""
        num_rows = max(1, spec.num_embeddings * (level + 1) // _LEVELS)
        return 4 * num_rows * spec.embedding_dim + self.fixed_nbytes(spec)

    def alone(self, specs: Sequence[TableSpec], nbytes: int) -> list[TableSpec]:
        """The rule for tables that share nothing."""
        return share(specs, [partial(self._nbytes_at, spec) for spec in specs], num_levels=_LEVELS, nbytes=nbytes)
