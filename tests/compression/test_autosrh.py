"""AutoSrh against brute-force groups, autograd and argpartition."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torchrec import KeyedJaggedTensor

from embank.compression.methods.autosrh import AutoSrhConfig, frequency_bounds
from embank.compression.parts.masks import mask_of
from embank.tables import BudgetError, ConfigError, TableCollection, TableSpec, build_method, pack_table
from embank.tables.collections.stages import advance, after_step, finished, search_parameters

COUNTS = (1e4 / torch.arange(1, 301) ** 1.2).long() + 1


def spec(name: str = "t", num: int = 300, dim: int = 6, **fields: object) -> TableSpec:
    fields = {"counts": COUNTS if num == 300 else None, **fields}
    return TableSpec(name=name, num_embeddings=num, embedding_dim=dim, feature_names=[name], method="autosrh", **fields)


def lookup(tables: TableCollection, ids: torch.Tensor) -> torch.Tensor:
    kjt = KeyedJaggedTensor(keys=["t"], values=ids, lengths=torch.ones(len(ids), dtype=torch.int32))
    return tables(kjt).values()


def in_search(**fields: object) -> TableCollection:
    """A table in its search, alpha drawn at random."""
    tables = advance(TableCollection([spec(**fields)]))
    (method,) = tables.built_methods()
    with torch.no_grad():
        method.alpha.uniform_(0, 1)
    return tables


def test_groups_partition_ids_by_frequency_with_ties_together() -> None:
    (method,) = in_search().built_methods()
    groups = method.groups(torch.arange(300))
    assert groups.unique().tolist() == list(range(method.num_groups))
    for a in range(method.num_groups):
        for b in range(a):
            assert COUNTS[groups == b].max() < COUNTS[groups == a].min()
    assert sum(int((groups == g).sum()) for g in range(method.num_groups)) == 300


@pytest.mark.parametrize("seed", range(8))
def test_groups_are_about_as_even_as_ties_allow(seed: int) -> None:
    """The largest group of the best of all splits, by trying them all, is nearly reached."""
    counts = torch.randint(1, 9, (60,), generator=torch.Generator().manual_seed(seed)) ** 2
    bounds = frequency_bounds(counts, num_groups=3)
    distinct, sizes = counts.unique(return_counts=True)
    largest = torch.bucketize(counts, bounds, right=True).bincount().max()
    best = min(
        max(int(part.sum()) for part in torch.tensor_split(sizes, torch.tensor(cuts)))
        for cuts in combinations(range(1, len(distinct)), 2)
    )
    assert largest <= best + int(sizes.max()) // 2


def test_many_singletons_are_one_group() -> None:
    counts = torch.cat([torch.arange(100, 120), torch.ones(80, dtype=torch.int64)])
    bounds = frequency_bounds(counts, num_groups=5)
    assert torch.bucketize(counts, bounds, right=True).bincount().tolist() == [80, 5, 5, 5, 5]
    assert frequency_bounds(torch.ones(7).long(), num_groups=5).tolist() == []


def test_without_counts_groups_follow_the_rank() -> None:
    method = build_method(spec(num=10, options=AutoSrhConfig(num_groups=3)))
    groups = method.groups(torch.arange(10))
    assert groups.diff().max() <= 0
    assert groups.bincount().tolist() == [4, 3, 3]


def test_search_gradient_is_the_normalised_one_of_autograd() -> None:
    tables = in_search()
    (method,) = tables.built_methods()
    ids = torch.tensor([0, 5, 5, 299])
    target = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    rows, groups = tables.weights()["t"][ids], method.groups(ids)
    (lookup(tables, ids) * target).sum().backward()
    plain = torch.zeros_like(method.alpha).index_add(0, groups, rows * target)
    seen = plain.abs().sum(1, keepdim=True) > 0
    assert 0 < seen.sum() < len(seen)
    expected = (plain / (plain.abs().mean(1, keepdim=True) + 1e-8) + method.config.l1) * seen
    torch.testing.assert_close(method.alpha.grad, expected)
    loss = (lookup(tables, ids) * target).sum()  # rows have moved in the backward pass, so its scale has too
    (again,) = torch.autograd.grad(loss, search_parameters(tables))
    torch.testing.assert_close(again.abs().mean(1)[seen[:, 0]], torch.ones(int(seen.sum())), rtol=0, atol=0.02)
    assert search_parameters(tables) == [method.alpha]


def test_alpha_stays_between_0_and_1_and_gradients_pass_at_the_bounds() -> None:
    tables = in_search()
    (method,) = tables.built_methods()
    with torch.no_grad():
        method.alpha.fill_(1.7)
        method.alpha[:, 0] = -0.3
    out = lookup(tables, torch.arange(300))
    rows = tables.weights()["t"]
    torch.testing.assert_close(out[:, 1:], rows[:, 1:])
    assert not out[:, 0].any()
    out.sum().backward()
    assert method.alpha.grad.abs().min() > 0
    after_step(tables, step=1, num_steps=10)
    assert method.alpha.detach().unique().tolist() == [0.0, 1.0]


def test_pruning_keeps_the_largest_products_and_folding_changes_nothing() -> None:
    tables = in_search(budget=0.25)
    (searched,) = tables.built_methods()
    alpha = searched.alpha.detach()
    rows = tables.weights()["t"].clone()
    products = (rows * alpha[searched.groups(torch.arange(300))]).abs().numpy().ravel()
    tables = advance(tables)
    (method,) = tables.built_methods()
    assert torch.equal(tables.weights()["t"], rows), "the retraining starts from the search's rows"
    mask = mask_of(method.mask, torch.arange(300), dim=6)
    kept = np.flatnonzero(mask.numpy().ravel())
    assert set(kept) == set(np.argpartition(-products, len(kept))[: len(kept)])
    allowed = 0.25 * tables.plain_nbytes
    assert allowed - 8 <= tables.nbytes("serving") <= allowed
    folded = pack_table(method, tables.weights()).lookup(torch.arange(300))
    assert torch.equal(folded, lookup(tables, torch.arange(300)).detach())
    torch.testing.assert_close(folded, rows * alpha[method.groups(torch.arange(300))] * mask)


def test_retraining_moves_kept_entries_only() -> None:
    tables = advance(in_search(budget=0.25))
    (method,) = tables.built_methods()
    before = tables.weights()["t"].clone()
    assert not search_parameters(tables)
    (lookup(tables, torch.arange(300)) - 1).square().sum().backward()
    tables.update_rows()
    scale = method.side(torch.arange(300))
    moved = (tables.weights()["t"] != before).float()
    assert torch.equal(moved, (scale != 0).float())


def test_floor_and_bad_options() -> None:
    with pytest.raises(BudgetError, match="method 'autosrh' needs one entry and its place"):
        build_method(spec(budget=1e-4))
    with pytest.raises(ConfigError, match="num_groups is 0"):
        AutoSrhConfig(num_groups=0)


@pytest.mark.parametrize(("num", "dim"), [(1, 1), (1, 2048), (7, 3)])
def test_edge_sizes(num: int, dim: int) -> None:
    tables = finished(TableCollection([spec(num=num, dim=dim)]))
    (method,) = tables.built_methods()
    packed = pack_table(method, tables.weights())
    assert torch.equal(packed.lookup(torch.tensor([num - 1])), tables.weights()["t"][num - 1 :])


def test_addresses_beyond_31_bits() -> None:
    method = build_method(spec(num=2**31 + 1, dim=16, budget=0.01, stage=1))
    ids = torch.tensor([0, 2**30, 2**31])
    assert method.address(ids)[0].tolist() == ids.tolist()
    assert method.side(ids).tolist() == [5, 2, 0]
