"""ROBE against an explicit sparse matrix, whose entries come from Python's integers."""

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec import KeyedJaggedTensor

from embank.compression.methods.robe import Robe, RobeConfig
from embank.tables import BudgetError, ConfigError, RowOptimizer, TableCollection, TableSpec, build_method
from embank.tables.ids.hashing import salt64
from tests.compression.oracles import looked_up, materialised, spec_of, splitmix64, table_of
from tests.tables.batches import random_kjt


def built(num: int, dim: int, *, options: RobeConfig | None = None, budget: float | None = None) -> Robe:
    method = build_method(spec_of("robe", num, dim, options=options, budget=budget))
    assert isinstance(method, Robe)
    return method


def sparse_matrix(
    num: int, dim: int, *, size: int, chunk: int, signs: bool, name: str = "t"
) -> scipy.sparse.csr_matrix:
    """S of shape [num * dim, size] with E.ravel() = S m: one entry, 1 or -1, in each row."""
    salt = salt64("robe", name)
    places, values = [], []
    for x in range(num):
        mixed = splitmix64((x ^ salt) & (2**64 - 1))
        for i in range(dim):
            j, offset = divmod(i, chunk)
            start = (splitmix64(mixed + j) & (2**63 - 1)) % size
            places.append((start + offset) % size)
            word = splitmix64((mixed - 1 - i // 64) & (2**64 - 1))
            values.append((1 if word >> i % 64 & 1 else -1) if signs else 1)
    rows = np.arange(num * dim)
    return scipy.sparse.csr_matrix((np.array(values, dtype=np.float64), (rows, places)), shape=(num * dim, size))


SHAPES = [
    (30, 8, 8, 24, False),
    (30, 8, 8, 24, True),
    (25, 10, 4, 20, True),  # the last chunk is cut off
    (25, 10, 3, 9, False),
    (12, 6, 1, 7, True),  # every element has a place of its own
    (9, 5, 5, 5, False),  # the array is one physical row
    (6, 130, 65, 195, True),  # signs of more than one word
]


@pytest.mark.parametrize(("num", "dim", "chunk", "size", "signs"), SHAPES)
def test_rows_are_s_times_the_array_and_its_gradient_s_transposed(
    num: int, dim: int, chunk: int, size: int, signs: bool
) -> None:
    options = RobeConfig(chunk=chunk, num_weights=size, signs=signs)
    table = table_of("robe", num, dim, options=options)
    sparse = sparse_matrix(num, dim, size=size, chunk=chunk, signs=signs)
    array = table.collection.weights()["t"].flatten().double().numpy().copy()
    np.testing.assert_allclose(materialised(table).numpy().ravel(), sparse @ array, atol=1e-7)
    gradient = torch.randn(num, dim, generator=torch.Generator().manual_seed(0))
    (looked_up(table, torch.arange(num)) * gradient).sum().backward()
    table.collection.update_rows()
    moved = array - table.collection.weights()["t"].flatten().double().numpy()
    np.testing.assert_allclose(moved, sparse.T @ gradient.double().numpy().ravel(), atol=2e-6)
    np.testing.assert_allclose(table.pack().lookup(torch.arange(num)).numpy(), materialised(table).numpy(), atol=1e-7)


def test_batches_with_repeated_ids_have_the_gradient_of_the_materialised_graph() -> None:
    table = table_of("robe", 40, 12, options=RobeConfig(chunk=4, num_weights=64))
    sparse = torch.from_numpy(sparse_matrix(40, 12, size=64, chunk=4, signs=False).toarray()).float()
    array = table.collection.weights()["t"].flatten().clone().requires_grad_()
    ids = torch.randint(0, 40, (100,), generator=torch.Generator().manual_seed(1))
    direction = torch.randn(100, 12, generator=torch.Generator().manual_seed(2))
    ((sparse @ array).view(40, 12)[ids] * direction).sum().backward()
    before = table.collection.weights()["t"].clone()
    (looked_up(table, ids) * direction).sum().backward()
    table.collection.update_rows()
    assert array.grad is not None
    moved = (before - table.collection.weights()["t"]).flatten()
    torch.testing.assert_close(moved, array.grad, rtol=1e-4, atol=1e-4)


def test_chunks_are_consecutive_and_some_go_around_the_end() -> None:
    num, dim, size = 200, 8, 40
    table = table_of("robe", num, dim, options=RobeConfig(num_weights=size))
    table.collection.weights()["t"].copy_(torch.arange(size).view(5, 8))
    rows = materialised(table).long()
    assert torch.equal((rows[:, 1:] - rows[:, :-1]) % size, torch.ones(num, dim - 1, dtype=torch.int64))
    around = (rows[:, 0] > size - dim).float().mean()
    assert 0.5 * 7 / 40 < around < 2 * 7 / 40


def test_places_are_even_and_signs_balanced() -> None:
    num, dim, size = 4000, 16, 256
    table = table_of("robe", num, dim, options=RobeConfig(chunk=4, num_weights=size, signs=True))
    table.collection.weights()["t"].copy_(torch.arange(1, size + 1).view(-1, 4))
    uses = materialised(table).abs().long().flatten().bincount()[1:].double()
    assert uses.numel() == size
    assert uses.mean() == num * dim / size
    assert uses.std() < 1.3 * (num * dim / size) ** 0.5, "as many as balls thrown at random"
    table.collection.weights()["t"].fill_(1.0)
    signs = materialised(table)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 4 * (num * dim) ** -0.5
    assert (signs.mean(0).abs() < 4 * num**-0.5).all()


def test_fbgemm_and_torch_agree_over_several_chunks() -> None:
    options = RobeConfig(chunk=4, signs=True, num_weights=48)
    spec = TableSpec(name="t", num_embeddings=60, embedding_dim=10, feature_names=["a"], method="robe", options=options)
    for optimizer in ("sgd", "adagrad", "rowwise_adagrad"):
        pair = [TableCollection([spec], backend=b, optimizer=RowOptimizer(name=optimizer)) for b in ("fbgemm", "torch")]
        for step in range(5):
            for tables in pair:
                (tables(random_kjt({"a": 60}, batch_size=8, seed=step)).values() - 1).square().sum().backward()
                tables.update_rows()
        torch.testing.assert_close(pair[0].weights()["t"], pair[1].weights()["t"], rtol=1e-4, atol=1e-5)


def test_initial_spread_is_the_plain_tables() -> None:
    for signs in (False, True):
        rows = materialised(table_of("robe", 40_000, 16, budget=0.1, options=RobeConfig(signs=signs)))
        assert rows.std() == pytest.approx((3 * 40_000) ** -0.5, rel=0.05)


@settings(max_examples=60, deadline=None)
@given(num=st.integers(1, 5000), dim=st.integers(1, 100), chunk=st.integers(1, 70), budget=st.floats(1e-4, 1))
def test_the_array_fills_the_budget_up_to_one_chunk(num: int, dim: int, chunk: int, budget: float) -> None:
    limit = budget * 4 * num * dim
    try:
        method = built(num, dim, budget=budget, options=RobeConfig(chunk=chunk))
    except BudgetError:
        assert 4 * chunk + 8 > limit - 1
        return
    held = 4 * method.num_rows * chunk + 8
    assert held <= limit < held + 4 * chunk + 1


def shared(names: list[str], **options: object) -> list[TableSpec]:
    sizes = {"a": 500, "b": 80, "c": 2000}
    return [
        TableSpec(
            name=name,
            num_embeddings=sizes[name],
            embedding_dim=8,
            feature_names=[name],
            method="robe",
            options=RobeConfig(**options),  # type: ignore[arg-type]
        )
        for name in names
    ]


def test_tables_that_share_an_array_count_it_once_and_add_up_their_gradients() -> None:
    specs = [*shared(["a", "b"], array="both"), *shared(["c"])]
    plain = sum(spec.plain_nbytes for spec in specs)
    allocated = Robe.traits.allocation.share(specs, plain // 4)
    tables = TableCollection(allocated, backend="fbgemm", optimizer=RowOptimizer(name="sgd", lr=1.0))
    assert sorted(tables.weights()) == ["c", "robe/both"]
    size = tables.weights()["robe/both"].numel()
    assert tables.nbytes("serving") == 4 * size + 8 + 8 + 4 * tables.weights()["c"].numel() + 8
    assert plain // 4 - 64 <= tables.nbytes("serving") <= plain // 4
    before = tables.weights()["robe/both"].flatten().clone().double().numpy()
    ids = {"a": torch.tensor([3, 3, 499]), "b": torch.tensor([0, 79, 3]), "c": torch.tensor([1, 2, 3])}
    kjt = KeyedJaggedTensor(
        keys=list(ids), values=torch.cat(list(ids.values())), lengths=torch.ones(9, dtype=torch.int32)
    )
    values = tables(kjt).values()
    direction = torch.randn(values.shape, generator=torch.Generator().manual_seed(0))
    (values * direction).sum().backward()
    expected = np.zeros(size)
    for column, (name, num) in enumerate((("a", 500), ("b", 80))):
        sparse = sparse_matrix(num, 8, size=size, chunk=8, signs=False, name=name)
        rows = (sparse @ before).reshape(num, 8)
        np.testing.assert_allclose(values[:, 8 * column : 8 * column + 8].detach(), rows[ids[name]], atol=1e-6)
        gradient = np.zeros((num, 8))
        np.add.at(gradient, ids[name].numpy(), direction[:, 8 * column : 8 * column + 8].numpy())
        expected += sparse.T @ gradient.ravel()
    moved = before - tables.weights()["robe/both"].flatten().double().numpy()
    np.testing.assert_allclose(moved, expected, atol=1e-5)


def test_tables_that_share_an_array_do_not_collide_systematically() -> None:
    """Salts come from names: one id starts at the same place for two tables, and for two neighbours of one table, at
    the rate of chance."""
    specs = [
        TableSpec(
            name=name,
            num_embeddings=100_000,
            embedding_dim=8,
            feature_names=[name],
            method="robe",
            options=RobeConfig(array="both", chunk=4, num_weights=1000),
            init_std=0.1,
        )
        for name in ("a", "b", "ab")
    ]
    methods = [build_method(spec) for spec in specs]
    assert len({method.physical for method in methods}) == 1
    ids = torch.arange(100_000)
    starts = []
    for method in methods:
        side = method.side(ids)
        assert isinstance(side, torch.Tensor)
        starts.append(torch.stack(method.address(ids)[::2], dim=1) * 4 + side)
    expected = 100_000 / 1000
    for i, j in ((0, 1), (0, 2), (1, 2)):
        for chunk in (0, 1):
            assert abs(int((starts[i][:, chunk] == starts[j][:, chunk]).sum()) - expected) < 4 * expected**0.5
    for own in starts:
        assert abs(int((own[1:, 0] == own[:-1, 0]).sum()) - expected) < 4 * expected**0.5
        assert abs(int((own[:, 0] == own[:, 1]).sum()) - expected) < 4 * expected**0.5


def test_refusals() -> None:
    with pytest.raises(
        BudgetError, match=r"needs one chunk of 16 and its salt, 72 bytes, so its floor is budget 0\.01125;"
    ):
        built(100, 16, budget=0.011)
    with pytest.raises(ConfigError, match="has num_weights 50, which is no multiple of its chunk 16; use 64"):
        built(100, 16, options=RobeConfig(num_weights=50))
    with pytest.raises(ConfigError, match="has chunk 0; use 1 to 2048 floats"):
        built(100, 16, options=RobeConfig(chunk=0))
    with pytest.raises(ConfigError, match="table 't' shares array 'x' but does not say its size; let Robe.allocate"):
        built(100, 16, budget=0.5, options=RobeConfig(array="x"))
    with pytest.raises(BudgetError, match="array 'both' of 2 tables of method 'robe' needs one chunk and the salts"):
        Robe.traits.allocation.share(shared(["a", "b"], array="both"), 40)


@pytest.mark.parametrize("dim", [1, 3, 2048])
def test_edge_sizes(dim: int) -> None:
    for num in (1, 9):
        table = table_of("robe", num, dim)
        assert torch.equal(table.pack().lookup(torch.arange(num)), materialised(table))
    huge = built(2**31 + 1, dim, budget=1e-3)
    first, second = huge.address(torch.tensor([2**31]))[:2]
    salt = salt64("robe", "t")
    start = (splitmix64(splitmix64((2**31 ^ salt) & (2**64 - 1))) & (2**63 - 1)) % (huge.num_rows * huge.chunk)
    assert int(first) == start // huge.chunk
    assert int(second) == (start // huge.chunk + 1) % huge.num_rows
    assert int(huge.side(torch.tensor([2**31]))[0, 0]) == start % huge.chunk
