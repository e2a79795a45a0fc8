"""Methods for tests of bundles: one whose tables share their rows, one of two stages, one with a spine of another
module."""

from collections.abc import Mapping

from torch import Tensor

from embank.compression.methods import optembed
from embank.tables import (
    Held,
    Method,
    PhysicalTable,
    RowInit,
    Schedule,
    Served,
    Spine,
    Stage,
    TableSpec,
    Traits,
    option_class,
    register_method,
)


@option_class
class NoConfig:
    """No options."""


class Flat(Spine):
    """Rows of several columns, from a matrix that holds them one number a row."""

    held = Held(facts=("dim",))

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        return tuple(ids_N * self.dim + column for column in range(self.dim))


class OneArray(Method):
    """All tables of the method have the same rows; every other one sees them as a flat array."""

    Config = NoConfig

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        init = RowInit(scale=0.5)
        self.physical = (PhysicalTable(name="shared", num_embeddings=400, embedding_dim=spec.embedding_dim, init=init),)

    def served(self, rows: Mapping[str, Tensor]) -> Served:
        if self.spec.name != "y":
            return super().served(rows)
        dim = self.spec.embedding_dim
        return Served(spine=Flat(dim), matrices={"flat": rows["shared"].view(-1, 1)}, lookups=("flat",) * dim)


class _Searched(Schedule):
    stages = (Stage(name="search", is_search=True), Stage(name="train"))


class TwoStages(OneArray):
    """The same with a search before it."""

    traits = Traits(schedule=_Searched())


class Elsewhere(OneArray):
    """Served by a spine of another module."""

    def served(self, rows: Mapping[str, Tensor]) -> Served:
        return Served.of_rows(rows["shared"], spine=optembed.Kept(dim=self.spec.embedding_dim, bitmap=None))


register_method("test_elsewhere", Elsewhere)
register_method("test_one_array", OneArray)
register_method("test_two_stages", TwoStages)
