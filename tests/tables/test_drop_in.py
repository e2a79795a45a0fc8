"""TorchRec's collections by their own names and arguments, beside TorchRec's."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torchrec
from torch import Tensor, nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_in_backward
from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor
from torchrec.modules.embedding_configs import DataType

from embank.tables import (
    ConfigError,
    DataError,
    RowOptimizer,
    SequenceCollection,
    TableCollection,
    TableSpec,
    load_bundle,
    load_checkpoint,
    save_bundle,
    save_checkpoint,
)
from embank.tables.torchrec import (
    EmbeddingBagCollection,
    EmbeddingCollection,
)
from tests.tables.drop_in import batch, configs, loss_of, pair


def test_after_one_seed_values_and_names_are_torchrecs() -> None:
    ours, theirs = pair()
    assert list(dict(ours.named_parameters())) == list(dict(theirs.named_parameters()))
    assert set(ours.state_dict()) - {"_extra_state"} == set(theirs.state_dict())
    for name, weight in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], weight)
    assert torch.equal(ours(batch(0)).values(), theirs(batch(0)).values())
    assert ours.embedding_bag_configs()[0].feature_names == ["a", "b"]
    assert (ours.is_weighted(), ours.device) == (False, torch.device("cpu"))
    sequences = []
    for cls in (EmbeddingCollection, torchrec.EmbeddingCollection):
        torch.manual_seed(3)
        sequences.append(cls(tables=configs(EmbeddingConfig)))
    for name, weight in sequences[1].state_dict().items():
        assert torch.equal(sequences[0].state_dict()[name], weight)


def test_gradients_of_weights() -> None:
    ours, theirs = pair(is_weighted=True)
    found = []
    for tables in (ours, theirs):
        kjt = batch(1, weighted=True)
        weights = kjt.weights().clone().requires_grad_()
        given = KeyedJaggedTensor(keys=kjt.keys(), values=kjt.values(), lengths=kjt.lengths(), weights=weights)
        loss_of(tables(given).values()).backward()
        assert weights.grad is not None
        found.append(weights.grad)
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["full", "hash", "tt_rec", "mgqe", "optembed"])
@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
def test_weighted_bags_of_every_path(method: str, backend: Any) -> None:
    """Beside a sum over the bag's rows, each looked up alone."""
    how = {
        "method": method,
        "budget": None if method == "full" else 0.5,
        "backend": backend,
        "optimizer": RowOptimizer(name="sgd", lr=0.1),
    }
    ours = TableCollection.from_configs(configs(), is_weighted=True, **how).eval()
    kjt = batch(5, weighted=True)
    values = ours(kjt)
    for key, jagged in kjt.to_dict().items():
        singles = KeyedJaggedTensor(
            keys=["a", "b", "c"],
            values=torch.cat([jagged.values() if k == key else jagged.values() * 0 for k in "abc"]),
            lengths=torch.ones(3 * jagged.values().numel(), dtype=torch.int64),
            weights=torch.ones(3 * jagged.values().numel()),
        )
        rows_ND = ours(singles)[key] * jagged.weights()[:, None]
        expected = torch.stack([part.sum(0) for part in rows_ND.split(jagged.lengths().tolist())])
        torch.testing.assert_close(values[key], expected, rtol=0, atol=1e-6)


def test_weights_in_bundles_and_checkpoints(tmp_path: Path) -> None:
    tables = TableCollection.from_configs(configs(), is_weighted=True, method={"t2": "hash"}, budget={"t2": 0.5})
    kjt = batch(2, weighted=True)
    save_bundle(tmp_path / "bundle", tables)
    served = load_bundle(tmp_path / "bundle")
    assert served.is_weighted()
    torch.testing.assert_close(served(kjt).values(), tables(kjt).values(), rtol=0, atol=1e-6)
    with pytest.raises(DataError, match="pools feature 'a' by weight, but the batch has no weights"):
        served(batch(2))
    with pytest.raises(DataError, match="pools feature 'a' by weight, but the batch has no weights"):
        tables(batch(2))
    save_checkpoint(tmp_path / "checkpoint", tables=tables, dense={}, meta={})
    other = TableCollection.from_configs(configs(), is_weighted=True, method={"t2": "hash"}, budget={"t2": 0.5}, seed=9)
    load_checkpoint(tmp_path / "checkpoint", tables=other)
    assert torch.equal(other(kjt).values(), tables(kjt).values())


def variable(*, inverse: bool = True, weighted: bool = False) -> KeyedJaggedTensor:
    """Features of 3, 2 and 4 rows; the output has 5."""
    values = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    return KeyedJaggedTensor(
        keys=["a", "b", "c"],
        values=values,
        lengths=torch.tensor([1, 0, 2, 3, 1, 1, 1, 0, 1]),
        stride_per_key_per_rank=[[3], [2], [4]],
        weights=values * 0.5 if weighted else None,
        inverse_indices=(
            ["c", "a", "b"],
            torch.tensor([[0, 1, 2, 3, 0], [2, 2, 1, 0, 0], [1, 0, 1, 0, 1]]),
        )
        if inverse
        else None,
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_features_with_other_numbers_of_rows(weighted: bool, tmp_path: Path) -> None:
    ours, theirs = pair(is_weighted=weighted)
    kjt = variable(weighted=weighted)
    expected = theirs(kjt).values()
    torch.testing.assert_close(ours(kjt).values(), expected, rtol=0, atol=1e-6)
    served = TableCollection(ours.specs)
    served.load_state_dict(ours.state_dict(), strict=False)
    save_bundle(tmp_path / "bundle", served)
    torch.testing.assert_close(load_bundle(tmp_path / "bundle")(kjt).values(), expected, rtol=0, atol=1e-6)
    for tables in (ours, theirs):
        loss_of(tables(kjt).values()).backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(dict(ours.named_parameters())[name].grad, parameter.grad, rtol=0, atol=1e-6)
    with pytest.raises(DataError, match=r"other numbers of rows, 'a' 3, 'b' 2, 'c' 4.*inverse_indices="):
        ours(variable(inverse=False, weighted=weighted))
    far = KeyedJaggedTensor(
        keys=["a", "b", "c"],
        values=torch.tensor([1, 2, 3]),
        lengths=torch.ones(3, dtype=torch.int64),
        weights=torch.ones(3),
        inverse_indices=(["a", "b", "c"], torch.tensor([[0], [1], [0]])),
    )
    with pytest.raises(DataError, match=r"inverse_indices of feature 'b' name rows 1 to 1, but the feature has 1"):
        ours(far)


def test_sequences_have_ids_and_their_own_lengths() -> None:
    torch.manual_seed(3)
    ours = EmbeddingCollection(tables=configs(EmbeddingConfig), need_indices=True)
    torch.manual_seed(3)
    theirs = torchrec.EmbeddingCollection(tables=configs(EmbeddingConfig), need_indices=True)
    for kjt in (batch(1), batch(1, weighted=True), variable()):
        own, other = ours(kjt), theirs(kjt)
        assert list(own) == list(other)
        for key, jagged in other.items():
            assert torch.equal(own[key].values(), jagged.values())
            assert torch.equal(own[key].lengths(), jagged.lengths())
            assert torch.equal(own[key].weights(), jagged.weights())
    assert ours.embedding_dim() == 4
    assert ours.need_indices()
    assert ours.embedding_names_by_table() == theirs.embedding_names_by_table()
    assert [config.name for config in ours.embedding_configs()] == ["t1", "t2"]
    wide = [*configs(EmbeddingConfig)[:1], EmbeddingConfig(name="w", num_embeddings=3, embedding_dim=8)]
    mixed = EmbeddingCollection(tables=wide)
    assert mixed.embedding_names_by_table() == [["a", "b"], ["w"]]
    with pytest.raises(ConfigError, match=r"the tables have the dims \[4, 8\]"):
        mixed.embedding_dim()


@pytest.mark.parametrize("cls", [EmbeddingBagCollection, EmbeddingCollection])
def test_meta_device_then_values(cls: Any) -> None:
    kind = EmbeddingBagConfig if cls is EmbeddingBagCollection else EmbeddingConfig
    torch.manual_seed(5)
    here = cls(tables=configs(kind), seed=4)
    with torch.device("meta"):
        model = nn.ModuleDict({"tables": cls(tables=configs(kind), seed=4), "top": nn.Linear(4, 1)})
    tables = model["tables"]
    assert tables.device == torch.device("meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    apply_in_backward(torch.optim.SGD, tables.parameters(), {"lr": 0.5})
    model.to_empty(device="cpu")
    assert tables.device == torch.device("cpu")
    for name, rows in here.weights().items():
        assert torch.equal(tables.weights()[name], rows)
    kjt = batch(0)
    found = tables(kjt)
    assert tables.optimizer == RowOptimizer(name="sgd", lr=0.5)  # chosen before there were rows
    (found.values() if cls is EmbeddingBagCollection else found["a"].values()).sum().backward()
    assert not torch.equal(tables.weights()["t1"], here.weights()["t1"])
    meta = cls(tables=configs(kind), device="meta", optimizer=RowOptimizer(lr=0.3), method="hash", budget=0.5)
    meta.materialise()
    assert meta.fused_optimizer.param_groups[0]["lr"] == 0.3


def test_reset_parameters_begins_again() -> None:
    tables = TableCollection.from_configs(configs(), method="tt_rec", budget=0.9, optimizer=RowOptimizer(lr=0.5))
    before = {name: rows.clone() for name, rows in tables.weights().items()}
    first = list(tables.parameters())
    loss_of(tables(batch(0)).values()).backward()
    tables.step()
    assert not all(torch.equal(tables.weights()[name], rows) for name, rows in before.items())
    tables.reset_parameters()
    assert all(torch.equal(tables.weights()[name], rows) for name, rows in before.items())
    assert all(not state.any() for kinds in tables.optimizer_state().values() for state in kinds.values())
    assert all(a is b for a, b in zip(first, tables.parameters(), strict=True))


@pytest.mark.parametrize("optimizer", [None, RowOptimizer(name="adagrad", lr=0.1)])
def test_copies(optimizer: RowOptimizer | None) -> None:
    tables = EmbeddingBagCollection(
        tables=configs(init_fn=lambda rows: rows.fill_(0.5)), optimizer=optimizer, is_weighted=True
    )
    assert set(tables.weights()["t1"].unique().tolist()) == {0.5}
    loss_of(tables(batch(0, weighted=True)).values()).backward()
    tables.step()
    for other in (copy.deepcopy(tables), pickle.loads(pickle.dumps(tables))):
        assert type(other) is EmbeddingBagCollection
        assert torch.equal(other(batch(1, weighted=True)).values(), tables(batch(1, weighted=True)).values())
        assert other.optimizer == tables.optimizer
        for name, kinds in tables.optimizer_state().items():
            for kind, state in kinds.items():
                assert torch.equal(other.optimizer_state()[name][kind], state)


def test_half_rows() -> None:
    for kind, dtype in ((DataType.FP16, torch.float16), (DataType.BF16, torch.bfloat16)):
        tables = EmbeddingBagCollection(tables=configs(data_type=kind))
        assert tables.embedding_bags["t1"].weight.dtype == dtype
        values = tables(batch(0)).values()
        assert values.dtype == torch.float32
        values.sum().backward()
        assert tables.embedding_bags["t1"].weight.grad.dtype == dtype
    trained = TableCollection.from_configs(configs(data_type=DataType.BF16), backend="torch")
    assert trained.weights()["t1"].dtype == torch.bfloat16
    with pytest.raises(ConfigError, match=r"use backend='torch', or dtype 'fp32'|Use backend='torch'"):
        TableCollection.from_configs(configs(data_type=DataType.FP16))


@pytest.mark.filterwarnings("ignore:The TorchScript type system")  # of torch.fx's own modules
def test_a_scripted_model_calls_the_tables() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = EmbeddingBagCollection(tables=configs(), seed=1)

        def forward(self, features: KeyedJaggedTensor) -> Tensor:
            return self.tables(features).values()

    model = Model()
    scripted = torch.jit.script(torchrec.fx.tracer.symbolic_trace(model))
    assert torch.equal(scripted(batch(0)), model(batch(0)))


def test_ids_of_other_types_and_no_rows() -> None:
    ours, theirs = pair()
    for dtype in (torch.int32, torch.int64):
        kjt = batch(3)
        given = KeyedJaggedTensor(keys=kjt.keys(), values=kjt.values().to(dtype), lengths=kjt.lengths().to(dtype))
        assert torch.equal(ours(given).values(), theirs(given).values())
    none = KeyedJaggedTensor(
        keys=["a", "b", "c"], values=torch.zeros(0, dtype=torch.int64), lengths=torch.zeros(0, dtype=torch.int64)
    )
    assert ours(none).values().shape == (0, 12)  # TorchRec's fails
    hollow = KeyedJaggedTensor(
        keys=["a", "b", "c"], values=torch.zeros(0, dtype=torch.int64), lengths=torch.zeros(6, dtype=torch.int64)
    )
    assert torch.equal(ours(hollow).values(), theirs(hollow).values())


def test_a_spec_without_feature_names_of_its_own() -> None:
    config = EmbeddingBagConfig(name="item", num_embeddings=5, embedding_dim=4)
    tables = EmbeddingBagCollection(tables=[config])
    kjt = KeyedJaggedTensor(keys=["item"], values=torch.tensor([1]), lengths=torch.tensor([1]))
    assert tables(features=kjt).keys() == ["item"]
    spec = TableSpec(name="t", num_embeddings=4, embedding_dim=2, feature_names=["t"])
    rows = SequenceCollection([spec])(
        features=KeyedJaggedTensor(keys=["t"], values=torch.tensor([1]), lengths=torch.tensor([1]))
    )
    assert rows["t"].values().shape == (1, 2)


@pytest.mark.slow
def test_a_compiled_model_settles_its_tables_first() -> None:
    wide = EmbeddingBagConfig(name="t2", num_embeddings=20, embedding_dim=8, feature_names=["c"])
    tables = EmbeddingBagCollection(tables=[*configs()[:1], wide], seed=1)
    plain = copy.deepcopy(tables)
    compiled = torch.compile(tables, backend="eager")
    for each in (tables, plain):
        apply_in_backward(torch.optim.SGD, each.parameters(), {"lr": 0.1})
    for step in range(3):
        for call in (compiled, plain):
            loss_of(call(batch(step)).values()).backward()
    for name, rows in plain.weights().items():
        torch.testing.assert_close(tables.weights()[name], rows, rtol=0, atol=1e-6)


def test_names_of_tables_are_those_of_a_module_dict() -> None:
    ours, theirs = pair()
    assert list(ours.embedding_bags.keys()) == list(theirs.embedding_bags.keys())
    assert [name for name, _ in ours.embedding_bags.items()] == ["t1", "t2"]
    assert [rows.weight.shape for rows in ours.embedding_bags.values()] == [(30, 4), (20, 4)]
