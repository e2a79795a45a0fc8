"""Growth keeps every output, bit for bit, and lets training tell apart what shared rows before."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torchrec import KeyedJaggedTensor

from embank.compression.methods.unified import UnifiedConfig
from embank.compression.multiplexing.growth import with_doubled_rows, with_lookups
from embank.compression.multiplexing.specs import unified_specs
from embank.tables import RowOptimizer, RowTier, TableCollection, TableSpec
from embank.tables.errors import ConfigError
from tests.tables.batches import random_kjt

SIZES = {"user": 500, "item": 300, "plain": 50}


def tables_of(**options: Any) -> TableCollection:
    """Two features in rows of 4, one of them projected, and one in a plain table; trained a little."""
    specs = [
        *unified_specs(rows=37, width=4, lookups={"user": 2}, num_embeddings=size_of("user")),
        *unified_specs(rows=37, width=4, lookups={"item": 2}, num_embeddings=size_of("item"), embedding_dim=6),
        TableSpec(name="plain", num_embeddings=50, embedding_dim=8, feature_names=["plain"]),
    ]
    tables = TableCollection(specs, optimizer=RowOptimizer(name="rowwise_adagrad", lr=0.05), **options)
    train(tables, steps=3)
    return tables


def size_of(name: str) -> dict[str, int]:
    return {name: SIZES[name]}


def train(tables: TableCollection, *, steps: int, seed: int = 0) -> None:
    for step in range(steps):
        (tables(random_kjt(SIZES, batch_size=32, seed=seed + step)).values() - 1).square().sum().backward()
        tables.update_rows()
        with torch.no_grad():
            for parameter in tables.dense_parameters():
                parameter -= 1e-3 * parameter.grad
                parameter.grad = None


def outputs(tables: TableCollection) -> torch.Tensor:
    ids = torch.arange(300)
    kjt = KeyedJaggedTensor(
        keys=list(SIZES), values=torch.cat([ids, ids, ids % 50]), lengths=torch.ones(900, dtype=torch.int32)
    )
    with torch.no_grad():
        values: torch.Tensor = tables.eval()(kjt).values()
    tables.train()
    return values


@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
def test_doubled_rows(backend: str) -> None:
    tables = tables_of(backend=backend)
    grown = with_doubled_rows(tables)
    assert grown.weights()["unified/shared/4"].shape == (74, 4)
    assert torch.equal(outputs(tables), outputs(grown))
    assert torch.equal(outputs(with_doubled_rows(grown)), outputs(tables))
    state = grown.optimizer_state()["unified/shared/4"]["sum"]
    assert state[:37].count_nonzero() > 30
    assert torch.equal(state[:37], state[37:])
    before = outputs(tables)
    train(grown, steps=3, seed=50)
    assert torch.equal(before, outputs(tables)), "growth leaves the old collection alone"
    first, second = grown.weights()["unified/shared/4"].split(37)
    assert not torch.equal(first, second), "training separates the halves"


def distinct(values: torch.Tensor) -> int:
    return int(torch.unique(values, dim=0).shape[0])


def test_growth_lets_training_separate_values_that_were_one() -> None:
    """500 values in 5 rows by one lookup can only be 5 rows; after growth and training they are more."""
    specs = unified_specs(rows=5, width=4, lookups={"user": 1}, num_embeddings=size_of("user"))
    tables = TableCollection(specs, optimizer=RowOptimizer(name="sgd", lr=0.01))

    def rows(of: TableCollection) -> torch.Tensor:
        ids = torch.arange(500)
        with torch.no_grad():
            values: torch.Tensor = of(
                KeyedJaggedTensor(keys=["user"], values=ids, lengths=torch.ones(500, dtype=torch.int32))
            ).values()
        return values

    assert distinct(rows(tables)) == 5
    for grown, most in ((with_doubled_rows(tables), 10), (with_lookups(tables, {"user": 2}), 25)):
        assert torch.equal(rows(grown), rows(tables))
        (method,) = grown.built_methods()
        target = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
        ids = torch.arange(500)
        for _ in range(5):
            kjt = KeyedJaggedTensor(keys=["user"], values=ids, lengths=torch.ones(500, dtype=torch.int32))
            (grown(kjt).values() - target).square().mean(0).sum().backward()
            grown.update_rows()
            with torch.no_grad():
                for parameter in method.parameters():
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
        assert distinct(rows(grown)) == most


@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
def test_more_lookups(backend: str, tmp_path: Path) -> None:
    tables = tables_of(backend=backend, tier=RowTier(name="disk", directory=tmp_path))
    grown = with_lookups(tables, {"user": 3, "item": 5})
    assert [len(method.physical) for method in grown.built_methods()] == [3, 5, 1]
    assert torch.equal(outputs(tables), outputs(grown))
    assert torch.equal(outputs(with_doubled_rows(with_lookups(grown, {"user": 4}))), outputs(tables))
    assert grown.weights().keys() == tables.weights().keys()
    for name, state in tables.optimizer_state().items():
        assert torch.equal(state["sum"], grown.optimizer_state()[name]["sum"])
    train(grown, steps=3, seed=50)
    assert not torch.equal(outputs(tables), outputs(grown))


def test_a_private_table_of_a_budget_grows() -> None:
    spec = TableSpec(
        name="t", num_embeddings=500, embedding_dim=8, feature_names=["user"], method="unified", budget=0.3
    )
    tables = TableCollection([spec])
    kjt = random_kjt({"user": 500}, batch_size=64, seed=0)
    grown = with_lookups(tables, {"t": 3})
    assert torch.equal(tables(kjt).values(), grown(kjt).values())


def test_refusals() -> None:
    tables = tables_of()
    with pytest.raises(ConfigError, match="no table shares table 'shred'; did you mean 'shared'"):
        with_doubled_rows(tables, table="shred")
    with pytest.raises(ConfigError, match="no table 'usr' is hashed by 'unified'; did you mean 'user'"):
        with_lookups(tables, {"usr": 3})
    with pytest.raises(ConfigError, match="no table 'plain' is hashed by 'unified'"):
        with_lookups(tables, {"plain": 3})
    with pytest.raises(ConfigError, match="table 'user' has 2 lookups; 2 are no more. Give a larger number"):
        with_lookups(tables, {"user": 2})
    assert isinstance(tables.specs[0].options, UnifiedConfig)
