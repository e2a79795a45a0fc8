"""AdaptEmb against sorted counts, hashed rows and a split found by brute force."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from embank.compression import build_table
from embank.compression.methods.adapt import AdaptConfig, best_num_private, layout_of, layout_parts
from embank.tables import BudgetError, ConfigError, Method, TableSpec, build_method
from embank.tables.ids.hashing import hash_rows, salt64
from tests.compression.materialised import check_against, zipf_counts


def spec(num: int = 500, dim: int = 6, **more: object) -> TableSpec:
    return TableSpec(name="t", num_embeddings=num, embedding_dim=dim, feature_names=["a"], method="adapt", **more)


def addressed(method: Method) -> tuple[Tensor, list[int]]:
    """Rows of all ids, and the ids whose row is below the shared ones."""
    (rows,) = method.address(torch.arange(method.spec.num_embeddings))
    return rows, torch.nonzero(rows < method.num_private).flatten().tolist()


@pytest.mark.parametrize("unknown", [0, 3, 10**6])
def test_private_rows_for_exactly_the_most_frequent_ids(unknown: int) -> None:
    counts = zipf_counts(500)
    counts[0] = unknown
    method = build_method(spec(budget=0.2, counts=counts))
    rows, private = addressed(method)
    loads = Counter(rows.tolist())
    by_count = sorted(range(1, 500), key=lambda i: (-int(counts[i]), i))
    most = by_count[: method.num_private] if unknown == 0 else [0, *by_count[: method.num_private - 1]]
    assert set(private) == set(most), "the unknown value takes a row only if training sees it"
    assert all(loads[int(rows[i])] == 1 for i in private)
    assert method.physical[0].num_embeddings == 99  # 8 bytes of the budget go to the layout


def test_the_others_share_by_a_hash_of_their_own() -> None:
    counts = zipf_counts(1003)
    for private in (0.0, 0.3, 0.9, 1.0):
        options = AdaptConfig(private=private)
        method = build_method(spec(num=1003, budget=0.1, counts=counts, options=options))
        first, shared = method.num_private, method.num_rows - method.num_private
        rows, own = addressed(method)
        assert own == list(range(1, first + 1))
        assert rows[own].tolist() == list(range(first))
        others = torch.tensor([0, *range(first + 1, 1003)])
        loads = torch.bincount(rows[others] - first, minlength=shared)
        assert loads.numel() == shared
        mean = len(others) / shared
        assert loads.double().var(correction=0) < 4 * mean + 1, "a hash spreads ids like a Poisson process"
        elsewhere, _ = addressed(build_method(replace(method.spec, name="u")))
        if shared > 1:
            pairs = (rows[others, None] == rows[None, others]).fill_diagonal_(False)
            both = pairs & (elsewhere[others, None] == elsewhere[None, others])
            assert both.sum() < 3 * pairs.sum() / shared + 12, "ids that share in one table don't in another"


def test_lookups_and_gradients_are_those_of_one_row_each() -> None:
    layout = layout_of("t", num_private=20, first=0)
    row_of = [int(hash_rows(torch.tensor(i), num_rows=30, salt=layout)) for i in range(500)]

    def materialise(rows: dict[str, torch.Tensor], _: object) -> torch.Tensor:
        private, shared = rows["t"][:20], rows["t"][20:50]
        return torch.stack([private[i] if i < 20 else shared[row_of[i]] for i in range(500)])

    check_against(spec(options=AdaptConfig(num_rows=50, private=0.4)), materialise)


def met(counts: list[int], num_private: int, num_rows: int) -> float:
    """Mean traffic of other ids in the row of a random lookup, over all hashes, id by id."""
    shared = counts[num_private:]
    return sum(count * (sum(shared) - count) for count in shared) / (num_rows - num_private) / sum(counts)


def test_the_split_meets_the_least_traffic_of_all_splits() -> None:
    for exponent, num_rows in ((1.05, 40), (0.5, 40), (2.0, 13), (1.05, 199)):
        counts = zipf_counts(400, exponent=exponent)
        found = best_num_private(counts, num_rows=num_rows)
        best = min(met(counts.tolist(), f, num_rows) for f in range(num_rows))
        assert met(counts.tolist(), found, num_rows) == pytest.approx(best)


def test_the_mean_over_hashes_is_what_real_hashes_give() -> None:
    counts = zipf_counts(400)
    totals = []
    for salt in range(300):
        rows = hash_rows(torch.arange(10, 400), num_rows=30, salt=salt64("trial", salt))
        traffic = torch.zeros(30, dtype=torch.int64).index_add(0, rows, counts[10:])
        totals.append(float((counts[10:] * (traffic[rows] - counts[10:])).sum() / counts.sum()))
    assert sum(totals) / len(totals) == pytest.approx(met(counts.tolist(), 10, 40), rel=0.05)


def test_traffic_decides_not_the_number_of_ids() -> None:
    even = torch.ones(400, dtype=torch.int64)
    assert best_num_private(even, num_rows=40) == 0, "nobody deserves more than others"
    steep = (1e9 / 4.0 ** torch.arange(400)).long()
    assert best_num_private(steep, num_rows=40) > 12
    # 24 ids with nearly all of the traffic, and ten thousand that hardly occur: 26 rows hold the 24 and the others'
    # rest
    logged = torch.cat([torch.arange(1024, 1000, -1), torch.ones(500, dtype=torch.int64), torch.zeros(9500).long()])
    assert best_num_private(logged, num_rows=26) == 24


def test_without_counts_half_the_rows_are_private() -> None:
    method = build_method(spec(budget=0.1))
    assert (method.num_private, method.num_rows) == (24, 49)


def test_bytes_and_floor() -> None:
    table = build_table(method="adapt", num_embeddings=500, embedding_dim=6, budget=0.1)
    assert table.nbytes("serving") == 49 * 24 + 8
    assert table.nbytes("nominal") == 49 * 24
    assert build_table(method="adapt", num_embeddings=500, embedding_dim=6).nbytes("serving") == 500 * 24
    with pytest.raises(BudgetError, match="needs one row and a constant, 32 bytes, so its floor is budget 0.00266667"):
        build_method(spec(budget=0.0026))


def test_counts_that_contradict_the_prefix_are_refused() -> None:
    with pytest.raises(ConfigError, match="Rank the ids by frequency"):
        build_method(spec(counts=zipf_counts(500).flip(0), options=AdaptConfig(num_rows=50, private=0.5)))


def test_sizes_at_the_edge() -> None:
    assert build_method(spec(num=1, dim=2048)).num_private == 1
    method = build_method(spec(num=2**31 + 1, dim=1, budget=1e-3))
    ids = torch.tensor([0, method.num_private - 1, method.num_private, 2**31 - 1, 2**31])
    (rows,) = method.address(ids)
    assert rows[:2].tolist() == [0, method.num_private - 1]
    assert bool(((rows[2:] >= method.num_private) & (rows[2:] < method.physical[0].num_embeddings)).all())
    one_row = build_method(spec(options=AdaptConfig(num_rows=1, private=1.0)))
    assert (one_row.num_private, one_row.num_rows) == (0, 1)
    nearly = build_method(spec(num=9, counts=zipf_counts(9), options=AdaptConfig(num_rows=8)))
    assert sorted(addressed(nearly)[0].tolist()) == [0, 1, 2, 3, 4, 5, 6, 7, 7]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("num_private", [0, 1, 2**40 - 1])
def test_a_layout_is_one_number(num_private: int, first: int) -> None:
    layout = layout_of("t", num_private=num_private, first=first)
    assert -(2**63) <= layout < 2**63
    assert layout_of("u", num_private=num_private, first=first) != layout
    assert layout_parts(layout) == (num_private, first)


def test_a_private_share_outside_the_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"private 1.5; it is a share of the rows and lies in \[0, 1\]"):
        build_method(spec(options=AdaptConfig(private=1.5)))
