"""Optimizers of TorchRec's collections, beside TorchRec's: any of torch's, and those in the backward pass."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
import torchrec
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_in_backward
from torch.distributed.optim import _get_in_backward_optimizers
from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor

from embank.tables import (
    CheckpointError,
    ConfigError,
    RowOptimizer,
    TableCollection,
)
from embank.tables.torchrec import (
    EmbeddingBagCollection,
    EmbeddingCollection,
    FusedEmbeddingBagCollection,
    fuse_embedding_optimizer,
)
from tests.tables.drop_in import batch, configs, loss_of, pair


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


def test_optimizers_of_a_part_of_the_tables_are_refused() -> None:
    tables = EmbeddingBagCollection(tables=configs())
    apply_in_backward(torch.optim.SGD, [tables.embedding_bags["t1"].weight], {"lr": 0.1})
    with pytest.raises(ConfigError, match=r"gave table 't2' none and table 't1' sgd with rate 0.1; all rows"):
        tables(batch(0))
