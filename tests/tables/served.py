"""Methods for tests of bundles: one whose tables share their rows, one of two stages, one that is packed elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from embank.compression.methods import full
from embank.tables import Method, PackedTable, PhysicalTable, RowInit, Stage, TableSpec, register_method


@dataclass(frozen=True, kw_only=True)
class NoConfig:
    """No options."""


class PackedRows(PackedTable):
    """Rows as they are, or seen as one flat array."""

    rows: Tensor
    facts = ("dim",)

    def __init__(self, rows: Tensor, *, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("rows", rows.detach())

    def lookup(self, ids_N: Tensor) -> Tensor:
        return self.rows.view(-1, self.dim)[ids_N]


class OneArray(Method):
    """All tables of the method have the same rows; every other one sees them as a flat array."""

    Config = NoConfig
    linear = True

    def __init__(self, spec: TableSpec) -> None:
        super().__init__(spec)
        init = RowInit(scale=0.5)
        self.physical = (PhysicalTable(name="shared", num_embeddings=400, embedding_dim=spec.embedding_dim, init=init),)

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        return (ids_N,)

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        return rows[0]

    def pack(self, rows: Mapping[str, Tensor]) -> PackedTable:
        shared = rows["shared"]
        return PackedRows(shared.view(-1) if self.spec.name == "y" else shared, dim=self.spec.embedding_dim)


class TwoStages(OneArray):
    """The same with a search before it."""

    stages = (Stage(name="search", is_search=True), Stage(name="train"))


class Elsewhere(OneArray):
    """Packed by a class of another module."""

    def pack(self, rows: Mapping[str, Tensor]) -> PackedTable:
        return full.PackedFull(rows["shared"])


register_method("test_elsewhere", Elsewhere)
register_method("test_one_array", OneArray)
register_method("test_two_stages", TwoStages)
