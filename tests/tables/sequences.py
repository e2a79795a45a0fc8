"""Tables, ids and a naive twin for tests of SequenceCollection."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from embank.tables import (
    Advance,
    Carry,
    Method,
    PhysicalTable,
    Schedule,
    SequenceCollection,
    Stage,
    TableSpec,
    Traits,
    default_init,
    register_method,
)
from tests.tables.products import Product, ProductConfig

GROUPS = {"first": (30, 11, 7), "second": (30, 40)}
"""Ids of each group's tables; the table of 30 rows belongs to both groups."""


class Signs(Method):
    """No rows at all: a dense parameter times the id's sign, which travels as its side input."""

    Config = ProductConfig
    physical = ()

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        self.row = nn.Parameter(torch.ones(spec.embedding_dim))

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        return ()

    def side(self, ids_N: Tensor) -> Tensor:
        return 1.0 - 2.0 * (ids_N % 2)

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        assert side is not None
        return side[:, None] * self.row


class _TwoStages(Schedule):
    stages = (Stage(name="find", is_search=True), Stage(name="train"))

    def advance(self, methods, rows, *, score, seed):
        return [
            Advance(found={}, carries={f"{m.spec.name}/1": Carry(table=f"{m.spec.name}/0")}, dense={}) for m in methods
        ]


class Doubled(Method):
    """Two stages: the second goes on with the rows of the first."""

    Config = ProductConfig
    traits = Traits(schedule=_TwoStages())

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        name = f"{spec.name}/{spec.stage}"
        self.physical = (
            PhysicalTable(
                name=name,
                num_embeddings=spec.num_embeddings,
                embedding_dim=spec.embedding_dim,
                init=default_init(spec),
            ),
        )


register_method("test_product", Product)
register_method("test_signs", Signs)
register_method("test_doubled", Doubled)


def plain_specs(dim: int = 8) -> list[TableSpec]:
    """Plain tables, one of them in both groups, dims that differ."""
    return [
        TableSpec(name="both", num_embeddings=30, embedding_dim=dim, feature_names=["first", "second"], init_std=0.3),
        TableSpec(name="a", num_embeddings=11, embedding_dim=dim, feature_names=["first"], init_std=0.3),
        TableSpec(name="b", num_embeddings=7, embedding_dim=3, feature_names=["first"], init_std=0.3),
        TableSpec(name="c", num_embeddings=40, embedding_dim=dim, feature_names=["second"], init_std=0.3),
    ]


def mixed_specs() -> list[TableSpec]:
    """The same ids, stored by other methods: fewer rows, several lookups, no rows."""
    both, a, b, c = plain_specs()
    return [
        replace(both, method="test_product"),
        replace(a, method="hash", budget=0.5),
        replace(b, method="test_signs"),
        c,
    ]


def random_ids(seed: int, *, batch_size: int = 3, num_tokens: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        group: torch.stack(
            [torch.randint(0, size, (batch_size, num_tokens), generator=generator) for size in sizes], dim=2
        )
        for group, sizes in GROUPS.items()
    }


class Naive(nn.Module):
    """One nn.Embedding per table with dense gradients, looked up column by column."""

    def __init__(self, tables: SequenceCollection) -> None:
        super().__init__()
        self.specs = tables.specs
        self.tables = nn.ModuleDict(
            {n: nn.Embedding.from_pretrained(w.clone(), freeze=False) for n, w in tables.weights().items()}
        )

    def forward(self, ids: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = {}
        for group, ids_BTH in ids.items():
            names = [spec.name for spec in self.specs if group in spec.feature_names]
            outputs[group] = torch.cat([self.tables[n](ids_BTH[:, :, h]) for h, n in enumerate(names)], dim=2)
        return outputs


def towards_one(outputs: Mapping[str, Tensor]) -> Tensor:
    return sum(((out - 1).square().sum() for out in outputs.values()), torch.zeros(()))


def assert_same_rows(tables: SequenceCollection, naive: Naive) -> None:
    for name, weight in tables.weights().items():
        torch.testing.assert_close(weight, naive.tables[name].weight.detach(), rtol=1e-5, atol=1e-5)
