"""TableCollection against dense references written out by hand."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.models.dlrm import DLRM
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from embank.tables import (
    ConfigError,
    DataError,
    IdRangeError,
    RowOptimizer,
    RowTier,
    TableCollection,
    TableSpec,
    load_bundle,
    register_method,
    save_bundle,
)
from embank.tables.method.registry import METHODS
from embank.tables.rows import StoreSpec
from embank.tables.sharding.plan import Plan
from embank.tables.sharding.sharded_rows import ShardedRows, Sharding
from tests.tables.batches import random_kjt
from tests.tables.held import constants
from tests.tables.products import Product

register_method("test_product", Product)

SIZES = {"user": 50, "item": 23, "genre": 7}
BACKENDS = ["fbgemm", "torch"]


def mixed_specs() -> list[TableSpec]:
    """Odd and even dims, sum and mean, linear and not, one feature in two tables, two features in one table."""
    return [
        TableSpec(name="U", num_embeddings=50, embedding_dim=6, feature_names=["user"]),
        TableSpec(name="U1", num_embeddings=50, embedding_dim=1, feature_names=["user"], init_std=0.1),
        TableSpec(
            name="I",
            num_embeddings=50,
            embedding_dim=8,
            feature_names=["item", "genre"],
            pooling="mean",
            method="hash",
            budget=0.5,
        ),
        TableSpec(
            name="G", num_embeddings=7, embedding_dim=5, feature_names=["genre"], pooling="mean", method="test_product"
        ),
        TableSpec(name="P", num_embeddings=50, embedding_dim=4, feature_names=["user"], method="test_product"),
    ]


def reference(tables: TableCollection, kjt: KeyedJaggedTensor) -> torch.Tensor:
    """Bag by bag in Python, from the collection's weights."""
    weights = {n: w.clone() for n, w in tables.weights().items()}
    columns = []
    for spec, method in zip(tables.specs, tables.built_methods(), strict=True):
        for feature in spec.feature_names:
            bags = torch.tensor_split(kjt[feature].values(), kjt[feature].offsets()[1:-1].long())
            rows = []
            for ids in bags:
                physical = tuple(
                    weights[table.name][a] for table, a in zip(method.physical, method.address(ids), strict=True)
                )
                logical = method.combine(physical, None)
                total = logical.sum(0)
                rows.append(total / max(1, len(ids)) if spec.pooling == "mean" else total)
            columns.append(torch.stack(rows))
    return torch.cat(columns, dim=1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("single", [True, False])
def test_forward_equals_bag_by_bag(backend: str, single: bool) -> None:
    tables = TableCollection(mixed_specs(), seed=3, backend=backend)
    kjt = random_kjt(SIZES, batch_size=9, seed=1, single=single)
    out = tables(kjt)
    assert out.keys() == ["user@U", "user@U1", "item", "genre@I", "genre@G", "user@P"]
    assert out.length_per_key() == [6, 1, 8, 8, 5, 4]
    torch.testing.assert_close(out.values(), reference(tables, kjt), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_address_early_equals_address_late(backend: str) -> None:
    tables = TableCollection(mixed_specs(), backend=backend)
    kjt = random_kjt(SIZES, batch_size=5, seed=2)
    assert torch.equal(tables(kjt).values(), tables(tables.address(kjt)).values())


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad"])
def test_backends_agree_over_ten_steps(optimizer: str) -> None:
    collections = [
        TableCollection(mixed_specs(), seed=5, backend=b, optimizer=RowOptimizer(name=optimizer, lr=0.05))
        for b in BACKENDS
    ]
    dense = [torch.optim.SGD(c.dense_parameters(), lr=0.01) for c in collections]
    start = {n: w.clone() for n, w in collections[0].weights().items()}
    for step in range(10):
        kjt = random_kjt(SIZES, batch_size=16, seed=100 + step)
        outs = []
        for tables, opt in zip(collections, dense, strict=True):
            out = tables(kjt).values()
            outs.append(out.detach().clone())
            opt.zero_grad()
            (out - 1).square().mean(0).sum().backward()
            tables.update_rows()
            opt.step()
        torch.testing.assert_close(*outs, rtol=2e-5, atol=2e-5)
    fast, slow = (c.weights() for c in collections)
    for name, weight in fast.items():
        assert not torch.equal(weight, start[name]), f"{name} was not trained"
        torch.testing.assert_close(weight, slow[name], rtol=2e-5, atol=2e-5)
    for name, state in collections[0].optimizer_state().items():
        for key, value in state.items():
            torch.testing.assert_close(value, collections[1].optimizer_state()[name][key], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_gradient_is_the_dense_one(backend: str, pooling: str) -> None:
    """With SGD of rate 1 the rows move by minus the gradient; autograd on a plain table gives the same."""
    spec = TableSpec(name="t", num_embeddings=20, embedding_dim=6, feature_names=["a"], pooling=pooling)
    tables = TableCollection([spec], backend=backend, optimizer=RowOptimizer(name="sgd", lr=1.0))
    kjt = random_kjt({"a": 20}, batch_size=12, seed=4)
    before = tables.weights()["t"].clone()
    plain = nn.EmbeddingBag.from_pretrained(before.clone(), freeze=False, mode=pooling, include_last_offset=True)
    factor = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    (tables(kjt).values() * factor).sum().backward()
    tables.update_rows()
    (plain(kjt.values(), kjt.offsets().long()) * factor).sum().backward()
    torch.testing.assert_close(before - tables.weights()["t"], plain.weight.grad, rtol=1e-5, atol=1e-6)


def check_ten_steps(tables: TableCollection, plain: nn.EmbeddingBag, oracle: torch.optim.Optimizer) -> None:
    """Ten steps of a table and of torch's, which begin with the same rows, end with the same rows."""
    for step in range(10):
        kjt = random_kjt({"a": 10}, batch_size=6, seed=step)
        (tables(kjt).values() - 1).square().sum().backward()
        tables.update_rows()
        oracle.zero_grad()
        (plain(kjt.values(), kjt.offsets().long()) - 1).square().sum().backward()
        oracle.step()
    torch.testing.assert_close(tables.weights()["t"], plain.weight.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dim", [1, 3, 4, 6])
@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_optimizers_equal_published_ones(backend: str, name: str, dim: int) -> None:
    """torch's and TorchRec's optimizers on a plain table: the oracle that shares no line with ours, padding
    included."""
    spec = TableSpec(name="t", num_embeddings=10, embedding_dim=dim, feature_names=["a"])
    tables = TableCollection([spec], backend=backend, optimizer=RowOptimizer(name=name, lr=0.1, eps=1e-3))
    plain = nn.EmbeddingBag.from_pretrained(
        tables.weights()["t"].clone(), freeze=False, mode="sum", include_last_offset=True
    )
    oracle = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
        "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-3),
        "rowwise_adagrad": lambda p: RowWiseAdagrad(p, lr=0.1, eps=1e-3),
    }[name](plain.parameters())
    check_ten_steps(tables, plain, oracle)


def test_adam_is_torchs_sparse_adam() -> None:
    spec = TableSpec(name="t", num_embeddings=10, embedding_dim=3, feature_names=["a"])
    tables = TableCollection([spec], backend="torch", optimizer=RowOptimizer(name="adam", lr=0.1))
    plain = nn.EmbeddingBag.from_pretrained(
        tables.weights()["t"].clone(), freeze=False, mode="sum", include_last_offset=True, sparse=True
    )
    oracle = torch.optim.SparseAdam(plain.parameters(), lr=0.1, eps=1e-8)
    check_ten_steps(tables, plain, oracle)


@pytest.mark.parametrize("backend", BACKENDS)
def test_learning_rate_changes_take_effect(backend: str) -> None:
    spec = TableSpec(name="t", num_embeddings=4, embedding_dim=3, feature_names=["a"])
    tables = TableCollection([spec], backend=backend, optimizer=RowOptimizer(name="sgd", lr=1.0))
    kjt = KeyedJaggedTensor(keys=["a"], values=torch.tensor([2]), lengths=torch.tensor([1], dtype=torch.int32))
    for lr in (0.5, 0.0, 0.25):
        before = tables.weights()["t"].clone()
        tables.set_lr(lr)
        tables(kjt).values().sum().backward()
        tables.update_rows()
        expected = before.clone()
        expected[2] -= lr
        torch.testing.assert_close(tables.weights()["t"], expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_disk_equals_memory_bit_for_bit(backend: str, tmp_path) -> None:
    tiers = [RowTier(), RowTier(name="disk", directory=tmp_path / "rows")]
    collections = [TableCollection(mixed_specs(), seed=1, backend=backend, tier=tier) for tier in tiers]
    for step in range(10):
        kjt = random_kjt(SIZES, batch_size=8, seed=step)
        for tables in collections:
            (tables(kjt).values() - 1).square().sum().backward()
            tables.update_rows()
    memory, disk = (c.weights() for c in collections)
    assert all(torch.equal(memory[n], disk[n]) for n in memory)
    for rows in collections[1].row_stores():
        rows.flush()
    held = sum(file.nbytes for rows in collections[1].row_stores() for file in rows.space.files)
    assert sum(p.stat().st_size for p in (tmp_path / "rows").iterdir()) == held


def test_initial_values_depend_on_seed_and_name_alone() -> None:
    one = TableCollection(mixed_specs()[:1], seed=1).weights()["U"]
    among = TableCollection(mixed_specs()[::-1], seed=1, backend="torch").weights()["U"]
    assert torch.equal(one, among)
    assert not torch.equal(one, TableCollection(mixed_specs()[:1], seed=2).weights()["U"])


def test_initial_values_have_the_stated_distribution() -> None:
    specs = [
        TableSpec(name="uniform", num_embeddings=100_000, embedding_dim=4, feature_names=["a"]),
        TableSpec(name="normal", num_embeddings=100_000, embedding_dim=4, feature_names=["b"], init_std=0.01),
    ]
    weights = TableCollection(specs).weights()
    bound = 100_000**-0.5
    assert weights["uniform"].abs().max() <= bound
    assert abs(weights["uniform"].std() / (bound / 3**0.5) - 1) < 0.01
    assert abs(weights["normal"].std() / 0.01 - 1) < 0.01


@pytest.mark.parametrize("backend", BACKENDS)
def test_bytes_are_those_of_the_held_tensors(backend: str) -> None:
    specs = [TableSpec(name="t", num_embeddings=100, embedding_dim=6, feature_names=["a"], method="hash", budget=0.5)]
    tables = TableCollection(specs, backend=backend)
    rows = (4 * 6 * 100 // 2 - 8) // 24
    assert tables.nbytes("serving") == rows * 24 + 8
    width = 8 if backend == "fbgemm" else 6
    assert tables.nbytes("training") == rows * width * 4 + rows * 4 + 8 + constants(tables)  # the salt is held too
    with pytest.raises(ConfigError, match="no 'disk' bytes"):
        tables.nbytes("disk")


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_bags_and_empty_batches(backend: str) -> None:
    tables = TableCollection(mixed_specs(), backend=backend)
    empty_bags = KeyedJaggedTensor(
        keys=list(SIZES), values=torch.empty(0, dtype=torch.int64), lengths=torch.zeros(6, dtype=torch.int32)
    )
    assert torch.equal(tables(empty_bags).values(), torch.zeros(2, 32))
    no_rows = KeyedJaggedTensor(
        keys=list(SIZES), values=torch.empty(0, dtype=torch.int64), lengths=torch.empty(0, dtype=torch.int32)
    )
    assert tables(no_rows).values().shape == (0, 32)


@pytest.mark.parametrize("ids", [[0, 50], [-1, 3]])
def test_ids_out_of_range_name_table_feature_and_id(ids: list[int]) -> None:
    tables = TableCollection([TableSpec(name="T", num_embeddings=50, embedding_dim=4, feature_names=["user"])])
    kjt = KeyedJaggedTensor(keys=["user"], values=torch.tensor(ids), lengths=torch.ones(2, dtype=torch.int32))
    wrong = 50 if 50 in ids else -1
    with pytest.raises(IdRangeError, match=rf"feature 'user' has id {wrong}, outside table 'T' of 50 ids \(0 .. 49\)"):
        tables(kjt)


@pytest.mark.parametrize("extra", [0, 1], ids=["as many ids of each", "more of the last"])
@pytest.mark.parametrize("wrong", [30, 2**40, -1, -(2**63)])
def test_an_id_out_of_range_is_found_among_many(wrong: int, extra: int) -> None:
    sizes = {"a": 50, "b": 30, "c": 7}
    tables = TableCollection(
        [TableSpec(name=f"t{n}", num_embeddings=size, embedding_dim=4, feature_names=[n]) for n, size in sizes.items()]
    )
    ids = torch.cat([torch.full((200,), size - 1) for size in sizes.values()] + [torch.zeros(extra, dtype=torch.int64)])
    lengths = torch.ones(600, dtype=torch.int32)
    lengths[-1] += extra
    kjt = KeyedJaggedTensor(keys=list(sizes), values=ids, lengths=lengths)
    assert tables(kjt).values().shape == (200, 12)
    ids[333] = wrong
    with pytest.raises(IdRangeError, match=rf"feature 'b' has id {wrong}, outside table 'tb' of 30 ids \(0 .. 29\)"):
        tables(kjt)


@pytest.mark.parametrize("name", ["training", "forward", "type", "a.b", "a%2Eb", "%74raining", "_modules"])
def test_tables_have_any_name(name: str, tmp_path: Path) -> None:
    """`Module.train` assigns to `training`, and refused a table of that name."""
    specs = [
        TableSpec(name=own, num_embeddings=5, embedding_dim=4, feature_names=[own], method=method)
        for own, method in ((name, "full"), ("other", "tt_rec"))
    ]
    tables = TableCollection(specs).train()
    kjt = KeyedJaggedTensor(keys=[name, "other"], values=torch.tensor([1, 2]), lengths=torch.ones(2, dtype=torch.int32))
    tables(kjt).values().sum().backward()
    tables.step()
    again = TableCollection(specs, seed=1).eval()
    again.load_state_dict(tables.state_dict())
    assert torch.equal(again(kjt).values(), tables.eval()(kjt).values())
    save_bundle(tmp_path / "b", tables)
    served = load_bundle(tmp_path / "b").train()
    assert torch.equal(served(kjt)[name], tables(kjt)[name])
    assert [spec.name for spec, _ in served.packed_tables()] == [name, "other"]


def test_missing_feature_is_refused_and_weights_are_ignored() -> None:
    tables = TableCollection([TableSpec(name="T", num_embeddings=5, embedding_dim=4, feature_names=["user_id"])])
    ones = torch.ones(1, dtype=torch.int32)
    with pytest.raises(DataError, match=r"looks up feature 'user_id', which the batch lacks; did you mean 'user_ids'"):
        tables(KeyedJaggedTensor(keys=["user_ids"], values=torch.tensor([1]), lengths=ones))
    plain = KeyedJaggedTensor(keys=["user_id"], values=torch.tensor([1]), lengths=ones)
    weighted = KeyedJaggedTensor(keys=["user_id"], values=torch.tensor([1]), lengths=ones, weights=torch.tensor([2.0]))
    assert torch.equal(tables(weighted).values(), tables(plain).values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_embeddings": 0}, "num_embeddings 0; it must be a whole number of at least 1"),
        ({"embedding_dim": 0}, "embedding_dim 0"),
        ({"feature_names": []}, "has no feature_names"),
        ({"feature_names": "ab"}, r"give a list, \['ab'\]"),
        ({"feature_names": ["a", "a"]}, "names a feature twice"),
        ({"num_embeddings": 2.5}, "num_embeddings 2.5; it must be a whole number"),
        ({"pooling": "max"}, "pooling 'max'; use 'sum' or 'mean'"),
        ({"budget": 0.0}, r"lies in \(0, 1\]"),
        ({"counts": torch.ones(3)}, "counts of shape"),
    ],
)
def test_bad_specs(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TableSpec(**{"name": "t", "num_embeddings": 5, "embedding_dim": 4, "feature_names": ["a"], **change})


@pytest.mark.parametrize("backend", BACKENDS)
def test_narrow_ids_are_the_same_ids(backend: str) -> None:
    tables = TableCollection(mixed_specs(), backend=backend)
    kjt = random_kjt(SIZES, batch_size=5, seed=2)
    narrow = KeyedJaggedTensor(keys=kjt.keys(), values=kjt.values().int(), lengths=kjt.lengths())
    assert torch.equal(tables(kjt).values(), tables(narrow).values())
    floats = KeyedJaggedTensor(keys=kjt.keys(), values=kjt.values().float(), lengths=kjt.lengths())
    with pytest.raises(DataError, match=r"ids of features '.*', '.* are torch.float32; they must be integers"):
        tables(floats)


def test_bad_collections() -> None:
    spec = TableSpec(name="t", num_embeddings=5, embedding_dim=4, feature_names=["a"])
    with pytest.raises(ConfigError, match="two tables are named 't'"):
        TableCollection([spec, spec])
    with pytest.raises(ConfigError, match="at least one"):
        TableCollection([])
    with pytest.raises(ConfigError, match="has no 'adam' for rows"):
        TableCollection([spec], optimizer=RowOptimizer(name="adam"))
    with pytest.raises(ConfigError, match="there is no backend 'cuda'"):
        TableCollection([spec], backend="cuda")


def test_drop_in_for_embedding_bag_collection() -> None:
    """Same keys, lengths and values as TorchRec's own module, and TorchRec's DLRM runs on it."""
    specs = [
        TableSpec(name="A", num_embeddings=50, embedding_dim=8, feature_names=["user"]),
        TableSpec(name="B", num_embeddings=30, embedding_dim=8, feature_names=["item", "genre"], pooling="mean"),
    ]
    ours = TableCollection(specs)
    theirs = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(name="A", num_embeddings=50, embedding_dim=8, feature_names=["user"]),
            EmbeddingBagConfig(
                name="B", num_embeddings=30, embedding_dim=8, feature_names=["item", "genre"], pooling=PoolingType.MEAN
            ),
        ]
    )
    theirs.load_state_dict({f"embedding_bags.{n}.weight": w for n, w in ours.weights().items()})
    kjt = random_kjt(SIZES, batch_size=11, seed=8)
    a, b = ours(kjt), theirs(kjt)
    assert (a.keys(), a.length_per_key()) == (b.keys(), b.length_per_key())
    torch.testing.assert_close(a.values(), b.values())
    assert ours.embedding_bag_configs()[1].feature_names == theirs.embedding_bag_configs()[1].feature_names
    model = DLRM(ours, dense_in_features=3, dense_arch_layer_sizes=[8], over_arch_layer_sizes=[4, 1])
    before = ours.weights()["A"].clone()
    model(torch.randn(11, 3), kjt).sum().backward()
    assert not torch.equal(before, ours.weights()["A"])


def test_rows_beside_several_gpus_need_fbgemm() -> None:
    with pytest.raises(
        ConfigError, match="tier 'host' on 'cuda' with backend 'torch' is for one process; over several"
    ):
        ShardedRows(
            StoreSpec(shards=(), lookups=(), backend="torch", tier=RowTier(name="host", device="cuda")),
            sharding=Sharding(plan=Plan(world_size=2, tables={})),
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    spec = TableSpec(name="t", num_embeddings=5, embedding_dim=4, feature_names=["a"])
    with pytest.raises(ConfigError, match="rows are to be on 'cuda', but this machine has no GPU that torch can use"):
        TableCollection([spec], tier=RowTier(device="cuda"))


class Narrow(Product):
    """Forgets half of its columns."""

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        return super().combine(rows, side)[:, :2]


def test_a_method_must_combine_rows_as_wide_as_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS.local, "test_narrow", Narrow)
    spec = TableSpec(name="t", num_embeddings=50, embedding_dim=4, feature_names=["a"], method="test_narrow")
    with pytest.raises(
        ConfigError,
        match=r"table 't': method 'test_narrow': combine gives a tensor of float32 \[\d+, 2\] for \d+ ids, but the "
        "table has embedding_dim 4",
    ):
        TableCollection([spec])(random_kjt({"a": 50}, batch_size=3, seed=0))


def test_only_methods_are_registered() -> None:
    with pytest.raises(ConfigError, match=r"'test_three' is to be 3, which is no subclass of embank\.tables\.Method"):
        register_method("test_three", 3)  # type: ignore[arg-type]
