"""Sharding plans: complete, within memory, balanced, and refused with the reason where they can't be."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embank.tables import ConfigError, PhysicalTable, RowInit, RowOptimizer, TableSpec
from embank.tables.rows.shards import TableShard, num_positions, positions_of, rows_at
from embank.tables.sharding.plan import (
    Load,
    Placement,
    Plan,
    check_plan,
    imbalance,
    load_plan,
    make_plan,
    rank_loads,
    save_plan,
)
from embank.tables.sharding.planner import PlanRequest, plan_tables, table_loads


def load(name: str, rows: int, *, dim: int = 16, lookups: float = 1.0, counts: torch.Tensor | None = None) -> Load:
    table = PhysicalTable(name=name, num_embeddings=rows, embedding_dim=dim, init=RowInit(scale=1.0))
    return Load(table=table, nbytes_per_row=4 * dim + 4, lookups=lookups, lookups_R=counts)


@given(num_rows=st.integers(1, 1000))
def test_places_are_a_permutation_with_gaps(num_rows: int) -> None:
    rows = torch.arange(num_rows)
    positions = positions_of(rows, num_rows=num_rows)
    assert positions.unique().numel() == num_rows
    assert 0 <= int(positions.min()) <= int(positions.max()) < num_positions(num_rows)
    assert torch.equal(rows_at(positions, num_rows=num_rows), rows)
    others = torch.ones(num_positions(num_rows), dtype=torch.bool)
    others[positions] = False
    assert (rows_at(others.nonzero().squeeze(1), num_rows=num_rows) >= num_rows).all()


@settings(deadline=None)
@given(
    num_rows=st.integers(1, 500),
    world_size=st.integers(1, 5),
    kind=st.sampled_from(["row_wise", "column_wise"]),
    init=st.sampled_from(["uniform", "normal", "tails"]),
    dim=st.sampled_from([1, 5, 60]),
)
def test_shards_together_are_the_table(num_rows: int, world_size: int, kind: str, init: str, dim: int) -> None:
    """Initial values of all parts, put together by their row numbers, are those of the whole table."""
    dim = 60 if kind == "column_wise" else dim
    table = PhysicalTable(name="t", num_embeddings=num_rows, embedding_dim=dim, init=RowInit(kind=init, scale=1.0))
    whole, joined = torch.empty(num_rows, dim), torch.full((num_rows, dim), torch.nan)
    for part in TableShard.whole(table).initial_chunks(seed=3):
        whole = part
    ranks = tuple(range(world_size)) if kind == "column_wise" else ()
    plan = Plan(world_size=world_size, tables={"t": Placement(kind=kind, ranks=ranks)})
    for rank in range(world_size):
        shard = plan.shard(table, rank)
        assert shard is not None
        out = torch.cat([torch.empty(0, shard.num_columns), *shard.initial_chunks(seed=3)])
        shard.scatter_initial(out, seed=3)
        numbers = shard.row_numbers()
        real = numbers < num_rows
        assert (out[~real] == 0).all()
        joined[numbers[real], shard.first_column : shard.first_column + shard.num_columns] = out[real]
    assert torch.equal(whole, joined)


@pytest.mark.parametrize("kind", ["uniform", "normal", "tails"])
@settings(deadline=None, max_examples=60)
@given(
    dim=st.integers(1, 40),
    first=st.integers(0, 300),
    cuts=st.lists(st.integers(1, 200), min_size=1, max_size=5),
    last_column=st.sampled_from([None, 0.5]),
    strided=st.booleans(),
)
def test_initial_values_are_the_rows_own(
    kind: str, dim: int, first: int, cuts: list[int], last_column: float | None, strided: bool
) -> None:
    """Whatever is drawn with them: rows of pieces that begin and end anywhere are those of the table in one piece."""
    init = RowInit(kind=kind, scale=2.0, mean=0.5, last_column=last_column)
    pieces = torch.empty(sum(cuts), dim + strided)[:, :dim]
    whole = torch.empty(first + len(pieces) + 50, dim)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("embank.tables.rows.physical.ROWS_PER_CHUNK", 128)
        init.fill(whole, seed=3, table="t")
        for piece, begin in zip(pieces.split(cuts), itertools.accumulate(cuts, initial=first), strict=False):
            init.fill(piece, seed=3, table="t", first_row=begin)
    assert torch.equal(pieces, whole[first : first + len(pieces)])


@given(
    sizes=st.lists(st.tuples(st.integers(1, 10**7), st.floats(0, 3)), min_size=1, max_size=12),
    world_size=st.integers(1, 9),
)
def test_a_plan_places_every_table_and_cuts_what_is_too_large(sizes: list[tuple[int, float]], world_size: int) -> None:
    loads = [load(f"t{i}", rows, lookups=lookups) for i, (rows, lookups) in enumerate(sizes)]
    plan = make_plan(loads, world_size=world_size)
    check_plan(plan, loads, optimizer="rowwise_adagrad")
    assert list(plan.tables) == [one.table.name for one in loads]
    total = sum(one.nbytes for one in loads)
    held = [rank.nbytes for rank in rank_loads(plan, loads)]
    replicas = sum(one.nbytes for one in loads if plan.placement(one.table.name).kind == "data_parallel")
    cut = sum(plan.placement(one.table.name).kind == "row_wise" for one in loads)
    padding = 64 * 68 * cut + 68 * world_size * cut
    assert total <= sum(held) <= total + replicas * (world_size - 1) + padding * world_size
    assert max(held) <= 2 * total / world_size + replicas + padding  # no table above a fair share stays whole


def test_frequent_rows_are_spread_over_any_number_of_ranks() -> None:
    counts = 1 / torch.arange(1, 200_001, dtype=torch.float64)
    counts /= counts.sum()
    for world_size in (2, 3, 4, 8):
        one = load("t", 200_000, counts=counts)
        plan = Plan(world_size=world_size, tables={"t": Placement(kind="row_wise")})
        shares = [rank.lookups for rank in rank_loads(plan, [one])]
        assert sum(shares) == pytest.approx(1)
        hottest = float(counts[0])
        assert max(shares) < 1 / world_size + hottest, "cut into ranges, the first rank would have nearly all lookups"
        assert imbalance(shares) < 1.6


def test_memory_decides() -> None:
    loads = [load("big", 1_000_000), load("mid", 300_000), load("small", 100)]
    plan = make_plan(loads, world_size=2, memory_per_rank=50_000_000)
    assert max(rank.nbytes for rank in rank_loads(plan, loads)) <= 50_000_000
    assert plan.placement("small").kind == "data_parallel"
    with pytest.raises(
        ConfigError, match=r"limit is 1,000,000 bytes; the largest table is 'big' with 68,000,000 bytes"
    ):
        make_plan(loads, world_size=2, memory_per_rank=1_000_000)


SIZES = st.lists(st.integers(1, 200_000), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(sizes=SIZES, world_size=st.integers(1, 5), share=st.floats(0.001, 1.2), dim=st.sampled_from([1, 16, 900]))
def test_advice_helps_where_it_is_followed(sizes: list[int], world_size: int, share: float, dim: int) -> None:
    loads = [load(f"t{i}", rows, dim=dim) for i, rows in enumerate(sizes)]
    limit = max(1, int(share * sum(one.nbytes for one in loads) / world_size))
    try:
        make_plan(loads, world_size=world_size, memory_per_rank=limit)
    except ConfigError as error:
        text = str(error)
    else:
        return
    (larger,) = re.findall(r"limit of ([\d,]+) bytes", text)
    make_plan(loads, world_size=world_size, memory_per_rank=int(larger.replace(",", "")))
    ranks = re.findall(r"Use ([\d,]+) ranks", text)
    assert bool(ranks) != ("No number of ranks is enough" in text)
    number = int(ranks[0].replace(",", "")) if ranks else max(sizes) + 64
    if number > 3000:
        return  # long to plan
    if ranks:
        assert number > world_size
        make_plan(loads, world_size=number, memory_per_rank=limit)
    else:
        with pytest.raises(ConfigError, match="No number of ranks is enough"):
            make_plan(loads, world_size=number, memory_per_rank=limit)


def test_replicas_and_the_largest_table_count_in_the_advice() -> None:
    loads = [load("big", 100_000), load("small", 900)]  # replicated: 61,200 bytes
    with pytest.raises(ConfigError, match=r"Use 176 ranks in place of 4, a limit of 1,761,744 bytes, or smaller"):
        make_plan(loads, world_size=4, memory_per_rank=100_000)
    with pytest.raises(ConfigError, match=r"No number of ranks is enough: each holds 61,200 bytes of replicas"):
        make_plan(loads, world_size=4, memory_per_rank=61_000)


@pytest.mark.parametrize("limit", [0, -5])
@pytest.mark.parametrize("planner", ["embank", "torchrec"])
def test_a_limit_below_a_byte_is_refused(limit: int, planner: str) -> None:
    request = PlanRequest(world_size=2, planner=planner, memory_per_rank=limit)
    with pytest.raises(ConfigError, match=f"the memory of a rank is {limit} bytes; give at least 1"):
        plan_tables(specs(), request, optimizer=RowOptimizer(), num_samples=None)


def test_a_plan_that_is_given_keeps_to_the_limit() -> None:
    both = Plan(world_size=2, tables={name: Placement(kind="table_wise", ranks=(1,)) for name in ("a", "b")})
    for limit in (None, 10**9):
        request = PlanRequest(world_size=2, given=both, memory_per_rank=limit)
        assert plan_tables(specs(), request, optimizer=RowOptimizer(), num_samples=None)[0] == both
    request = PlanRequest(world_size=2, given=both, memory_per_rank=1000)
    with pytest.raises(ConfigError, match=r"the plan gives rank 1 [\d,]+ bytes, the limit is 1,000 bytes; edit"):
        plan_tables(specs(), request, optimizer=RowOptimizer(), num_samples=None)


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_plan_is_data(tmp_path: Path, suffix: str) -> None:
    loads = [load("a", 10_000), load("b", 50_000), load("c", 20)]
    plan = make_plan(loads, world_size=3)
    save_plan(plan, f"{tmp_path}/plan{suffix}")
    assert load_plan(f"{tmp_path}/plan{suffix}") == load_plan(tmp_path / f"plan{suffix}") == plan


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("world_size: 2\ntables: {a: {kind: rowwise}}", r"wrong at 'tables.a.kind'"),
        ("world_size: 2\ntables: {a: {kind: table_wise}}", r"gives table 'a' ranks \[\] with kind 'table_wise'"),
        ("world_size: 2\ntables: {a: {kind: table_wise, ranks: [2]}}", r"puts table 'a' on rank 2 of 2; use 0 .. 1"),
        ("world_size: 2\ntables: {a: {kind: column_wise, ranks: [1, 1]}}", r"names a rank twice for table 'a'"),
        ("world_size: 2\ntabels: {}", r"wrong at"),
        ("[1", r"the plan '.*plan\.yaml' is not valid YAML: line 1"),
    ],
)
def test_bad_plans(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_plan(tmp_path / "plan.yaml")


def test_what_tables_can_not_have() -> None:
    columns = Plan(world_size=2, tables={"t": Placement(kind="column_wise", ranks=(0, 1))})
    with pytest.raises(
        ConfigError, match="can't be column_wise with rowwise_adagrad: each piece would keep a row statistic"
    ):
        check_plan(columns, [load("t", 50)], optimizer="rowwise_adagrad")
    with pytest.raises(ConfigError, match="of dim 7 can't be cut evenly into 2 columns"):
        check_plan(columns, [load("t", 50, dim=7)], optimizer="sgd")
    whole = Load(table=load("t", 50).table, nbytes_per_row=68, lookups=1.0, whole_rows=True)
    with pytest.raises(ConfigError, match="needs whole rows; it can't be column_wise. Use row_wise"):
        check_plan(columns, [whole], optimizer="sgd")
    with pytest.raises(ConfigError, match="replicates table 't', whose optimizer is a lazy adam"):
        check_plan(Plan(world_size=2, tables={"t": Placement(kind="data_parallel")}), [load("t", 5)], optimizer="adam")
    with pytest.raises(ConfigError, match="the plan places 'x', which is no physical table here"):
        check_plan(Plan(world_size=2, tables={"x": Placement(kind="row_wise")}), [load("t", 5)], optimizer="sgd")
    with pytest.raises(ConfigError, match="has no physical table 't'"):
        check_plan(Plan(world_size=2, tables={}), [load("t", 5)], optimizer="sgd")


def specs() -> list[TableSpec]:
    counts = (1e6 / torch.arange(1, 5001)).long()
    plain = TableSpec(name="a", num_embeddings=5000, embedding_dim=8, feature_names=["a"], counts=counts)
    hashed = TableSpec(
        name="b",
        num_embeddings=5000,
        embedding_dim=8,
        feature_names=["b", "c"],
        method="hash",
        budget=0.1,
        counts=counts,
    )
    return [plain, hashed]


def test_loads_come_from_counts_and_methods() -> None:
    num_samples = int(specs()[0].counts.sum())  # type: ignore[union-attr]
    optimizer = RowOptimizer(name="rowwise_adagrad")
    first, second = table_loads(specs(), optimizer=optimizer, num_samples=num_samples)
    assert (first.nbytes, first.lookups) == (5000 * 36, pytest.approx(1))
    assert second.table.num_embeddings < 500
    assert second.lookups_R is not None
    assert float(second.lookups_R.sum()) == pytest.approx(1)
    uncounted = table_loads(specs(), optimizer=optimizer, num_samples=None)
    assert [one.lookups for one in uncounted] == [1, 2]


def test_torchrec_plans_too_and_another_number_of_ranks_is_refused() -> None:
    optimizer = RowOptimizer()
    plan, _ = plan_tables(specs(), PlanRequest(world_size=2, planner="torchrec"), optimizer=optimizer, num_samples=None)
    assert {placement.kind for placement in plan.tables.values()} == {"table_wise"}
    with pytest.raises(
        ConfigError, match="the plan is for 2 ranks, there are 3; make one with `embank plan --ranks 3`"
    ):
        plan_tables(specs(), PlanRequest(world_size=3, given=plan), optimizer=optimizer, num_samples=None)
