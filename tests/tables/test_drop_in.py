"""TorchRec's collections by their own names and arguments, beside TorchRec's."""

import copy
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchrec
from torch import Tensor, nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_in_backward
from torch.distributed.optim import _get_in_backward_optimizers
from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor, PoolingType
from torchrec.modules.embedding_configs import DataType

from embank.tables import (
    CheckpointError,
    ConfigError,
    DataError,
    RowOptimizer,
    RowTier,
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
    FusedEmbeddingBagCollection,
    fuse_embedding_optimizer,
)

Batches = list[KeyedJaggedTensor]


def configs(cls: type = EmbeddingBagConfig, **change: Any) -> list[Any]:
    return [
        cls(name="t1", num_embeddings=30, embedding_dim=4, feature_names=["a", "b"], **change),
        cls(name="t2", num_embeddings=20, embedding_dim=4, feature_names=["c"], **change),
    ]


def batch(seed: int, *, weighted: bool = False, rows: int = 9) -> KeyedJaggedTensor:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 4, (3 * rows,), generator=draw)
    counts = lengths.view(3, rows).sum(1).tolist()
    values = torch.cat([torch.randint(0, n, (k,), generator=draw) for n, k in zip((30, 30, 20), counts, strict=True)])
    weights = torch.rand(values.numel(), generator=draw) if weighted else None
    return KeyedJaggedTensor(keys=["a", "b", "c"], values=values, lengths=lengths, weights=weights)


def pair(**how: Any) -> tuple[EmbeddingBagCollection, torchrec.EmbeddingBagCollection]:
    """Ours and TorchRec's from one seed."""
    made = []
    for cls in (EmbeddingBagCollection, torchrec.EmbeddingBagCollection):
        torch.manual_seed(3)
        made.append(cls(tables=configs(), **how))
    return made[0], made[1]


def loss_of(values: Tensor) -> Tensor:
    return (values * torch.linspace(-1, 1, values.numel()).view_as(values)).sum() + values.square().mean()


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


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "optimizer", [partial(torch.optim.SGD, lr=0.1), partial(torch.optim.Adam, lr=0.01, weight_decay=0.1)]
)
def test_rows_are_parameters_for_any_optimizer(weighted: bool, optimizer: Callable[..., Any]) -> None:
    ours, theirs = pair(is_weighted=weighted)
    own, other = optimizer(ours.parameters()), optimizer(theirs.parameters())
    for step in range(10):
        kjt = batch(step, weighted=weighted)
        for tables, update in ((ours, own), (theirs, other)):
            update.zero_grad()
            loss_of(tables(kjt).values()).backward()
            torch.nn.utils.clip_grad_norm_(tables.parameters(), 2.0)
            update.step()
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("how", ["in backward", "fuse", "fused"])
@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (torch.optim.SGD, {"lr": 0.1}),
        (torch.optim.Adagrad, {"lr": 0.1}),
        (torchrec.optim.RowWiseAdagrad, {"lr": 0.1, "eps": 1e-6}),
    ],
)
def test_optimizers_in_the_backward_pass(cls: Any, arguments: Mapping[str, Any], how: str, weighted: bool) -> None:
    ours, theirs = pair(is_weighted=weighted)
    apply_in_backward(cls, theirs.parameters(), dict(arguments))
    if how == "in backward":
        apply_in_backward(cls, ours.parameters(), dict(arguments))
    elif how == "fuse":
        fuse_embedding_optimizer(ours, cls, arguments)
        assert isinstance(ours, FusedEmbeddingBagCollection)
    else:
        torch.manual_seed(3)
        ours = FusedEmbeddingBagCollection(configs(), cls, arguments, is_weighted=weighted)
    for step in range(10):
        kjt = batch(step, weighted=weighted)
        for tables in (ours, theirs):
            loss_of(tables(kjt).values()).backward()
        ours.fused_optimizer.step()
    assert ours.optimizer.name in ("sgd", "adagrad", "rowwise_adagrad")
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], weight, rtol=0, atol=2e-6)
        parameter = dict(ours.named_parameters())[name]
        assert torch.equal(parameter, ours.state_dict()[name])
        assert parameter.grad is None


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


def test_schedulers_and_checkpoints_of_the_fused_optimizer() -> None:
    tables = FusedEmbeddingBagCollection(configs(), torch.optim.Adagrad, {"lr": 0.4}, seed=1)
    optimizer = tables.fused_optimizer
    assert tables.fused_optimizer is optimizer
    combined = torchrec.optim.CombinedOptimizer([optimizer])
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    rates = []
    for step in range(5):
        combined.zero_grad()
        loss_of(tables(batch(step)).values()).backward()
        combined.step()
        scheduler.step()
        rates.append(tables.lr)
    assert rates == [0.4, 0.4, 0.2, 0.2, 0.1] or rates == [0.4, 0.4, 0.4, 0.2, 0.2]
    state = copy.deepcopy(optimizer.state_dict())
    assert state["state"]["embedding_bags.t1.weight"]["t1.momentum1"].any()
    other = FusedEmbeddingBagCollection(configs(), torch.optim.Adagrad, {"lr": 0.4}, seed=2)
    other.load_state_dict(tables.state_dict())
    other.fused_optimizer.load_state_dict(state)
    for name, kinds in tables.optimizer_state().items():
        assert torch.equal(other.optimizer_state()[name]["sum"], kinds["sum"])
    tables.set_lr(0.01)
    assert optimizer.param_groups[0]["lr"] == 0.01
    twin = FusedEmbeddingBagCollection(configs(), torch.optim.SGD, {"lr": 0.5}, seed=1)
    still = {name: rows.clone() for name, rows in twin.weights().items()}
    twin.fused_optimizer.param_groups[0]["lr"] = 0.0
    loss_of(twin(batch(0)).values()).backward()
    assert all(torch.equal(rows, still[name]) for name, rows in twin.weights().items())


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


@dataclass
class Refused:
    make: Callable[[], Any]
    message: str


REFUSED = [
    Refused(lambda: EmbeddingBagCollection(tables=[]), "there are none"),
    Refused(lambda: EmbeddingBagCollection(tables={"a": 1}), "made of a list of EmbeddingBagConfigs"),
    Refused(lambda: EmbeddingBagCollection(tables=configs(), budget=0.1), "budget is 0.1, but table 't1' has method"),
    Refused(lambda: TableCollection.from_configs(configs(), budget={"t2": 0.1}), "but table 't2' has method 'full'"),
    Refused(lambda: EmbeddingBagCollection(tables=configs() * 2), "two tables are named 't1'"),
    Refused(lambda: EmbeddingBagCollection(tables=configs(), method={"t3": "hash"}), "method names table 't3'"),
    Refused(lambda: EmbeddingBagCollection(tables=configs(pooling=PoolingType.NONE)), "has pooling NONE"),
    Refused(
        lambda: EmbeddingBagCollection(tables=configs(pooling=PoolingType.MEAN), is_weighted=True),
        "pools weighted ids to their mean",
    ),
    Refused(lambda: EmbeddingBagCollection(tables=configs(data_type=DataType.INT8)), "has data_type INT8"),
    Refused(
        lambda: EmbeddingBagCollection(tables=[configs()[0], configs(data_type=DataType.FP16)[1]]),
        "have data_types FP16, FP32",
    ),
    Refused(
        lambda: TableCollection.from_configs(configs(init_fn=torch.nn.init.ones_), method="hash", budget=0.5),
        "has an init_fn, .* method 'hash' has no such rows",
    ),
    Refused(
        lambda: EmbeddingBagCollection(tables=configs(), method="low_precision", budget=0.5),
        "puts rows on a grid after each update",
    ),
    Refused(
        lambda: EmbeddingBagCollection(tables=configs(), tier=RowTier(name="host")),
        "rows on the tier 'host' can't be parameters",
    ),
    Refused(
        lambda: fuse_embedding_optimizer(EmbeddingBagCollection(tables=configs()), torch.optim.SGD, {"momentum": 0.9}),
        "SGD with momentum 0.9",
    ),
    Refused(
        lambda: fuse_embedding_optimizer(EmbeddingBagCollection(tables=configs()), torch.optim.RMSprop, {"lr": 1}),
        "rows have no optimizer RMSprop",
    ),
    Refused(lambda: fuse_embedding_optimizer(nn.Linear(1, 1), torch.optim.SGD, {"lr": 1}), "has no EmbeddingBag"),
    Refused(
        lambda: apply_in_backward(
            torch.optim.SGD,
            FusedEmbeddingBagCollection(configs(), torch.optim.SGD, {"lr": 1.0}).parameters(),
            {"lr": 1.0},
        ),
        "have an optimizer for the backward pass already",
    ),
]


@pytest.mark.parametrize("case", REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused(case: Refused) -> None:
    with pytest.raises(ConfigError, match=case.message) as caught:
        case.make()
    assert isinstance(caught.value, ValueError)


def test_optimizers_of_a_part_of_the_tables_are_refused() -> None:
    tables = EmbeddingBagCollection(tables=configs())
    apply_in_backward(torch.optim.SGD, [tables.embedding_bags["t1"].weight], {"lr": 0.1})
    with pytest.raises(ConfigError, match=r"gave table 't2' none and table 't1' sgd with rate 0.1; all rows"):
        tables(batch(0))


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


def moved(tables: Any, kjt: KeyedJaggedTensor) -> float:
    """How far one backward pass moves rows."""
    before = {name: rows.clone() for name, rows in tables.weights().items()}
    found = tables(kjt)
    values = found.values() if isinstance(tables, TableCollection) else torch.cat([j.values() for j in found.values()])
    (values * torch.ones(values.shape[-1], requires_grad=True)).sum().backward()
    return max(float((rows - before[name]).abs().max()) for name, rows in tables.weights().items())


@pytest.mark.parametrize("cls", [EmbeddingBagCollection, EmbeddingCollection])
@pytest.mark.parametrize("when", ["before", "after", "made", "by one"])
def test_rows_that_are_held_do_not_move(cls: Any, when: str) -> None:
    kind = EmbeddingBagConfig if cls is EmbeddingBagCollection else EmbeddingConfig
    optimizer = RowOptimizer(name="sgd", lr=1.0) if when == "made" else None
    tables = cls(tables=configs(kind), seed=1, optimizer=optimizer)
    if when == "before":
        tables.requires_grad_(False)
        assert moved(tables, batch(0)) == 0
    if when != "made":
        apply_in_backward(torch.optim.SGD, [p.requires_grad_(True) for p in tables.parameters()], {"lr": 1.0})
    if when == "after":
        assert moved(tables, batch(0)) > 0
    for parameter in tables.parameters():
        parameter.requires_grad = False
    assert moved(tables, batch(0)) == 0
    assert moved(copy.deepcopy(tables), batch(0)) == 0
    tables.requires_grad_(True)
    assert moved(tables, batch(0)) > 0
    getattr(tables, tables.plain_prefix)["t1"].weight.requires_grad_(False)
    with pytest.raises(ConfigError, match="rows of table 't1' are not to be trained and those of 't2' are"):
        tables(batch(0))


def test_rates_by_torchs_own_optimizers_in_the_backward_pass() -> None:
    ours, theirs = pair()
    schedulers = []
    for tables in (ours, theirs):
        apply_in_backward(torch.optim.SGD, tables.parameters(), {"lr": 0.4})
        optimizers = _get_in_backward_optimizers(tables)
        assert len(optimizers) == 2
        schedulers.append([torch.optim.lr_scheduler.StepLR(o, step_size=1, gamma=0.5) for o in optimizers])
    for step in range(5):
        for tables, own in zip((ours, theirs), schedulers, strict=True):
            loss_of(tables(batch(step)).values()).backward()
            for scheduler in own:
                scheduler.optimizer.step()
                scheduler.step()
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], weight, rtol=0, atol=1e-6)
    fresh, _ = pair()
    apply_in_backward(torch.optim.SGD, fresh.parameters(), {"lr": 1.0})
    fresh.set_lr(0.0)
    assert moved(fresh, batch(0)) == 0
    with pytest.raises(ConfigError, match="are parameters for an optimizer of the program, and their rate is its"):
        pair()[0].set_lr(0.1)


def test_weights_that_a_program_replaces() -> None:
    ours, theirs = pair()
    for tables in (ours, theirs):
        tables.embedding_bags["t1"].weight = nn.Parameter(torch.ones(30, 4))
        assert tables.embedding_bags["t1"].weight.sum() == 120
    assert torch.equal(ours(batch(0)).values(), theirs(batch(0)).values())
    assert torch.equal(ours.state_dict()["embedding_bags.t1.weight"], torch.ones(30, 4))
    given = {"embedding_bags.t2.weight": torch.full((20, 4), 2.0)}
    for tables in (ours, theirs):
        called = torch.func.functional_call(tables, given, (batch(0),))
        assert set(called["c"].unique().tolist()) <= {0.0, 2.0, 4.0, 6.0}
    assert torch.equal(ours(batch(0)).values(), theirs(batch(0)).values())  # and back again
    wrong, _ = pair()
    wrong.embedding_bags["t1"].weight = nn.Parameter(torch.ones(3, 4))
    with pytest.raises(ConfigError, match=r"was replaced by one of shape \(3, 4\); it must have \(30, 4\)"):
        wrong(batch(0))
    fuse_embedding_optimizer(ours, torch.optim.SGD, {"lr": 0.1})
    assert set(ours(batch(0))["a"].unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}
    ours.embedding_bags["t1"].weight = nn.Parameter(torch.zeros(30, 4))
    with pytest.raises(ConfigError, match="weight of table 't1' was replaced, but its rows have an optimizer"):
        ours(batch(0))


def test_values_are_loaded_off_the_meta_device() -> None:
    here, _ = pair()
    tables = EmbeddingBagCollection(tables=configs(), device="meta")
    with pytest.raises(CheckpointError, match="are on the meta device and hold nothing"):
        tables.load_state_dict(here.state_dict())
    tables.load_state_dict(here.state_dict(), assign=True)
    assert torch.equal(tables(batch(0)).values(), here(batch(0)).values())
    model = nn.ModuleDict({"t": EmbeddingBagCollection(tables=configs(), device="meta")})
    model.load_state_dict({f"t.{name}": value for name, value in here.state_dict().items()}, assign=True)
    assert torch.equal(model["t"](batch(0)).values(), here(batch(0)).values())


def test_an_optimizer_is_chosen_once() -> None:
    tables, _ = pair()
    apply_in_backward(torch.optim.SGD, tables.parameters(), {"lr": 0.1})
    with pytest.raises(ConfigError, match="has chosen an optimizer for these rows already"):
        fuse_embedding_optimizer(tables, torch.optim.Adagrad, {"lr": 0.1})
    apply_in_backward(torch.optim.SGD, tables.parameters(), {"lr": 0.2})
    with pytest.raises(ConfigError, match="was called 2 times for table 't1', with sgd with rate 0.1 and sgd with"):
        tables(batch(0))


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
