"""Tensor-train tables against numpy's einsum, tensorly and dense autograd."""

import math

import numpy as np
import pytest
import scipy.stats
import tensorly.tt_matrix
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embank.compression import Table
from embank.compression.methods.tt_rec import TTRec, TTRecConfig, ceil_root, dim_factors, row_factors
from embank.tables import (
    BudgetError,
    ConfigError,
    RowInit,
    RowOptimizer,
    TableCollection,
    TableSpec,
    build_method,
    pack_table,
)
from tests.compression.oracles import Weights, check_against_dense, materialised, spec_of, table_of
from tests.tables.batches import random_kjt


def built(num: int, dim: int, *, rank: int | None = None, budget: float | None = None) -> TTRec:
    method = build_method(spec_of("tt_rec", num, dim, options=TTRecConfig(rank=rank), budget=budget))
    assert isinstance(method, TTRec)
    return method


def shape_of(table: Table) -> tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int]]:
    (method,) = table.collection.built_methods()
    assert isinstance(method, TTRec)
    return method.tensor_train.rows, method.tensor_train.dims, method.tensor_train.ranks


@pytest.mark.parametrize(("num", "dim", "rank"), [(60, 16, 3), (61, 12, 5), (7, 7, 2), (1, 5, 4), (200, 1, 3)])
def test_values_and_gradients_equal_einsum_in_row_major_digits(num: int, dim: int, rank: int) -> None:
    table = table_of("tt_rec", num, dim, options=TTRecConfig(rank=rank))
    (n0, n1, n2), (q0, q1, q2), (r1, r2) = shape_of(table)

    def dense(weights: Weights) -> torch.Tensor:
        first, middle, last = weights.values()
        full = torch.einsum(
            "iar,jrbs,kcs->ijkabc",
            first.view(n0, q0, r1),
            middle.view(n1, r1, q1, r2),
            last.view(n2, r2, q2).transpose(1, 2),
        )
        return full.reshape(n0 * n1 * n2, q0 * q1 * q2)[:num, :dim]

    check_against_dense(table, dense)


@pytest.mark.parametrize(("num", "dim"), [(1000, 16), (997, 13), (64, 8)])
def test_tensorly_and_numpy_give_the_same_table(num: int, dim: int) -> None:
    table = table_of("tt_rec", num, dim, options=TTRecConfig(rank=4))
    (n0, n1, n2), (q0, q1, q2), (r1, r2) = shape_of(table)
    first, middle, last = (rows.double().numpy() for rows in table.collection.weights().values())
    first, middle, last = first.reshape(n0, q0, r1), middle.reshape(n1, r1, q1, r2), last.reshape(n2, r2, q2)
    factors = [first[None], middle.transpose(1, 0, 2, 3), last.transpose(1, 0, 2)[..., None]]
    whole = tensorly.tt_matrix.tt_matrix_to_matrix(factors)[:num, :dim]
    np.testing.assert_allclose(materialised(table).numpy(), whole, atol=1e-6)
    i0, i1, i2 = np.unravel_index(np.arange(num), (n0, n1, n2))
    by_row = np.einsum("xar,xrbs,xsc->xabc", first[i0], middle[i1], last[i2]).reshape(num, -1)[:, :dim]
    np.testing.assert_allclose(materialised(table).numpy(), by_row, atol=1e-6)


def test_unfoldings_have_the_rank() -> None:
    table = table_of("tt_rec", 6**3, 8, options=TTRecConfig(rank=3))
    (n0, n1, n2), (q0, q1, q2), ranks = shape_of(table)
    assert n0 * n1 * n2 == 6**3
    assert ranks == (3, 3)
    full = materialised(table).double().view(n0, n1, n2, q0, q1, q2).permute(0, 3, 1, 4, 2, 5)
    for left in (n0 * q0, n0 * q0 * n1 * q1):
        values = torch.linalg.svdvals(full.reshape(left, -1))
        assert values[3] < 1e-6 * values[0]
        assert values[2] > 1e-4 * values[0]


def test_tt_svd_of_a_table_of_full_rank_is_exact() -> None:
    """At the capped rank any table can be written: two exact factorisations of its unfoldings give cores that reproduce
    it."""
    num, dim = 4 * 4 * 4, 8
    table = table_of("tt_rec", num, dim, options=TTRecConfig(rank=10**6))
    (n0, n1, n2), (q0, q1, q2), (r1, r2) = shape_of(table)
    assert n0 * n1 * n2 == num
    wanted = torch.randn(num, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    unfolded = wanted.view(n0, n1, n2, q0, q1, q2).permute(0, 3, 1, 4, 2, 5).reshape(n0 * q0, -1)
    u, s, v = torch.linalg.svd(unfolded, full_matrices=False)
    assert s.numel() == r1
    u2, s2, v2 = torch.linalg.svd((s[:, None] * v).reshape(r1 * n1 * q1, n2 * q2), full_matrices=False)
    assert s2.numel() == r2
    cores = [
        u.view(n0, q0, r1),
        u2.view(r1, n1, q1, r2).permute(1, 0, 2, 3),
        (s2[:, None] * v2).view(r2, n2, q2).permute(1, 0, 2),
    ]
    for rows, core in zip(table.collection.weights().values(), cores, strict=True):
        rows.copy_(core.reshape(rows.shape))
    torch.testing.assert_close(materialised(table).double(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 8, 32])
def test_initial_spread_is_the_plain_tables_at_every_rank(rank: int) -> None:
    num = 150_000
    rows = materialised(table_of("tt_rec", num, 16, options=TTRecConfig(rank=rank)))
    assert rows.std() == pytest.approx((3 * num) ** -0.5, rel=0.05)
    assert abs(rows.mean()) < 0.05 * rows.std()


@settings(max_examples=60, deadline=None)
@given(num=st.integers(1, 20_000), dim=st.integers(1, 300), budget=st.floats(0.001, 1))
def test_the_rank_is_the_largest_that_fits(num: int, dim: int, budget: float) -> None:
    limit = budget * 4 * num * dim
    try:
        shape = built(num, dim, budget=budget).tensor_train
    except BudgetError:
        assert built(num, dim, rank=1).tensor_train.nbytes > limit
        return
    (n0, n1, n2), (q0, q1, q2), (r1, r2) = shape.rows, shape.dims, shape.ranks
    assert shape.nbytes == 4 * (n0 * q0 * r1 + n1 * q1 * r1 * r2 + n2 * q2 * r2) <= limit
    more = built(num, dim, rank=max(r1, r2) + 1).tensor_train
    assert more.ranks == shape.ranks or more.nbytes > limit
    assert r1 <= min(n0 * q0, n1 * q1 * n2 * q2)
    assert r2 <= min(n2 * q2, n1 * q1 * n0 * q0)


def test_initial_values_are_the_tails_of_a_normal_distribution() -> None:
    """Against scipy's truncated normal distribution, and the same when rows are filled apart."""
    rows = torch.empty(70_000, 3)
    init = RowInit(kind="tails", scale=0.5, mean=0.1)
    init.fill(rows, seed=1, table="t")
    assert rows.std() == pytest.approx(0.5, rel=0.005)
    assert rows.mean() == pytest.approx(0.1, abs=0.01)
    tail = scipy.stats.truncnorm(2, np.inf)
    std = tail.moment(2) ** 0.5
    for sign in (-1, 1):
        side = ((rows - 0.1) * sign / 0.5 * std).flatten()
        side = side[side > 0]
        assert abs(side.numel() - rows.numel() / 2) < 4 * rows.numel() ** 0.5 / 2
        assert scipy.stats.kstest(side.numpy(), tail.cdf).pvalue > 1e-3
    part = torch.empty(5000, 3)
    init.fill(part, seed=1, table="t", first_row=64_000)
    assert torch.equal(part, rows[64_000:69_000])


def test_factors() -> None:
    assert dim_factors(16) == (4, 2, 2)
    assert dim_factors(64) == (4, 4, 4)
    assert dim_factors(7) == (2, 2, 2)  # padded by one column, against 7 x 1 x 1
    assert dim_factors(5) == (5, 1, 1)
    assert dim_factors(1) == (1, 1, 1)
    for dim in [*range(1, 130), 509, 768, 2047, 2048]:
        product = math.prod(dim_factors(dim))
        assert dim <= product <= 1.4 * dim
    for num in [*range(1, 300), 10**6, 10**6 + 1, 2**31 + 1]:
        factors = row_factors(num)
        assert num <= math.prod(factors)
        assert factors[1] == min(factors)
    assert math.prod(row_factors(2**31 + 1)) < 1.01 * 2**31
    assert [ceil_root(x, 3) for x in (1, 2, 8, 9, 10**18, 10**18 + 1)] == [1, 2, 2, 3, 10**6, 10**6 + 1]


def test_core_slices_wider_than_fbgemms_kernels() -> None:
    """Rank 40 makes middle slices of 40 * 2 * 40 = 3,200 numbers."""
    spec = TableSpec(
        name="t",
        num_embeddings=8000,
        embedding_dim=16,
        feature_names=["a"],
        method="tt_rec",
        options=TTRecConfig(rank=40),
    )
    pair = [TableCollection([spec], backend=b, optimizer=RowOptimizer(name="adagrad")) for b in ("fbgemm", "torch")]
    assert [t.name for t in next(pair[0].built_methods()).physical] == ["t/core0", "t/core1", "t/core2"]
    assert pair[0].weights()["t/core1"].shape[1] == 3200
    for step in range(3):
        kjt = random_kjt({"a": 8000}, batch_size=12, seed=step)
        outs = [tables(kjt).values() for tables in pair]
        torch.testing.assert_close(*outs)
        for tables, out in zip(pair, outs, strict=True):
            (out - 1).square().sum().backward()
            tables.update_rows()
    for name, rows in pair[0].weights().items():
        torch.testing.assert_close(rows, pair[1].weights()[name], rtol=1e-4, atol=1e-5)
    packed = pack_table(next(pair[0].built_methods()), pair[0].weights())
    assert packed.nbytes() == built(8000, 16, rank=40).tensor_train.nbytes


def test_digits_of_large_ids_are_exact() -> None:
    num = 2**31 + 1
    method = built(num, 16, rank=2)
    n0, n1, n2 = method.tensor_train.rows
    ids = [0, 1, 2**24 + 1, 2**31 - 1, 2**31]
    for x, *found in zip(ids, *(rows.tolist() for rows in method.address(torch.tensor(ids))), strict=True):
        assert found == [int(digit) for digit in np.unravel_index(x, (n0, n1, n2))]


@pytest.mark.parametrize("dim", [1, 3, 2048])
def test_edge_sizes(dim: int) -> None:
    for num in (1, 9):
        table = table_of("tt_rec", num, dim)
        torch.testing.assert_close(table.pack().lookup(torch.arange(num)), materialised(table))
    assert built(2**31 + 1, dim, budget=1e-4).tensor_train.nbytes <= 1e-4 * 4 * dim * (2**31 + 1)


def test_refusals() -> None:
    with pytest.raises(
        BudgetError, match=r"method 'tt_rec' needs three cores of rank 1, 152 bytes, so its floor is budget 0\.02375;"
    ):
        built(100, 16, budget=0.01)
    with pytest.raises(ConfigError, match=r"has both budget 0\.5 and rank 3"):
        built(100, 16, budget=0.5, rank=3)
    with pytest.raises(ConfigError, match="has rank 0; it must be at least 1"):
        built(100, 16, rank=0)


def test_allocation_gives_a_common_rank_and_the_rest_to_small_tables() -> None:
    specs = [
        TableSpec(name=str(num), num_embeddings=num, embedding_dim=16, feature_names=[str(num)], method="tt_rec")
        for num in (50, 4000, 300_000)
    ]
    nbytes = sum(spec.plain_nbytes for spec in specs) // 100
    shared = TTRec.traits.allocation.share(specs, nbytes)
    assert shared[0].method == "full"
    small, large = (build_method(spec) for spec in shared[1:])
    assert isinstance(small, TTRec)
    assert isinstance(large, TTRec)
    assert small.tensor_train.ranks >= large.tensor_train.ranks
    assert shared[0].plain_nbytes + small.tensor_train.nbytes + large.tensor_train.nbytes <= nbytes
    above = [built(n, 16, rank=max(large.tensor_train.ranks) + 1).tensor_train.nbytes for n in (4000, 300_000)]
    assert shared[0].plain_nbytes + sum(above) > nbytes
