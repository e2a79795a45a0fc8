"""AutoDim against torch's own batch normalisation, the one-hot limit and exhaustive choice."""

from itertools import product

import pytest
import torch
from torch import nn
from torchrec import KeyedJaggedTensor

from embank.compression.methods.autodim import AutoDimConfig, Projection, choose, width_nbytes
from embank.tables import BudgetError, ConfigError, RowOptimizer, TableCollection, TableSpec, build_method, pack_table
from embank.tables.collections.stages import advance, after_step, finished, search_parameters


def spec(name: str = "t", num: int = 200, dim: int = 8, **fields: object) -> TableSpec:
    return TableSpec(name=name, num_embeddings=num, embedding_dim=dim, feature_names=[name], method="autodim", **fields)


def lookup(tables: TableCollection, ids: torch.Tensor) -> torch.Tensor:
    kjt = KeyedJaggedTensor(keys=["t"], values=ids, lengths=torch.ones(len(ids), dtype=torch.int32))
    return tables(kjt).values()


def searched(**fields: object) -> TableCollection:
    """A search after some steps: rows, projections and running statistics have moved."""
    tables = TableCollection([spec(**fields)], optimizer=RowOptimizer(lr=0.05), seed=2)
    optimizer = torch.optim.Adam(tables.dense_parameters(), lr=0.02)
    for step in range(30):
        torch.manual_seed(step)
        optimizer.zero_grad()
        (lookup(tables, torch.arange(200)) - torch.arange(8.0)).square().mean().backward()
        tables.update_rows()
        optimizer.step()
        after_step(tables, step=step + 1, num_steps=100)
    return tables


def test_widths_are_powers_of_two_and_the_dim() -> None:
    assert {d: build_method(spec(dim=d)).widths for d in (1, 2, 3, 8, 12)} == {
        1: (1,),
        2: (1, 2),
        3: (1, 2, 3),
        8: (1, 2, 4, 8),
        12: (1, 2, 4, 8, 12),
    }
    assert [t.embedding_dim for t in build_method(spec()).physical] == [1, 2, 4, 8]


def test_normalisation_is_that_of_torch() -> None:
    ours, theirs = Projection(3, 5, searched=True), nn.BatchNorm1d(5, affine=False)
    for step in range(4):
        rows = torch.randn(17, 3, generator=torch.Generator().manual_seed(step))
        torch.testing.assert_close(ours(rows), theirs(rows @ ours.weight + ours.bias))
    torch.testing.assert_close(ours.mean, theirs.running_mean)
    torch.testing.assert_close(ours.variance, theirs.running_var)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(rows), theirs(rows @ ours.weight + ours.bias))
    ours.train()
    assert ours(rows[:1]).isfinite().all()
    assert ours(rows[:0]).shape == (0, 5)


def test_weights_are_a_gumbel_softmax() -> None:
    (method,) = TableCollection([spec()]).built_methods()
    with torch.no_grad():
        method.logits.copy_(torch.tensor([0.0, 1.0, 2.0, 0.5]))
    torch.manual_seed(0)
    method.temperature.fill_(0.01)
    drawn = torch.stack([method.probabilities().detach() for _ in range(20_000)])
    torch.testing.assert_close(drawn.sum(1), torch.ones(len(drawn)))
    assert float((drawn.amax(1) > 0.99).float().mean()) > 0.9, "a low temperature gives one width at a time"
    shares = drawn.argmax(1).bincount(minlength=4) / len(drawn)
    torch.testing.assert_close(shares, method.logits.detach().softmax(0), rtol=0, atol=0.012)
    method.eval()
    assert torch.equal(method.probabilities(), method.probabilities())


@pytest.mark.parametrize("index", range(4))
def test_retraining_starts_anew_at_the_width_that_was_found(index: int) -> None:
    tables = searched()
    (method,) = tables.built_methods()
    with torch.no_grad():
        method.logits.copy_(100.0 * torch.eye(4)[index])
    done = advance(tables)
    (chosen,) = done.built_methods()
    table = chosen.physical[0]
    assert table.embedding_dim == [1, 2, 4, 8][index]
    untrained = TableCollection([spec()], seed=2).weights()[table.name]
    assert torch.equal(done.weights()[table.name], untrained)
    values = lookup(done, torch.arange(200)).detach()
    torch.testing.assert_close(values, untrained @ chosen.projections[0].weight + chosen.projections[0].bias)
    assert values.square().mean() == pytest.approx(float(untrained.square().mean()), rel=0.3)


def test_validation_moves_the_logits_alone_and_they_have_a_gradient() -> None:
    tables = searched()
    (method,) = tables.built_methods()
    assert search_parameters(tables) == [method.logits]
    tables.zero_grad()
    lookup(tables, torch.arange(50)).square().sum().backward()
    assert method.logits.grad.abs().sum() > 0
    assert not search_parameters(advance(tables))


def test_temperature_falls_with_the_share_of_the_training() -> None:
    tables = TableCollection([spec()])
    (method,) = tables.built_methods()
    seen = []
    for step in (1, 500, 990, 1000):
        after_step(tables, step=step, num_steps=1000)
        seen.append(float(method.temperature))
    assert seen == pytest.approx([0.999, 0.5, 0.01, 0.01])


def test_the_likeliest_widths_within_the_budget_are_taken() -> None:
    tables = TableCollection([spec("a", 500, 8, budget=0.5), spec("b", 300, 8, budget=0.3)])
    first, second = tables.built_methods()
    with torch.no_grad():
        first.logits.copy_(torch.tensor([0.0, 3.0, 1.0, 2.0]))
        second.logits.copy_(torch.tensor([0.0, 0.1, 0.2, 5.0]))
    done = advance(tables)
    assert [m.widths for m in done.built_methods()] == [(2,), (4,)]
    assert done.nbytes("serving") <= 0.5 * 500 * 32 + 0.3 * 300 * 32


def test_choice_of_one_is_exact_and_of_several_is_near_the_best() -> None:
    generator = torch.Generator().manual_seed(0)
    gaps = []
    for trial in range(200):
        tables = 1 if trial % 4 == 0 else 4
        scores = torch.randn(tables, 4, generator=generator).log_softmax(1).tolist()
        costs = (torch.randint(1, 50, (tables, 4), generator=generator).cumsum(1)).tolist()
        low, high = sum(c[0] for c in costs), sum(c[-1] for c in costs)
        limit = low + (high - low) * float(torch.rand(1, generator=generator))
        picks = choose(scores, costs, limit=limit)
        feasible = [
            sum(s[k] for s, k in zip(scores, option, strict=True))
            for option in product(range(4), repeat=tables)
            if sum(c[k] for c, k in zip(costs, option, strict=True)) <= limit
        ]
        assert sum(c[k] for c, k in zip(costs, picks, strict=True)) <= limit
        gap = max(feasible) - sum(s[k] for s, k in zip(scores, picks, strict=True))
        gaps.append(gap)
        if tables == 1:
            assert gap == pytest.approx(0)
    assert sum(gap < 1e-9 for gap in gaps) > 150
    assert sum(gaps) / len(gaps) < 0.1


def test_bytes_are_rows_projection_and_bias() -> None:
    tables = finished(TableCollection([spec(budget=0.5)]))
    (method,) = tables.built_methods()
    assert method.widths == (2,)
    assert tables.nbytes("serving") == width_nbytes(spec(), 2) == 4 * (200 * 2 + 2 * 8 + 8)
    tiny = finished(TableCollection([spec(num=3)]))
    assert tiny.nbytes("serving") == 4 * 3 * 8, "a table smaller than its projection is served plain"


def test_floor_and_bad_options() -> None:
    with pytest.raises(BudgetError, match="needs rows of width 1 and their projection, 864 bytes, so its floor is"):
        build_method(spec(budget=0.1))
    for widths in ((4, 2), (0, 2), (2, 16)):
        with pytest.raises(ConfigError, match="give ascending ones from 1 to its dim, 8"):
            build_method(spec(options=AutoDimConfig(widths=widths)))


@pytest.mark.parametrize(("num", "dim"), [(1, 1), (1, 2048), (7, 3)])
def test_edge_sizes(num: int, dim: int) -> None:
    tables = finished(TableCollection([spec(num=num, dim=dim)]))
    (method,) = tables.built_methods()
    ids = torch.arange(num)
    torch.testing.assert_close(pack_table(method, tables.weights()).lookup(ids), lookup(tables, ids).detach())


def test_addresses_beyond_31_bits() -> None:
    method = build_method(spec(num=2**31 + 1, dim=16))
    assert [a.item() for a in method.address(torch.tensor([2**31]))] == [2**31] * 5
