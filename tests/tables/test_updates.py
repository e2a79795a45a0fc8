"""When rows are updated: once for each lookup that a backward pass reaches, alike in both backends, and nothing that is
left is lost."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec import KeyedJaggedTensor

from embank.tables import ConfigError, RowOptimizer, SequenceCollection, TableCollection, TableSpec
from tests.tables.batches import random_kjt

BACKENDS = ["fbgemm", "torch"]
SIZES = {"a": 40, "b": 30}


def collection(backend: str, *, method: str = "full", optimizer: str = "rowwise_adagrad") -> TableCollection:
    specs = [
        TableSpec(name=name, num_embeddings=size, embedding_dim=6, feature_names=[name], method=method)
        for name, size in SIZES.items()
    ]
    return TableCollection(specs, backend=backend, optimizer=RowOptimizer(name=optimizer, lr=0.1))


def batch(seed: int) -> KeyedJaggedTensor:
    return random_kjt(SIZES, batch_size=8, seed=seed)


def loss(tables: TableCollection, seed: int) -> torch.Tensor:
    return (tables(batch(seed)).values() - 1).square().sum()


def two_backward_passes(tables: TableCollection) -> None:
    """Micro-batches of one step: each is an update."""
    loss(tables, 0).backward()
    loss(tables, 1).backward()
    tables.update_rows()


def one_backward_pass_over_two_lookups(tables: TableCollection) -> None:
    (loss(tables, 0) + loss(tables, 1)).backward()
    tables.update_rows()


def a_lookup_without_a_backward_pass(tables: TableCollection) -> None:
    loss(tables, 0)
    loss(tables, 1).backward()
    tables.update_rows()


def no_update(tables: TableCollection) -> None:
    """`update_rows` is forgotten: what is left is done before the rows are used again."""
    loss(tables, 0).backward()
    loss(tables, 1).backward()


LOOPS = [two_backward_passes, one_backward_pass_over_two_lookups, a_lookup_without_a_backward_pass, no_update]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("method", ["full", "low_precision", "alpt"])
def test_backends_agree(loop: Callable[[TableCollection], None], method: str) -> None:
    pair = [collection(backend, method=method) for backend in BACKENDS]
    for tables in pair:
        before = {name: rows.clone() for name, rows in tables.weights().items()}
        for _ in range(3):
            loop(tables)
        assert all(not torch.equal(before[name], rows) for name, rows in tables.weights().items())
    fast, slow = (tables.weights() for tables in pair)
    for name, rows in fast.items():
        steps = rows.abs().amax(dim=1, keepdim=True) / 60  # a rounding may fall on the next point of an 8-bit grid
        is_same = torch.isclose(rows, slow[name], rtol=1e-4, atol=1e-5)
        assert is_same.double().mean() > (1 - 1e-9 if method == "full" else 0.98)
        assert ((rows - slow[name]).abs() <= 2 * steps).all()


def test_each_micro_batch_is_an_update() -> None:
    """SGD on two micro-batches is two steps, the second from where the first has led."""
    for backend in BACKENDS:
        tables = collection(backend, optimizer="sgd")
        rows = {name: rows.clone() for name, rows in tables.weights().items()}
        two_backward_passes(tables)
        for seed in (0, 1):
            kjt = batch(seed)
            leaves = {name: table.clone().requires_grad_() for name, table in rows.items()}
            parts = [
                nn.functional.embedding_bag(kjt[n].values(), leaf, kjt[n].offsets()[:-1], mode="sum")
                for n, leaf in leaves.items()
            ]
            (torch.cat(parts, dim=1) - 1).square().sum().backward()
            rows = {name: leaf.detach() - 0.1 * leaf.grad for name, leaf in leaves.items()}
        for name, table in rows.items():
            torch.testing.assert_close(tables.weights()[name], table, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["low_precision", "alpt"])
def test_rows_that_are_read_are_projected(backend: str, method: str) -> None:
    """Without `update_rows`, rows that are read or looked up are on their grid all the same."""
    tables, other = collection(backend, method=method), collection(backend, method=method)
    for collected in (tables, other):
        loss(collected, 0).backward()
    other.update_rows()
    assert torch.equal(tables.weights()["a"], other.weights()["a"])
    assert torch.equal(tables(batch(1)).values(), other(batch(1)).values())
    tables.update_rows()
    for collected in (tables, other):
        loss(collected, 1).backward()
        collected.update_rows()
    assert torch.equal(tables.weights()["a"], other.weights()["a"]), "an update that was finished early counts once"


@pytest.mark.parametrize("method", ["low_precision", "alpt"])
def test_lookups_without_a_backward_pass_are_not_kept(method: str) -> None:
    tables = collection("fbgemm", method=method)
    for seed in range(5):
        loss(tables, seed)
    (rows,) = tables.row_stores()
    assert not rows.is_pending


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cls", [TableCollection, SequenceCollection])
def test_rows_are_no_parameters(backend: str, cls: type[TableCollection]) -> None:
    """An outer optimizer, clipping and weight decay neither find rows nor stumble over their gradients."""
    specs = [TableSpec(name="a", num_embeddings=40, embedding_dim=6, feature_names=["a"])]
    tables = cls(specs, backend=backend)
    model = nn.ModuleList([nn.Linear(6, 1), tables])
    assert {name: p.numel() for name, p in model.named_parameters()} == {"0.weight": 6, "0.bias": 1, "1.mark.rows": 0}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    twin = cls(specs, backend=backend)
    for collected in (tables, twin):
        out = collected(random_kjt({"a": 40}, batch_size=8, seed=0))
        values = out.values() if cls is TableCollection else out["a"].values()
        model[0](values).sum().backward()
        collected.update_rows()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-9)
    optimizer.step()
    assert torch.equal(tables.weights()["a"], twin.weights()["a"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["full", "alpt", "mgqe", "dhe"])
def test_inference_mode(backend: str, method: str) -> None:
    tables = collection(backend, method=method).eval()
    with torch.no_grad():
        expected = tables(batch(0)).values()
    with torch.inference_mode():
        assert torch.equal(tables(batch(0)).values(), expected)
        made_there = batch(1)
        values = tables(made_there).values()
    assert torch.equal(tables(made_there).values().detach(), values.clone())
    tables.train()
    loss(tables, 0).backward()
    tables.update_rows()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", ["requires_grad_", "each parameter", "the attribute"])
def test_rows_are_frozen_as_parameters_are(backend: str, how: str) -> None:
    tables = collection(backend)
    model = nn.ModuleDict({"tables": tables, "score": nn.Linear(12, 1)})

    def switch(on: bool) -> None:
        if how == "requires_grad_":
            model.requires_grad_(on)
        for parameter in model.parameters():
            if how == "each parameter":
                parameter.requires_grad_(on)
            if how == "the attribute":
                parameter.requires_grad = on

    before = {name: rows.clone() for name, rows in tables.weights().items()}
    switch(False)
    model["score"].requires_grad_(True)
    model["score"](tables(batch(0)).values()).sum().backward()
    tables.update_rows()
    assert all(torch.equal(before[name], rows) for name, rows in tables.weights().items())
    switch(True)
    model["score"](tables(batch(0)).values()).sum().backward()
    tables.update_rows()
    assert not any(torch.equal(before[name], rows) for name, rows in tables.weights().items())


@pytest.mark.parametrize("cls", [TableCollection, SequenceCollection])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_optimizer_for_the_backward_pass_is_refused(backend: str, cls: type[TableCollection]) -> None:
    tables = cls([TableSpec(name="a", num_embeddings=40, embedding_dim=6, feature_names=["a"])], backend=backend)
    with pytest.raises(
        ConfigError, match="rows have an optimizer of their own, which runs in the backward pass already"
    ):
        _apply_optimizer_in_backward(torch.optim.SGD, nn.ModuleList([tables]).parameters(), {"lr": 0.1})


@pytest.mark.parametrize("betas", [(0.9, 1.0), (-0.1, 0.9), (float("nan"), 0.9), (0.9,)])
def test_decay_rates_out_of_range(betas: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="give two numbers from 0 to below 1"):
        RowOptimizer(name="adam", betas=betas)


def test_a_learning_rate_that_is_no_number() -> None:
    for backend in BACKENDS:
        tables = collection(backend)
        for lr in (float("nan"), float("inf"), -0.1):
            with pytest.raises(ConfigError, match=f"the rows' learning rate is {lr}; it must be finite and 0 or more"):
                tables.set_lr(lr)
        for no_number in ("0.1", None, True):
            with pytest.raises(ConfigError, match=f"the rows' learning rate is {no_number!r}; it must be a number"):
                tables.set_lr(no_number)
