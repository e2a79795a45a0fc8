"""MEmCom against loops in Python and dense autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embank.compression.methods.memcom import Memcom, MemcomConfig
from embank.tables import BudgetError, ConfigError, TableSpec, build_method
from tests.compression.oracles import Weights, check_against_dense, materialised, spec_of, table_of


def built(num: int, dim: int, *, options: MemcomConfig | None = None, budget: float | None = None) -> Memcom:
    method = build_method(spec_of("memcom", num, dim, options=options, budget=budget))
    assert isinstance(method, Memcom)
    return method


@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_equal_dense_autograd(bias: bool) -> None:
    table = table_of("memcom", 53, 6, options=MemcomConfig(num_rows=8, bias=bias))
    if bias:
        table.collection.weights()["t/biases"].copy_(torch.randn(53, 1, generator=torch.Generator().manual_seed(5)))

    def dense(weights: Weights) -> torch.Tensor:
        rows = []
        for x in range(53):
            row = weights["t/rows"][x % 8] * weights["t/multipliers"][x, 0]
            rows.append(row + weights["t/biases"][x, 0] if bias else row)
        return torch.stack(rows)

    check_against_dense(table, dense)


def test_the_hottest_ids_share_no_row_with_each_other() -> None:
    method = built(1000, 4, options=MemcomConfig(num_rows=37))
    rows = method.address(torch.arange(1000))[0]
    assert rows[:37].tolist() == list(range(37))
    assert rows.bincount().tolist() == [28] * 1 + [27] * 36


def test_every_id_has_a_row_of_its_own_direction_by_the_multiplier() -> None:
    """Ids that share a row are multiples of it, and no two are the same."""
    rows = materialised(table_of("memcom", 60, 5, options=MemcomConfig(num_rows=6))).double()
    groups = rows.view(10, 6, 5)
    for shared in groups.unbind(1):
        values = torch.linalg.svdvals(shared)
        assert values[1] < 1e-6 * values[0]
    assert rows.unique(dim=0).shape[0] == 60


@pytest.mark.parametrize("bias", [False, True])
def test_initial_spread_is_the_plain_tables(bias: bool) -> None:
    rows = materialised(table_of("memcom", 50_000, 16, options=MemcomConfig(bias=bias)))
    assert rows.std() == pytest.approx((3 * 50_000) ** -0.5, rel=0.05)


@settings(max_examples=60, deadline=None)
@given(num=st.integers(1, 3000), dim=st.integers(1, 40), budget=st.floats(0.01, 1), bias=st.booleans())
def test_rows_fill_what_the_budget_leaves_beside_the_multipliers(num: int, dim: int, budget: float, bias: bool) -> None:
    limit, per_id = budget * 4 * num * dim, 4 * num * (1 + bias)
    try:
        method = built(num, dim, budget=budget, options=MemcomConfig(bias=bias))
    except BudgetError:
        assert per_id + 4 * dim > limit - 1
        return
    held = sum(4 * table.num_embeddings * table.embedding_dim for table in method.physical)
    assert held == per_id + 4 * dim * method.num_rows <= limit
    assert method.num_rows == num or held + 4 * dim > limit - 1


def test_refusals() -> None:
    with pytest.raises(
        BudgetError, match=r"needs a number per id and one row, 464 bytes, so its floor is budget 0\.0725001;"
    ):
        built(100, 16, budget=0.07)
    with pytest.raises(BudgetError, match="needs two numbers per id and one row"):
        built(100, 16, budget=0.1, options=MemcomConfig(bias=True))
    with pytest.raises(ConfigError, match=r"has both budget 0\.5 and num_rows 3"):
        built(100, 16, budget=0.5, options=MemcomConfig(num_rows=3))


def test_one_budget_for_all_keeps_tables_plain_that_multipliers_would_not_shrink() -> None:
    specs = [
        TableSpec(name=f"{num}/{dim}", num_embeddings=num, embedding_dim=dim, feature_names=["a"], method="memcom")
        for num, dim in ((1000, 16), (50_000, 16), (1000, 1))
    ]
    nbytes = sum(spec.plain_nbytes for spec in specs) // 5
    shared = Memcom.traits.allocation.share(specs, nbytes)
    assert [spec.method for spec in shared] == ["memcom", "memcom", "full"]
    held = [4 * t.num_embeddings * t.embedding_dim for spec in shared for t in build_method(spec).physical]
    assert 0.99 * nbytes < sum(held) <= nbytes


@pytest.mark.parametrize("dim", [1, 3, 2048])
def test_edge_sizes(dim: int) -> None:
    for num in (1, 9):
        table = table_of("memcom", num, dim)
        assert torch.equal(table.pack().lookup(torch.arange(num)), materialised(table))
    huge = built(2**31 + 1, dim, options=MemcomConfig(num_rows=2**20 + 7))
    assert [int(ids) for ids in huge.address(torch.tensor([2**31]))] == [2**31 % (2**20 + 7), 2**31]
