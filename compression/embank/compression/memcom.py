"""MEmCom: ids share rows, and each has a multiplier of its own.

Pansare, Katukuri, Arora, Cipollone, Shaik, Tokgozoglu, Venkataraman, "Learning Compressed Embeddings for On-Device Inference",
MLSys 2022.

Its rows may be shared by several features, see `embank.compression.multiplexed`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from embank.compression.budgets import budget_nbytes, floor_error, refuse_both, share
from embank.compression.multiplexed import (
    SALT_NBYTES,
    Reader,
    allocate,
    lookup_salts,
    physical_name,
    shared_init,
    shared_num_rows,
)
from embank.tables import Method, PackedTable, PhysicalTable, RowInit, TableSpec, default_init
from embank.tables.hashing import hash_rows

_COLLISIONS = 4
_LEVELS = 1000


@dataclass(frozen=True, kw_only=True)
class MemcomConfig:
    """Options of MEmCom.

    Args:
        num_rows: shared rows; None takes what the budget leaves beside the multipliers, or a quarter of the ids without one.
        bias: each id also has a number that is added to all elements of its row.
        table: features that give the same name (and dim and number of rows) read the same rows, at places of their own by a hash;
            multipliers and biases stay each feature's. `Memcom.allocate` sets the rows from a budget for all features; without
            them, under a budget of its own, a feature is hashed into rows of its own.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic, not a field

    num_rows: int | None = None
    bias: bool = False
    table: str | None = None


class Memcom(Method):
    """`row[x mod m] * multiplier[x]`, plus `bias[x]` if asked for.

    The paper's hash is the remainder. After ranking by frequency it is the right one: the m hottest ids get different rows, and
    each shares its row with colder ones alone. Multipliers start at 1 with a small spread, so rows start as spread as the
    plain table's; biases start at 0. Rows that features share are chosen by a hash salted with the feature's name instead, since
    remainders would put the hot ids of all features into the same rows.

    Its floor is high, as every id has a number of its own: 1 / embedding_dim of the plain table, and one row.

    Raises:
        BudgetError: the budget does not hold the multipliers and one row.
        ConfigError: both a budget and a number of rows, or shared rows of no known number.
    """

    Config = MemcomConfig

    def __init__(self, spec: TableSpec) -> None:
        super().__init__(spec)
        options: MemcomConfig = self.options()
        self.num_rows = _num_rows(spec, options)
        self.salts = () if options.table is None else lookup_salts("memcom", spec.name, 1)
        self.physical = (
            PhysicalTable(
                name=f"{physical_name(spec, table=options.table, num_rows=options.num_rows)}/rows",
                num_embeddings=self.num_rows,
                embedding_dim=spec.embedding_dim,
                init=default_init(spec) if options.table is None else shared_init(spec),
            ),
            PhysicalTable(
                name=f"{spec.name}/multipliers",
                num_embeddings=spec.num_embeddings,
                embedding_dim=1,
                init=RowInit(kind="normal", scale=0.01, mean=1.0),
            ),
        )
        if options.bias:
            self.physical += (
                PhysicalTable(
                    name=f"{spec.name}/biases",
                    num_embeddings=spec.num_embeddings,
                    embedding_dim=1,
                    init=RowInit(scale=0.0),
                ),
            )

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        return (row_of(ids_N, num_rows=self.num_rows, salts=self.salts), *[ids_N] * (len(self.physical) - 1))

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        shared_ND, multiplier_N1, *bias_N1 = rows
        scaled_ND = shared_ND * multiplier_N1
        return scaled_ND + bias_N1[0] if bias_N1 else scaled_ND

    def pack(self, rows: Mapping[str, Tensor]) -> PackedTable:
        shared_RD, *per_id = (rows[table.name] for table in self.physical)
        return PackedMemcom(shared_RD, per_id, salts=self.salts)

    @classmethod
    def allocate(cls, specs: Sequence[TableSpec], nbytes: int) -> list[TableSpec]:
        """The largest common share of rows beside the multipliers, or equally many rows for tables that share them; tables that
        multipliers would not make smaller stay plain."""
        return allocate(specs, nbytes, reader=_reader, alone=_allocate_alone)


def row_of(ids_N: Tensor, *, num_rows: int, salts: Sequence[int]) -> Tensor:
    """The shared row of each id: by the remainder without a salt, by a hash with one."""
    return hash_rows(ids_N, num_rows=num_rows, salt=salts[0]) if salts else ids_N % num_rows


def _allocate_alone(specs: Sequence[TableSpec], nbytes: int) -> list[TableSpec]:
    return share(specs, [partial(_nbytes_at, spec) for spec in specs], num_levels=_LEVELS, nbytes=nbytes)


def _options(spec: TableSpec) -> MemcomConfig:
    return spec.options if isinstance(spec.options, MemcomConfig) else MemcomConfig()


def _reader(spec: TableSpec) -> Reader | None:
    options = _options(spec)
    if options.table is None:
        return None
    return Reader(
        table=options.table,
        num_rows=options.num_rows,
        fixed_nbytes=_per_id_nbytes(spec, options) + SALT_NBYTES,
        least=1,
        with_rows=partial(_with_rows, spec),
    )


def _with_rows(spec: TableSpec, num_rows: int) -> TableSpec:
    return replace(spec, budget=None, options=replace(_options(spec), num_rows=num_rows))


def _per_id_nbytes(spec: TableSpec, options: MemcomConfig) -> int:
    return 4 * spec.num_embeddings * (1 + options.bias)


def _nbytes_at(spec: TableSpec, level: int) -> int:
    """Bytes with `level + 1` shared rows for every thousand ids."""
    num_rows = max(1, spec.num_embeddings * (level + 1) // _LEVELS)
    return 4 * num_rows * spec.embedding_dim + _per_id_nbytes(spec, _options(spec))


def _num_rows(spec: TableSpec, options: MemcomConfig) -> int:
    """Shared rows by the options, or as many as the budget leaves room for."""
    if options.table is not None:
        fixed_nbytes = _per_id_nbytes(spec, options) + SALT_NBYTES
        return shared_num_rows(spec, table=options.table, num_rows=options.num_rows, fixed_nbytes=fixed_nbytes, least=1)
    refuse_both(spec, num_rows=options.num_rows)
    limit = budget_nbytes(spec)
    if limit is None:
        return options.num_rows or -(-spec.num_embeddings // _COLLISIONS)
    per_id, row_nbytes = _per_id_nbytes(spec, options), 4 * spec.embedding_dim
    num_rows = (limit - per_id) // row_nbytes
    if num_rows < 1:
        needs = f"{'two numbers' if options.bias else 'a number'} per id and one row"
        raise floor_error(spec, needs=needs, floor_nbytes=per_id + row_nbytes)
    return min(num_rows, spec.num_embeddings)


class PackedMemcom(PackedTable):
    """The shared rows [m, D], the multipliers [N, 1], the biases [N, 1] and the salt [1] if there are any."""

    facts: ClassVar[tuple[str, ...]] = ("has_bias", "is_hashed")
    has_bias: bool
    is_hashed: bool
    rows: Tensor
    multipliers: Tensor
    biases: Tensor
    salts: Tensor

    def __init__(self, rows_RD: Tensor, per_id: Sequence[Tensor], *, salts: Sequence[int]) -> None:
        super().__init__()
        self.has_bias = len(per_id) == 2
        self.is_hashed = bool(salts)
        self.register_buffer("rows", rows_RD.detach())
        for name, values_N1 in zip(("multipliers", "biases"), per_id, strict=False):
            self.register_buffer(name, values_N1.detach())
        if self.is_hashed:
            self.register_buffer("salts", torch.tensor(salts))

    def lookup(self, ids_N: Tensor) -> Tensor:
        salts = self.salts.tolist() if self.is_hashed else ()
        rows_ND = self.rows[row_of(ids_N, num_rows=self.rows.shape[0], salts=salts)]
        scaled_ND = rows_ND * self.multipliers[ids_N]
        return scaled_ND + self.biases[ids_N] if self.has_bias else scaled_ND
