"""AdaptEmb against sorted counts, bucket loads and a split found by brute force."""

from collections import Counter

import pytest
import torch

from embank.compression import build_table
from embank.compression.adapt import AdaptConfig, best_num_private
from embank.tables import BudgetError, ConfigError, TableSpec, build_method
from tests.compression.materialised import check_against, zipf_counts


def spec(num: int = 500, dim: int = 6, **more: object) -> TableSpec:
    return TableSpec(name="t", num_embeddings=num, embedding_dim=dim, feature_names=["a"], method="adapt", **more)


def test_private_rows_for_exactly_the_most_frequent_ids() -> None:
    counts = zipf_counts(500)
    method = build_method(spec(budget=0.2, counts=counts))
    (rows,) = method.address(torch.arange(500))
    loads = Counter(rows.tolist())
    private = {i for i in range(500) if int(rows[i]) < method.num_private}
    by_count = sorted(range(1, 500), key=lambda i: (-int(counts[i]), i))
    assert private == {0, *by_count[: method.num_private - 1]}
    assert all(loads[int(rows[i])] == 1 for i in private)
    assert method.num_private + method.num_shared == 99  # 8 bytes of the budget go to the constant


def test_shared_rows_have_loads_within_one_and_balanced_lookups() -> None:
    counts = zipf_counts(1003)
    for private in (0.0, 0.3, 0.9, 1.0):
        method = build_method(spec(num=1003, budget=0.1, counts=counts, options=AdaptConfig(private=private)))
        first, shared = method.num_private, method.num_shared
        (rows,) = method.address(torch.arange(1003))
        ids = torch.bincount(rows[first:] - first, minlength=shared)
        assert ids.numel() == shared
        assert ids.max() - ids.min() <= 1
        lookups = torch.zeros(shared, dtype=torch.int64).index_add(0, rows[first:] - first, counts[first:])
        assert lookups.max() - lookups.min() <= counts[first:].max()


def test_lookups_and_gradients_are_those_of_one_row_each() -> None:
    def materialise(rows: dict[str, torch.Tensor], _: object) -> torch.Tensor:
        private, shared = rows["t"][:20], rows["t"][20:50]
        return torch.stack([private[i] if i < 20 else shared[(i - 20) % 30] for i in range(500)])

    check_against(spec(options=AdaptConfig(num_rows=50, private=0.4)), materialise)


def company(counts: list[int], num_private: int, num_rows: int) -> float:
    """Mean number of ids in the row of a random lookup, row by row."""
    shared = num_rows - num_private
    row_of = [i if i < num_private else num_private + (i - num_private) % shared for i in range(len(counts))]
    loads = Counter(row_of)
    return sum(count * loads[row] for count, row in zip(counts, row_of, strict=True)) / sum(counts)


def test_the_split_is_the_best_of_all_splits() -> None:
    for exponent, num_rows in ((1.05, 40), (0.5, 40), (2.0, 13), (1.05, 199)):
        counts = zipf_counts(400, exponent=exponent)
        found = best_num_private(counts, num_rows=num_rows)
        best = min(company(counts.tolist(), f, num_rows) for f in range(num_rows))
        # the rule takes (N - F) / (R - F) for the load of a shared row, which is whole and within one of it
        assert company(counts.tolist(), found, num_rows) <= best * 1.02
    assert best_num_private(torch.ones(400, dtype=torch.int64), num_rows=40) == 0
    steep = (1e9 / 4.0 ** torch.arange(400)).long()
    assert best_num_private(steep, num_rows=40) > 12


def test_without_counts_half_the_rows_are_private() -> None:
    method = build_method(spec(budget=0.1))
    assert (method.num_private, method.num_shared) == (24, 25)


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
    expected = [
        i if i < method.num_private else method.num_private + (i - method.num_private) % method.num_shared
        for i in ids.tolist()
    ]
    assert rows.tolist() == expected
    assert max(expected) < method.physical[0].num_embeddings
    one_row = build_method(spec(options=AdaptConfig(num_rows=1, private=1.0)))
    assert (one_row.num_private, one_row.num_shared) == (0, 1)


def test_a_private_share_outside_the_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"private 1.5; it is a share of the rows and lies in \[0, 1\]"):
        build_method(spec(options=AdaptConfig(private=1.5)))
