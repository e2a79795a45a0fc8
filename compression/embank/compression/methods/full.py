"""The plain table: one row per id. The baseline of all others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from embank.tables import BudgetError, Method, PackedTable, PhysicalTable, TableSpec, default_init


@dataclass(frozen=True, kw_only=True)
class FullConfig:
    """The plain table has no options."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic, not a field


class Full(Method):
    """One fp32 row per id.

    Raises:
        BudgetError: a budget below 1, since every row is kept whole.
    """

    Config = FullConfig
    linear: ClassVar[bool] = True
    is_plain: ClassVar[bool] = True
    takes_budget: ClassVar[bool] = False

    def __init__(self, spec: TableSpec) -> None:
        super().__init__(spec)
        self.options()
        if spec.budget is not None and spec.budget < 1:
            raise BudgetError(
                f"table '{spec.name}': method 'full' keeps every row, its floor is budget 1.0 ({spec.plain_nbytes:,} "
                "bytes); "
                f"the budget is {spec.budget}. Raise the budget, or use another method, such as 'hash'"
            )
        self.physical = (
            PhysicalTable(
                name=spec.name,
                num_embeddings=spec.num_embeddings,
                embedding_dim=spec.embedding_dim,
                init=default_init(spec),
            ),
        )

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        return (ids_N,)

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        return rows[0]

    def pack(self, rows: Mapping[str, Tensor]) -> PackedTable:
        return PackedFull(rows[self.spec.name])


class PackedFull(PackedTable):
    """All rows, without padding."""

    rows: Tensor

    def __init__(self, rows_RD: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows_RD.detach())

    def lookup(self, ids_N: Tensor) -> Tensor:
        return self.rows[ids_N]
