"""DeepLight against argpartition, the published schedule's values and scipy's matrices."""

import numpy as np
import pytest
import torch
from torchrec import KeyedJaggedTensor

from embank.compression import build_table
from embank.compression.methods.deeplight import DeepLightConfig, scheduled_sparsity
from embank.compression.parts.sparse import sparse_nbytes
from embank.tables import BudgetError, ConfigError, TableCollection, TableSpec, build_method
from embank.tables.collections.stages import after_step, settle


def spec(name: str = "t", num: int = 600, dim: int = 8, **fields: object) -> TableSpec:
    return TableSpec(
        name=name, num_embeddings=num, embedding_dim=dim, feature_names=[name], method="deeplight", **fields
    )


@pytest.mark.parametrize(("step", "sparsity"), [(0, 0.0), (100, 0.009), (1000, 0.0860561), (68_732, 0.8991)])
def test_schedule_is_the_published_one(step: int, sparsity: float) -> None:
    """S (1 - 0.99**(t / 100)) with S = 0.9 at the steps of a ramp of 68,732."""
    assert scheduled_sparsity(0.9, step / 68_732.00001) == pytest.approx(sparsity, rel=1e-6)


def test_schedule_ends() -> None:
    assert scheduled_sparsity(0.9, 1.0) == scheduled_sparsity(0.9, 3.0) == 0.9


def test_settling_keeps_the_largest_entries_of_all_tables() -> None:
    tables = TableCollection([spec("a", 600, 8, budget=0.2), spec("b", 90, 3, budget=0.2)])
    weights = {name: w.clone() for name, w in tables.weights().items()}
    settle(tables)
    pruned = tables.weights()
    flat = np.abs(np.concatenate([w.numpy().ravel() for w in weights.values()]))
    kept = np.concatenate([w.numpy().ravel() != 0 for w in pruned.values()])
    top = np.argpartition(-flat, kept.sum())[: kept.sum()]
    assert set(np.flatnonzero(kept)) == set(top)
    for name, w in pruned.items():
        assert torch.equal(w[w != 0], weights[name][w != 0])
    allowed = 0.2 * 4 * (600 * 8 + 90 * 3)
    assert tables.nbytes("serving") <= allowed
    assert allowed - tables.nbytes("serving") <= 8, "one more entry would have fitted"


def test_pruning_follows_the_schedule_and_entries_grow_back_in_between() -> None:
    tables = TableCollection([spec(budget=0.1)])
    (rows,) = tables.weights().values()
    steps, densities = 1000, []
    for step in range(1, steps + 1):
        after_step(tables, step=step, num_steps=steps)
        if step % 100 == 0:
            densities.append(float((rows != 0).float().mean()))
    final = densities[-1]
    expected = [1 - scheduled_sparsity(1 - final, (t - t % 7 - 100) / 700) for t in range(100, 1001, 100)]
    assert densities == pytest.approx(expected, abs=2e-3)
    assert densities == sorted(densities, reverse=True)
    place = tuple((rows == 0).nonzero()[0])
    rows[place] = 9.0
    after_step(tables, step=994, num_steps=1000)
    assert rows[place] == 9.0
    assert float((rows != 0).float().mean()) <= final


def test_regrown_entries_are_pruned_before_serving() -> None:
    tables = TableCollection([spec(budget=0.1)])
    settle(tables)
    kjt = KeyedJaggedTensor(keys=["t"], values=torch.arange(600), lengths=torch.ones(600, dtype=torch.int32))
    (tables(kjt).values() - 1).square().sum().backward()
    tables.update_rows()
    (rows,) = tables.weights().values()
    assert bool((rows != 0).all())
    assert tables.nbytes("serving") <= 0.1 * tables.plain_nbytes, "what would be served is pruned"
    settle(tables)
    assert sparse_nbytes(rows.numel(), (rows != 0).sum()) <= 0.1 * tables.plain_nbytes


def test_density_without_a_budget() -> None:
    table = build_table(method="deeplight", num_embeddings=500, embedding_dim=8, options=DeepLightConfig(density=0.25))
    (rows,) = table.collection.weights().values()
    assert int((rows != 0).sum()) == 1000
    assert table.nbytes() == int(sparse_nbytes(4000, torch.tensor(1000)))
    assert table.nbytes("nominal") == 4 * 1000


def test_floor_and_bad_options() -> None:
    with pytest.raises(BudgetError, match="needs one entry and its place, 14 bytes, so its floor is budget 0.00072"):
        build_method(spec(budget=1e-4))
    with pytest.raises(ConfigError, match="has both budget 0.1 and density 0.5; keep one"):
        build_method(spec(budget=0.1, options=DeepLightConfig(density=0.5)))
    with pytest.raises(ConfigError, match="has density 0"):
        build_method(spec(options=DeepLightConfig(density=0.0)))
    with pytest.raises(ConfigError, match="begins at 0.9 and ends at 0.8"):
        DeepLightConfig(begin=0.9)


@pytest.mark.parametrize(("num", "dim"), [(1, 1), (1, 2048), (7, 3)])
def test_edge_sizes(num: int, dim: int) -> None:
    table = build_table(method="deeplight", num_embeddings=num, embedding_dim=dim)
    packed = table.pack()
    assert packed.nbytes() == 4 * num * dim
    assert torch.equal(packed.lookup(torch.tensor([num - 1])), table.lookup(torch.tensor([num - 1])))


def test_addresses_beyond_31_bits() -> None:
    method = build_method(spec(num=2**31 + 1, dim=16, budget=0.01))
    last = torch.tensor([2**31])
    assert method.address(last)[0].item() == 2**31
    assert method.physical[0].num_embeddings == 2**31 + 1
