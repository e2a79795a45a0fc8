"""PEP against closed forms, autograd and argpartition."""

import numpy as np
import pytest
import torch
from torchrec import KeyedJaggedTensor

from embank.compression.methods.pep import PepConfig, soft_threshold
from embank.compression.parts.masks import find_mask, mask_of
from embank.tables import (
    BudgetError,
    ConfigError,
    RowOptimizer,
    TableCollection,
    TableSpec,
    build_method,
    pack_table,
)
from embank.tables.collections.stages import advance, after_step, finished
from tests.compression.shards import Shard


def spec(name: str = "t", num: int = 500, dim: int = 8, **fields: object) -> TableSpec:
    return TableSpec(name=name, num_embeddings=num, embedding_dim=dim, feature_names=[name], method="pep", **fields)


def step(tables: TableCollection, ids: torch.Tensor) -> torch.Tensor:
    kjt = KeyedJaggedTensor(keys=["t"], values=ids, lengths=torch.ones(len(ids), dtype=torch.int32))
    out = tables(kjt).values()
    (out - 1).square().sum().backward()
    tables.update_rows()
    return out.detach()


def test_soft_threshold_and_its_gradients() -> None:
    values = torch.tensor([[0.9, -0.9, 0.3, -0.3, 0.0]], requires_grad=True)
    parameters = torch.zeros(5, requires_grad=True)  # thresholds of one half
    out = soft_threshold(values, parameters)
    torch.testing.assert_close(out, torch.tensor([[0.4, -0.4, 0.0, 0.0, 0.0]]))
    upstream = torch.tensor([[2.0, 3.0, 5.0, 7.0, 11.0]])
    (out * upstream).sum().backward()
    assert values.grad.tolist() == [[2.0, 3.0, 0.0, 0.0, 0.0]]
    torch.testing.assert_close(parameters.grad, -0.25 * torch.tensor([2.0, -3.0, 0.0, 0.0, 0.0]))
    x, s = torch.randn(4, 5, dtype=torch.double), torch.randn(5, dtype=torch.double)
    assert torch.autograd.gradcheck(soft_threshold, (x.requires_grad_(), s.requires_grad_()))


def test_without_a_target_the_mask_is_where_values_survive() -> None:
    tables = TableCollection([spec()])
    (method,) = tables.built_methods()
    with torch.no_grad():
        method.thresholds.copy_(torch.linspace(-6, -3.2, 8))
    expected = soft_threshold(tables.weights()["t"], method.thresholds) != 0
    assert 0.2 < expected.float().mean() < 0.9
    (trained,) = advance(tables).built_methods()
    assert torch.equal(mask_of(trained.mask, torch.arange(500), dim=8), expected)


def test_budget_keeps_the_largest_of_what_thresholds_leave_whatever_the_size_of_initial_values() -> None:
    specs = [spec("a", 500, 8, budget=0.15), spec("b", 60, 3, budget=0.15)]
    tables = TableCollection(specs)
    methods = list(tables.built_methods())
    with torch.no_grad():
        methods[0].thresholds.copy_(torch.linspace(-6, -3, 8))
    tables.weights()["b"].mul_(4)
    left = [soft_threshold(tables.weights()[m.spec.name], m.thresholds.detach()).abs().numpy().ravel() for m in methods]
    done = advance(tables)
    kept = [
        mask_of(m.mask, torch.arange(m.spec.num_embeddings), dim=m.spec.embedding_dim).numpy().ravel()
        for m in done.built_methods()
    ]
    count = sum(k.sum() for k in kept)
    assert set(np.flatnonzero(np.concatenate(kept))) == set(np.argpartition(-np.concatenate(left), count)[:count])
    assert 0.15 * done.plain_nbytes - 12 <= done.nbytes("serving") <= 0.15 * done.plain_nbytes


def test_retraining_starts_from_the_initial_values_and_leaves_pruned_entries_alone() -> None:
    tables = TableCollection([spec(budget=0.3)], optimizer=RowOptimizer(name="sgd", lr=0.1), backend="torch")
    initial = tables.weights()["t"].clone()
    for _ in range(5):
        step(tables, torch.arange(100))
    assert not torch.equal(tables.weights()["t"], initial)
    tables = advance(tables)
    assert torch.equal(tables.weights()["t"], initial)
    (method,) = tables.built_methods()
    mask = mask_of(method.mask, torch.arange(500), dim=8)
    assert torch.equal(step(tables, torch.arange(500)), initial * mask)
    moved = tables.weights()["t"] != initial
    assert torch.equal(moved, mask)
    packed = pack_table(method, tables.weights())
    assert torch.equal(packed.lookup(torch.arange(500)), tables.weights()["t"] * mask)


def test_pull_raises_thresholds_until_the_target_is_reached() -> None:
    tables = TableCollection([spec(budget=0.3, options=PepConfig(pull=1.0))])
    (method,) = tables.built_methods()
    optimizer = torch.optim.SGD(tables.dense_parameters(), lr=0.02)
    history = []
    for number in range(1, 301):
        optimizer.zero_grad()
        tables.extra_loss().backward()
        torch.testing.assert_close(method.thresholds.grad, method.is_pulling * method.thresholds.detach())
        optimizer.step()
        after_step(tables, step=number, num_steps=300)
        history.append(float(method.thresholds.detach()[0]))
    still = [a == b for a, b in zip(history, history[1:], strict=False)]
    assert still == sorted(still)
    assert 10 < sum(still) < 290
    surviving = soft_threshold(tables.weights()["t"], method.thresholds.detach())
    assert 0.15 < float((surviving != 0).float().mean()) < 0.27  # a bitmap leaves .266 of the entries


def test_mask_of_shards_is_that_of_the_whole() -> None:
    """Rows cut at a number that is no whole byte."""
    table = torch.randn(50, 3)

    parts = [
        find_mask(Shard(table, *cut), "t", shape=(50, 3), keep=lambda r, first: r > 0)
        for cut in ((0, 17), (17, 18), (18, 50))
    ]
    assert torch.equal(mask_of(sum(parts), torch.arange(50), dim=3), table > 0)


def test_floor_and_bad_options() -> None:
    with pytest.raises(BudgetError, match="method 'pep' needs one entry and its place, 14 bytes, so its floor is"):
        build_method(spec(budget=1e-4))
    with pytest.raises(ConfigError, match="granularity 'row'; it must be 'table' or 'dimension'"):
        PepConfig(granularity="row")
    with pytest.raises(ConfigError, match="initial_share is 0"):
        PepConfig(initial_share=0)


@pytest.mark.parametrize(("num", "dim"), [(1, 1), (1, 2048), (7, 3)])
def test_edge_sizes(num: int, dim: int) -> None:
    tables = finished(TableCollection([spec(num=num, dim=dim, options=PepConfig(granularity="table"))]))
    (method,) = tables.built_methods()
    assert pack_table(method, tables.weights()).lookup(torch.tensor([num - 1])).shape == (1, dim)


def test_addresses_beyond_31_bits() -> None:
    method = build_method(spec(num=2**31 + 1, dim=16, budget=0.01))
    assert method.address(torch.tensor([2**31]))[0].item() == 2**31
