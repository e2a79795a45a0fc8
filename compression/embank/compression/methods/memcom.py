"""MEmCom: ids share rows, and each has a multiplier of its own.

Pansare, Katukuri, Arora, Cipollone, Shaik, Tokgozoglu, Venkataraman, "Learning Compressed Embeddings for On-Device
Inference", MLSys 2022.

Its rows may be shared by several features, see `embank.compression.parts.multiplexed`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from embank.compression.parts.beside import allocate_beside, rows_beside
from embank.compression.parts.multiplexed import SALT_NBYTES, lookup_salts, physical_name, shared_init
from embank.tables import Method, PackedTable, PhysicalTable, RowInit, TableSpec, default_init
from embank.tables.ids.hashing import hash_rows
from embank.tables.method.options import options_of


@dataclass(frozen=True, kw_only=True)
class MemcomConfig:
    """Options of MEmCom.

    Args:
        num_rows: shared rows; None takes what the budget leaves beside the multipliers, or a quarter of the ids without
            one.
        bias: each id also has a number that is added to all elements of its row.
        table: features that give the same name (and dim and number of rows) read the same rows, at places of their own
            by a hash; multipliers and biases stay each feature's. `Memcom.allocate` sets the rows from a budget for all
            features; without them, under a budget of its own, a feature is hashed into rows of its own.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic, not a field

    num_rows: int | None = None
    bias: bool = False
    table: str | None = None


class Memcom(Method):
    """`row[x mod m] * multiplier[x]`, plus `bias[x]` if asked for.

    The paper's hash is the remainder. After ranking by frequency it is the right one: the m hottest ids get different
    rows, and each shares its row with colder ones alone. Multipliers start at 1 with a small spread, so rows start as
    spread as the plain table's; biases start at 0. Rows that features share are chosen by a hash salted with the
    feature's name instead, since remainders would put the hot ids of all features into the same rows.

    Its floor is high, as every id has a number of its own: 1 / embedding_dim of the plain table, and one row.

    Raises:
        BudgetError: the budget does not hold the multipliers and one row.
        ConfigError: both a budget and a number of rows, or shared rows of no known number.
    """

    Config = MemcomConfig

    def __init__(self, spec: TableSpec) -> None:
        super().__init__(spec)
        options: MemcomConfig = self.options()
        needs = f"{'two numbers' if options.bias else 'a number'} per id and one row"
        self.num_rows = rows_beside(spec, options, fixed_nbytes=_fixed_nbytes(spec), needs=needs)
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
        """The largest common share of rows beside the multipliers, or equally many rows for tables that share them;
        tables that multipliers would not make smaller stay plain."""
        return allocate_beside(specs, nbytes, options=_options, fixed_nbytes=_fixed_nbytes)


def row_of(ids_N: Tensor, *, num_rows: int, salts: Sequence[int]) -> Tensor:
    """The shared row of each id: by the remainder without a salt, by a hash with one."""
    return hash_rows(ids_N, num_rows=num_rows, salt=salts[0]) if salts else ids_N % num_rows


def _options(spec: TableSpec) -> MemcomConfig:
    return options_of(spec, MemcomConfig)


def _fixed_nbytes(spec: TableSpec) -> int:
    """Bytes of the multipliers, the biases and the salt, as far as there are any."""
    options = _options(spec)
    return 4 * spec.num_embeddings * (1 + options.bias) + (0 if options.table is None else SALT_NBYTES)


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
