"""One budget for a collection: exact accounting, floors, and every registered method at Criteo's sizes."""

import re
from dataclasses import replace

import pytest
import torch

from embank.compression import METHODS
from embank.compression.budget.solver import at_floor, share
from embank.compression.methods.hash import HashConfig
from embank.tables import BudgetError, ConfigError, TableCollection, TableSpec, build_method, method_class
from embank.tables.collections.stages import finished
from tests.compression.cardinalities import CRITEO
from tests.compression.materialised import zipf_counts

NAMES = sorted(name for name in METHODS if not name.startswith("test_"))
ALL_OR_NOTHING = {"full"}
"""Methods that reach no budget below 1."""


def specs_of(sizes: tuple[int, ...], method: str, *, dim: int = 16, counts: bool = False) -> list[TableSpec]:
    return [
        TableSpec(
            name=f"f{i}",
            num_embeddings=num,
            embedding_dim=dim,
            feature_names=[f"f{i}"],
            method=method,
            counts=zipf_counts(num) if counts else None,
        )
        for i, num in enumerate(sizes)
    ]


def most_bytes(specs: list[TableSpec]) -> float:
    """What tables may serve: the budgets of those that have one (which the contract suite measures), else what they
    declare to hold, rows that several share once."""
    total, rows = 0.0, {}
    for spec in specs:
        if spec.budget is not None:
            total += spec.budget * spec.plain_nbytes
            continue
        method = build_method(spec)
        rows |= {table.name: table.num_embeddings * table.embedding_dim for table in method.physical}
        total += 4 * sum(held.numel() for held in (*method.parameters(), *method.buffers()))
    return total + 4 * sum(rows.values())


@pytest.mark.slow
@pytest.mark.parametrize("method", NAMES)
def test_criteo_keeps_its_budget_or_is_told_the_floor(method: str) -> None:
    specs = specs_of(CRITEO, method)
    plain = sum(spec.plain_nbytes for spec in specs)
    kept = 0
    for budget in (1.0, 0.5, 0.1, 0.001):
        try:
            given = share(specs, budget=budget, plain_below=100)
        except BudgetError as error:
            floor = re.search(r"their floor is ([\d,]+) bytes", str(error))
            assert floor is not None
            assert int(floor[1].replace(",", "")) > budget * plain
            continue
        kept += 1
        assert [spec.name for spec in given] == [spec.name for spec in specs]
        if budget >= 0.1:
            assert all(spec.method == "full" for spec in given if spec.num_embeddings < 100)
        assert most_bytes(given) <= budget * plain * (1 + 1e-12)
    assert kept >= (1 if method in ALL_OR_NOTHING else 2)


@pytest.mark.parametrize("method", sorted(set(NAMES) - ALL_OR_NOTHING))
def test_measured_bytes_of_a_collection(method: str) -> None:
    """Rows and all: small plain tables, tables below their method's share, and large ones."""
    specs = specs_of((3, 40, 150, 900, 7000), method, dim=8, counts=True)
    given = share(specs, budget=0.5, plain_below=50)
    tables = finished(TableCollection(given, backend="torch"))
    plain = sum(spec.plain_nbytes for spec in specs)
    assert tables.nbytes("serving") <= 0.5 * plain


def test_our_methods_use_what_they_get() -> None:
    for method, least in (
        ("hash", 0.99),
        ("frequency_cut", 0.99),
        ("adapt", 0.99),
        ("mde", 0.85),
        ("low_precision", 0.99),
    ):
        specs = specs_of((3, 150, 900, 7000), method, counts=True)
        tables = TableCollection(share(specs, budget=0.4, plain_below=50), backend="torch")
        assert tables.nbytes("serving") > least * 0.4 * sum(spec.plain_nbytes for spec in specs), method


def test_a_table_below_its_floor_gets_it_and_the_others_the_rest() -> None:
    specs = specs_of((100, 100_000), "hash", dim=4)
    budget = 0.002  # 801 bytes of 1,601,600: 0.8 of the small table, which needs a row and its salt
    small, large = share(specs, budget=budget)
    assert small.budget is not None
    assert round(small.budget * small.plain_nbytes) == 4 * 4 + 8
    assert build_method(large).physical[0].num_embeddings == (int(budget * 1_601_600) - 24 - 8) // 16
    with pytest.raises(BudgetError, match="their floor is 48 bytes, budget 2.99701e-05: "):
        share(specs, budget=2.9e-5)
    assert share(specs, budget=48 / 1_601_600 + 1e-9)[1].budget is not None


@pytest.mark.parametrize("method", sorted(set(NAMES) - ALL_OR_NOTHING))
def test_a_small_table_of_another_method_gets_its_floor(method: str) -> None:
    """Whose part of the bytes is less than one."""
    (large,), (small,) = specs_of((1_000_000,), "hash"), specs_of((200,), method)
    specs = [large, replace(small, name="small", feature_names=["small"])]
    floor_nbytes = at_floor(specs[1])[1]
    plain = sum(spec.plain_nbytes for spec in specs)
    own_nbytes = 100
    given, smallest = share(specs, budget=(floor_nbytes + own_nbytes + 0.5) / plain, plain_below=100)
    assert given.budget is not None
    assert int(given.budget * given.plain_nbytes) == own_nbytes
    assert smallest == at_floor(specs[1])[0]
    with pytest.raises(BudgetError, match="but their floor is ") as refused:
        share(specs, budget=floor_nbytes / plain, plain_below=100)
    assert refused.value.floor is not None
    assert share(specs, budget=refused.value.floor + 1e-9)[0].budget is not None


def test_no_bytes_are_no_budget() -> None:
    (spec,) = specs_of((200,), "mgqe")
    message = r"1 table of method 'mgqe' \('f0'\) was given 0 bytes; its floor is at least 1 byte, budget 7.8125e-05"
    with pytest.raises(BudgetError, match=message):
        method_class("mgqe").traits.allocation.share([spec], 0)


def test_floors_are_what_the_methods_say() -> None:
    for method in sorted(set(NAMES) - ALL_OR_NOTHING):
        (spec,) = specs_of((3000,), method)
        found, nbytes = at_floor(spec)
        build_method(found)
        assert nbytes <= spec.plain_nbytes
        if found.method != "full":
            with pytest.raises(BudgetError, match="floor"):
                share([spec], budget=(nbytes - 1) / spec.plain_nbytes)
    (full,) = specs_of((3000,), "full")
    assert at_floor(full)[1] == full.plain_nbytes


def test_a_table_that_its_method_only_enlarges_stays_plain() -> None:
    specs = specs_of((1, 100_000), "adapt", dim=1)  # a row and the constant are 12 bytes, the plain table has 4
    one, _ = share(specs, budget=0.1)
    assert build_method(one).physical[0].num_embeddings == 1
    assert most_bytes([one]) == 4


def test_methods_side_by_side() -> None:
    specs = [
        *specs_of((5000, 200), "low_precision"),
        *(
            TableSpec(name=f"m{i}", num_embeddings=num, embedding_dim=16, feature_names=[f"m{i}"], method="mde")
            for i, num in enumerate((20_000, 300))
        ),
    ]
    for budget in (0.6, 0.28, 0.12):
        tables = TableCollection(share(specs, budget=budget, plain_below=100), backend="torch")
        assert tables.nbytes("serving") <= budget * tables.plain_nbytes
    with pytest.raises(
        BudgetError, match=r"the largest part is 85,000 for table 'f0' by method 'low_precision'"
    ) as error:
        share(specs, budget=0.1)
    floor = (5200 * 17 + 4 * (20_300 + 32)) / (64 * 25_500)
    assert f"their floor is {5200 * 17 + 4 * (20_300 + 32):,} bytes, budget {floor:.6g}" in str(error.value)


def test_small_tables_stay_plain_as_far_as_half_of_the_budget_allows() -> None:
    specs = specs_of((10, 20, 1000), "hash")  # of 1030 rows

    def methods(budget: float) -> list[str]:
        return [spec.method for spec in share(specs, budget=budget, plain_below=100)]

    assert methods(0.1) == ["full", "full", "hash"]
    assert methods(0.05) == ["full", "hash", "hash"]
    assert methods(0.01) == ["hash", "hash", "hash"]
    assert [spec.method for spec in share(specs, budget=1.0, plain_below=5000)] == ["full"] * 3
    assert share([], budget=0.5) == []


def test_small_tables_do_not_make_a_budget_infeasible() -> None:
    specs = specs_of((10, 1000), "mde")
    floor = 4 * (1010 + 2 * 16)  # a number per row and a projection for each
    with pytest.raises(BudgetError, match=f"their floor is {floor:,} bytes, "):
        share(specs, budget=(floor - 1) / (64 * 1010), plain_below=100)
    for nbytes in (floor, floor + 200, floor + 500, floor + 600, floor + 2000):
        tables = TableCollection(share(specs, budget=(nbytes + 1) / (64 * 1010), plain_below=100), backend="torch")
        assert floor <= tables.nbytes("serving") <= nbytes


def test_sizes_as_options_contradict_a_budget() -> None:
    (spec,) = specs_of((1000,), "hash")
    fixed = TableSpec(**{**vars(spec), "options": HashConfig(num_rows=5)})
    with pytest.raises(ConfigError, match="both budget 0.5 and num_rows 5"):
        share([fixed], budget=0.5)


def test_random_numbers_of_the_caller_are_left_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    share(specs_of((1000, 3000), "mde"), budget=0.5)
    assert torch.equal(torch.rand(3), expected)
