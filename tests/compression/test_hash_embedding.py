"""Hash embeddings against loops in Python and dense autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embank.compression.methods.hash_embedding import HashEmbedding, HashEmbeddingConfig
from embank.tables import BudgetError, ConfigError, TableSpec, build_method, physical_tables
from embank.tables.ids.hashing import salt64
from tests.compression.oracles import Weights, check_against_dense, materialised, spec_of, splitmix64, table_of


def built(
    num: int, dim: int, *, options: HashEmbeddingConfig | None = None, budget: float | None = None
) -> HashEmbedding:
    method = build_method(spec_of("hash_embedding", num, dim, options=options, budget=budget))
    assert isinstance(method, HashEmbedding)
    return method


def row_of(value: int, *, lookup: int, num_rows: int) -> int:
    mixed = splitmix64((value ^ salt64("hash_embedding", "t", lookup)) & (2**64 - 1))
    return (mixed & (2**63 - 1)) % num_rows


@pytest.mark.parametrize("num_hashes", [1, 2, 3])
def test_values_and_gradients_equal_dense_autograd(num_hashes: int) -> None:
    table = table_of("hash_embedding", 53, 6, options=HashEmbeddingConfig(num_rows=8, num_hashes=num_hashes))

    def dense(weights: Weights) -> torch.Tensor:
        rows = []
        for x in range(53):
            terms = [
                weights["t/importances"][x, i] * weights["t/rows"][row_of(x, lookup=i, num_rows=8)]
                for i in range(num_hashes)
            ]
            rows.append(torch.stack(terms).sum(0))
        return torch.stack(rows)

    check_against_dense(table, dense)


def test_ids_that_collide_in_every_hash_still_differ_by_their_importances() -> None:
    rows = materialised(table_of("hash_embedding", 300, 8, options=HashEmbeddingConfig(num_rows=3)))
    assert rows.unique(dim=0).shape[0] == 300
    assert int(torch.linalg.matrix_rank(rows)) == 3


def test_one_hash_with_importances_of_one_is_the_hashing_trick() -> None:
    table = table_of("hash_embedding", 90, 5, options=HashEmbeddingConfig(num_rows=7, num_hashes=1))
    table.collection.weights()["t/importances"].fill_(1.0)
    rows = table.collection.weights()["t/rows"]
    expected = torch.stack([rows[row_of(x, lookup=0, num_rows=7)] for x in range(90)])
    assert torch.equal(materialised(table), expected)


@pytest.mark.parametrize("num_hashes", [1, 2, 4])
def test_initial_spread_is_the_plain_tables(num_hashes: int) -> None:
    rows = materialised(table_of("hash_embedding", 50_000, 16, options=HashEmbeddingConfig(num_hashes=num_hashes)))
    assert rows.std() == pytest.approx((3 * 50_000) ** -0.5, rel=0.05)


@settings(max_examples=60, deadline=None)
@given(num=st.integers(1, 3000), dim=st.integers(1, 40), budget=st.floats(0.01, 1), k=st.integers(1, 3))
def test_rows_fill_what_the_budget_leaves_beside_the_importances(num: int, dim: int, budget: float, k: int) -> None:
    limit, fixed = budget * 4 * num * dim, (4 * num + 8) * k
    try:
        method = built(num, dim, budget=budget, options=HashEmbeddingConfig(num_hashes=k))
    except BudgetError:
        assert fixed + 4 * dim > limit - 1
        return
    held = sum(4 * table.num_embeddings * table.embedding_dim for table in physical_tables(method)) + 8 * k
    assert held == fixed + 4 * dim * method.num_rows <= limit
    assert method.num_rows == num or held + 4 * dim > limit - 1


def test_refusals() -> None:
    with pytest.raises(
        BudgetError,
        match=r"needs 2 numbers per id, as many salts and one row, 880 bytes, so its floor is budget 0\.1375;",
    ):
        built(100, 16, budget=0.13)
    with pytest.raises(ConfigError, match=r"has both budget 0\.5 and num_rows 3"):
        built(100, 16, budget=0.5, options=HashEmbeddingConfig(num_rows=3))
    with pytest.raises(ConfigError, match="table 't' has num_hashes 0; it must be at least 1"):
        built(100, 16, options=HashEmbeddingConfig(num_hashes=0))


def test_one_budget_for_all_keeps_tables_plain_that_importances_would_not_shrink() -> None:
    specs = [
        TableSpec(
            name=f"{num}/{dim}", num_embeddings=num, embedding_dim=dim, feature_names=["a"], method="hash_embedding"
        )
        for num, dim in ((1000, 16), (50_000, 16), (1000, 2))
    ]
    nbytes = sum(spec.plain_nbytes for spec in specs) // 4
    shared = HashEmbedding.traits.allocation.share(specs, nbytes)
    assert [spec.method for spec in shared] == ["hash_embedding", "hash_embedding", "full"]
    methods = [build_method(spec) for spec in shared]
    held = [4 * t.num_embeddings * t.embedding_dim for method in methods for t in physical_tables(method)]
    assert 0.99 * nbytes < sum(held) + 2 * 16 <= nbytes


@pytest.mark.parametrize("dim", [1, 3, 2048])
def test_edge_sizes(dim: int) -> None:
    for num in (1, 9):
        table = table_of("hash_embedding", num, dim)
        assert torch.equal(table.pack().lookup(torch.arange(num)), materialised(table))
    huge = built(2**31 + 1, dim, options=HashEmbeddingConfig(num_rows=2**20 + 7))
    expected = [row_of(2**31, lookup=i, num_rows=2**20 + 7) for i in range(2)]
    assert [int(ids) for ids in huge.address(torch.tensor([2**31]))] == [*expected, 2**31]
