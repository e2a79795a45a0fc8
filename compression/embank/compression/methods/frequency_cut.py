"""The frequency cut: rows for the most frequent ids, one row for all others. The baseline that learned methods must
beat.

On Criteo 80% of all ids occur once and carry next to no signal, so this is stronger than it looks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from embank.compression.parts.ranked import num_rows_within, refuse_unranked
from embank.tables import Method, PackedTable, PhysicalTable, TableSpec, default_init


@dataclass(frozen=True, kw_only=True)
class FrequencyCutConfig:
    """Options of the frequency cut.

    Args:
        num_rows: rows that are kept, the shared one included; None takes what the budget allows, or without a budget
            one row per id.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic, not a field

    num_rows: int | None = None


class FrequencyCut(Method):
    """Ids 0 .. K - 1 have rows of their own; the rarer ones read and train row 0, the unknown value's.

    It is the table that preparing the data with a higher `min_count` would give, chosen by bytes instead: rare ids
    count as unknown, and the unknown row learns from them what an unseen id will need. Ids are ranked by frequency, so
    the K most frequent ones are a prefix and nothing is held besides the rows.

    Raises:
        BudgetError: the budget does not hold one row.
        ConfigError: both a budget and a number of rows, or counts by which the ids are not ranked.
    """

    Config = FrequencyCutConfig
    linear: ClassVar[bool] = True

    def __init__(self, spec: TableSpec) -> None:
        super().__init__(spec)
        self.num_rows = num_rows_within(spec, num_rows=self.options().num_rows, constant_nbytes=0)
        refuse_unranked(spec, num_private=self.num_rows)
        self.physical = (
            PhysicalTable(
                name=spec.name, num_embeddings=self.num_rows, embedding_dim=spec.embedding_dim, init=default_init(spec)
            ),
        )

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        return (cut(ids_N, num_rows=self.num_rows),)

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        return rows[0]

    def pack(self, rows: Mapping[str, Tensor]) -> PackedTable:
        return PackedFrequencyCut(rows[self.spec.name])


class PackedFrequencyCut(PackedTable):
    """The rows alone: how many there are says where the cut is."""

    rows: Tensor

    def __init__(self, rows_RD: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows_RD.detach())

    def lookup(self, ids_N: Tensor) -> Tensor:
        return self.rows[cut(ids_N, num_rows=self.rows.shape[0])]


def cut(ids_N: Tensor, *, num_rows: int) -> Tensor:
    """Rows [N] of ids: their own below `num_rows`, else row 0."""
    return torch.where(ids_N < num_rows, ids_N, 0)
