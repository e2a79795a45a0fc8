"""Compositional embeddings against Python's divmod, brute force and dense autograd."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embank.compression.methods.compositional import Compositional, CompositionalConfig, Partitions
from embank.tables import BudgetError, ConfigError, TableSpec, build_method
from tests.compression.oracles import Weights, check_against_dense, materialised, spec_of, table_of


def built(
    num: int, dim: int, *, options: CompositionalConfig | None = None, budget: float | None = None
) -> Compositional:
    method = build_method(spec_of("compositional", num, dim, options=options, budget=budget))
    assert isinstance(method, Compositional)
    return method


def dense(weights: Weights, num: int, *, how: str) -> torch.Tensor:
    """Row by row with divmod."""
    tables = list(weights.values())
    rows = []
    for x in range(num):
        parts, rest = [], x
        for remainders in tables[:-1]:
            rest, digit = divmod(rest, len(remainders))
            parts.append(remainders[digit])
        stacked = torch.stack([*parts, tables[-1][rest]])
        rows.append(stacked.prod(0) if how == "mul" else stacked.sum(0))
    return torch.stack(rows)


@pytest.mark.parametrize("how", ["mul", "sum"])
@pytest.mark.parametrize("num_partitions", [2, 3, 5])
def test_values_and_gradients_equal_dense_autograd(how: str, num_partitions: int) -> None:
    options = CompositionalConfig(combine=how, num_partitions=num_partitions, divisor=3)
    table = table_of("compositional", 95, 7, options=options)
    check_against_dense(table, lambda weights: dense(weights, 95, how=how))


@settings(max_examples=60, deadline=None)
@given(num=st.integers(1, 3000), budget=st.floats(0.01, 1))
def test_no_two_ids_have_all_digits_in_common_and_all_rows_can_be_reached(num: int, budget: float) -> None:
    try:
        method = built(num, 4, budget=budget)
    except BudgetError:
        return
    digits = torch.stack(method.address(torch.arange(num)), dim=1)
    assert digits.unique(dim=0).shape[0] == num
    assert [int(d) + 1 for d in digits.amax(0)] == list(method.sizes)
    assert method.sizes[-1] == math.ceil(num / math.prod(method.sizes[:-1]))


def test_digits_of_large_ids_are_exact() -> None:
    """A division through float32 goes wrong from 2**24 on, one through float64 from 2**53 on."""
    for num, divisor in ((2**31 + 1, 4), (2**31 + 1, 60), (2**40, 1000), (2**60, 3)):
        method = built(num, 1, options=CompositionalConfig(divisor=divisor))
        ids = [0, 2**24 + 1, 2**31 - 1, 2**31, num // 2, num - 2, num - 1]
        remainder, quotient = method.address(torch.tensor(ids))
        large = -(-num // divisor)
        assert list(zip(quotient.tolist(), remainder.tolist(), strict=True)) == [divmod(x, large) for x in ids]


def test_the_hottest_ids_have_rows_of_their_own_and_share_them_with_colder_ones_alone() -> None:
    """Ids are ranked by frequency."""
    method = built(10_000, 4, budget=0.1)
    large, _ = method.address(torch.arange(10_000))
    num_large = method.sizes[0]
    assert num_large == max(method.sizes) > 900
    assert torch.equal(large[:num_large], torch.arange(num_large))


@pytest.mark.parametrize(("how", "rank"), [("mul", 1), ("sum", 2)])
def test_every_coordinate_is_an_outer_product_or_sum(how: str, rank: int) -> None:
    options = CompositionalConfig(combine=how, divisor=8)
    rows = materialised(table_of("compositional", 8 * 25, 5, options=options)).double()
    for coordinate in range(5):
        values = torch.linalg.svdvals(rows[:, coordinate].view(8, 25))
        assert values[rank] < 1e-6 * values[0]
        assert values[rank - 1] > 1e-6 * values[0]


@pytest.mark.parametrize("how", ["mul", "sum"])
@pytest.mark.parametrize("num_partitions", [2, 3])
def test_initial_spread_is_the_plain_tables(how: str, num_partitions: int) -> None:
    options = CompositionalConfig(combine=how, num_partitions=num_partitions, divisor=40)
    rows = materialised(table_of("compositional", 80_000, 16, options=options))
    assert rows.std() == pytest.approx((3 * 80_000) ** -0.5, rel=0.05)


@settings(max_examples=80, deadline=None)
@given(num=st.integers(2, 400), limit=st.integers(2, 400))
def test_two_partitions_get_the_smallest_divisor_that_fits(num: int, limit: int) -> None:
    fitting = [c for c in range(2, num + 1) if c + -(-num // c) <= limit]
    sizes = Partitions(num, 2).within(limit)
    assert (sizes is None) if not fitting else sizes == (-(-num // fitting[0]), fitting[0])


def test_the_floor_is_the_best_of_all_sizes() -> None:
    for num, count in itertools.product(range(4, 70), (2, 3)):
        every = itertools.product(range(2, num + 1), repeat=count - 1)
        best = min(sum(sizes) + -(-num // math.prod(sizes)) for sizes in every)
        assert Partitions(num, count).floor == best


def test_more_partitions_are_used_below_the_floor_of_fewer() -> None:
    num, dim = 10_000, 4
    counts = [len(built(num, dim, budget=rows / num).sizes) for rows in (5002, 200, 199, 65, 60, 40, 27)]
    assert counts == [2, 2, 3, 3, 4, 4, 7]
    for rows in (5002, 200, 65, 40, 27):
        table = table_of("compositional", num, dim, budget=rows / num)
        held = sum(method.num_embeddings for method in table.collection.built_methods().__next__().physical)
        assert held <= rows
        assert table.nbytes("serving") == 4 * dim * held


def test_a_budget_below_the_floor_is_refused() -> None:
    with pytest.raises(
        BudgetError, match=r"method 'compositional' needs 200 rows, 3,200 bytes, so its floor is budget 0\.02;"
    ):
        built(10_000, 4, budget=0.019, options=CompositionalConfig(num_partitions=2))
    with pytest.raises(
        BudgetError, match="needs 2 rows, 8 bytes, so its floor is budget 2, more than the plain table; the budget is 1"
    ):
        built(1, 1, budget=1.0)
    with pytest.raises(ConfigError, match=r"'t' has both budget 0\.5 and divisor 3; keep one of them"):
        built(10, 4, budget=0.5, options=CompositionalConfig(divisor=3))
    with pytest.raises(ConfigError, match="'t' has num_partitions 1; use at least 2, or method 'full'"):
        built(10, 4, options=CompositionalConfig(num_partitions=1))


def test_one_budget_for_all_keeps_it_where_single_tables_cannot() -> None:
    """Each at a tenth, the small table is below its floor; together they keep the tenth."""
    specs = [
        TableSpec(name=str(num), num_embeddings=num, embedding_dim=8, feature_names=[str(num)], method="compositional")
        for num in (100, 5000, 1_000_000)
    ]
    plain = sum(spec.plain_nbytes for spec in specs)
    with pytest.raises(BudgetError):
        built(100, 8, budget=0.1)
    shared = Compositional.traits.allocation.share(specs, plain // 10)
    assert [spec.method for spec in shared] == ["full", "full", "compositional"]
    methods = [build_method(spec) for spec in shared]
    held = sum(4 * t.num_embeddings * t.embedding_dim for method in methods for t in method.physical)
    assert 0.09 * plain < held <= plain // 10
    with pytest.raises(BudgetError, match="3 tables of method 'compositional' need .* so their floor is budget"):
        Compositional.traits.allocation.share(specs, 100)


@pytest.mark.parametrize("num_partitions", [None, 2, 3])
def test_levels_never_shrink_a_table(num_partitions: int | None) -> None:
    """More bytes for all never mean fewer for one, whatever number of tables is asked for."""
    options = CompositionalConfig(num_partitions=num_partitions)
    specs = [
        TableSpec(
            name=str(n), num_embeddings=n, embedding_dim=4, feature_names=["a"], method="compositional", options=options
        )
        for n in (30, 700, 20_000)
    ]
    before = [0, 0, 0]
    for nbytes in range(6000, 4 * 4 * 20_730, 5000):
        shared = Compositional.traits.allocation.share(specs, nbytes)
        held = [sum(4 * t.num_embeddings * t.embedding_dim for t in build_method(spec).physical) for spec in shared]
        assert sum(held) <= nbytes
        assert held[2] >= 0.97 * before[2]
        before = held


@pytest.mark.parametrize("dim", [1, 3, 2048])
def test_edge_sizes(dim: int) -> None:
    table = table_of("compositional", 9, dim)
    assert torch.equal(table.pack().lookup(torch.arange(9)), materialised(table))
    assert table_of("compositional", 1, dim).lookup(torch.tensor([0])).shape == (1, dim)
    assert sum(built(2**31 + 1, dim, budget=1e-3).sizes) <= (2**31 + 1) / 1000
