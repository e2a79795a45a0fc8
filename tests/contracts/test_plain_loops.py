"""Every method in a user's own training loop: forward, backward, `tables.step()`, the network's optimizer, and nothing
else."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from embank.tables import (
    ConfigError,
    RowOptimizer,
    SequenceCollection,
    TableCollection,
    method_class,
    pack_collection,
)
from embank.tables.collections.base import Tables
from embank.tables.collections.stages import advance
from tests.contracts.specs import DIM, NAMES, NUM, spec
from tests.tables.batches import random_kjt

STEPS = 6
WITH_LOSS = ["dpq", "mgqe", "optembed", "pep"]


def everything() -> KeyedJaggedTensor:
    return KeyedJaggedTensor(keys=["a"], values=torch.arange(NUM), lengths=torch.ones(NUM, dtype=torch.int32))


def live(tables: TableCollection) -> Tensor:
    """Every logical row as an evaluation sees it."""
    tables.eval()
    with torch.no_grad():
        rows = tables(everything()).values().clone()
    tables.train()
    return rows


def losses(tables: TableCollection, *, begin: bool = True) -> Iterator[float]:
    """The loop as the README has it, over all stages."""
    network = nn.Linear(DIM, 1)
    optimizer = torch.optim.Adam([*network.parameters(), *tables.dense_parameters()], lr=0.01)
    if begin:
        tables.begin(num_steps=STEPS)
    for step in range(STEPS):
        optimizer.zero_grad()
        out = tables(random_kjt({"a": NUM}, batch_size=16, seed=step)).values()
        loss = (out - 1).square().mean() + network(out).square().mean()
        loss.backward()
        tables.step()
        optimizer.step()
        yield loss.item()


@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
@pytest.mark.parametrize("method", NAMES)
def test_what_is_packed_is_what_was_trained(method: str, backend: str) -> None:
    torch.manual_seed(0)
    tables = TableCollection([spec(method)], backend=backend, optimizer=RowOptimizer(name="adagrad", lr=0.1))
    for stage in range(len(method_class(method).traits.schedule.stages)):
        if stage:
            tables = advance(tables)
        before = live(tables)
        list(losses(tables))
        assert not torch.equal(before, live(tables)), f"stage {stage} learns nothing"
    trained, rows = live(tables), {name: view.clone() for name, view in tables.weights().items()}
    packed = pack_collection(tables)
    slack = method_class(method).traits.tolerance * float(trained.abs().max())
    torch.testing.assert_close(packed(everything()).values(), trained, rtol=1e-5, atol=1e-6 + slack)
    assert all(torch.equal(rows[name], view) for name, view in tables.weights().items())
    assert torch.equal(live(tables), trained), "packing leaves the tables as they are"


def test_packing_in_the_middle_of_training_leaves_the_tables_alone() -> None:
    """DeepLight serves what the budget holds, and goes on training all."""
    tables = TableCollection([spec("deeplight")])
    tables.begin(num_steps=STEPS)
    before = live(tables)
    packed = pack_collection(tables)(everything()).values()
    assert torch.equal(live(tables), before)
    assert bool((before != 0).all())
    assert 0 < (packed != 0).float().mean() < 0.6
    assert torch.equal(packed[packed != 0], before[packed != 0])


@pytest.mark.parametrize("method", WITH_LOSS)
@pytest.mark.parametrize("cls", [TableCollection, SequenceCollection])
def test_the_backward_pass_takes_the_methods_loss_along(method: str, cls: type[Tables]) -> None:
    """Unless the caller has added it: then as the caller weighs it."""

    def gradients(weight: float | None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        tables = cls([spec(method)], seed=1)
        out = tables(random_kjt({"a": NUM}, batch_size=16, seed=3))
        values = out.values() if cls is TableCollection else out["a"].values()
        loss = values.square().sum()
        if weight is not None:
            loss = loss + weight * tables.extra_loss()
        loss.backward()
        return {name: p.grad.clone() for name, p in tables.methods.named_parameters() if p.grad is not None}

    alone, added, left_out, doubled = (gradients(weight) for weight in (None, 1.0, 0.0, 2.0))
    assert alone
    for name, gradient in alone.items():
        torch.testing.assert_close(gradient, added[name])
        assert not torch.equal(gradient, left_out[name])
        torch.testing.assert_close(
            doubled[name] - left_out[name], 2 * (gradient - left_out[name]), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("cls", [TableCollection, SequenceCollection])
def test_outputs_may_be_written_to_in_place(cls: type[Tables]) -> None:
    gradients = []
    for in_place in (True, False):
        tables = cls([spec("mgqe")], optimizer=RowOptimizer(name="sgd", lr=1.0))
        out = tables(random_kjt({"a": NUM}, batch_size=16, seed=3))
        values = out.values() if cls is TableCollection else out["a"].values()
        (values.relu_() if in_place else values.relu()).square().sum().backward()
        gradients.append([*tables.weights().values(), *(p.grad for p in tables.dense_parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_two_passes_before_a_backward_pass_both_take_their_loss() -> None:
    def gradient(*, added: bool) -> Tensor:
        tables = TableCollection([spec("dpq")], seed=1)
        total = torch.zeros(())
        for seed in (1, 2):
            total = total + tables(random_kjt({"a": NUM}, batch_size=16, seed=seed)).values().square().sum()
            if added:
                total = total + tables.extra_loss()
        total.backward()
        return next(tables.methods.parameters()).grad

    torch.testing.assert_close(gradient(added=False), gradient(added=True))


@pytest.mark.parametrize("method", WITH_LOSS)
def test_no_more_than_one_pass_is_kept(method: str) -> None:
    """Graphs of passes whose loss nobody has asked for."""
    tables = TableCollection([spec(method)])
    kept = []
    for seed in range(3):
        tables(random_kjt({"a": NUM}, batch_size=16, seed=seed))
        kept.append(weakref.ref(tables.training_state.last))
    gc.collect()
    assert [loss() is None for loss in kept] == [True, True, False]
    tables(random_kjt({"a": NUM}, batch_size=16, seed=3)).values().sum().backward()
    assert tables.training_state.last is None


@pytest.mark.parametrize("method", ["deeplight", "dpq", "mgqe", "pep", "autodim"])
def test_a_schedule_asks_for_the_length_of_training(method: str) -> None:
    tables = TableCollection([spec(method)])
    rows = {name: view.clone() for name, view in tables.weights().items()}
    message = (
        rf"table 't' \(method '{method}'\) follows a schedule over the whole training; say how long it is, tables.begin"
    )
    with pytest.raises(ConfigError, match=message):
        list(losses(tables, begin=False))
    assert rows.keys() == tables.weights().keys()


@pytest.mark.parametrize(
    ("num_steps", "step"), [(0, 0), (-1, 0), (5, 6), (5, -1), (5, 1.5), (2.5, 0), (None, 0), (True, 0)]
)
def test_trainings_of_no_length(num_steps: Any, step: Any) -> None:
    with pytest.raises(ConfigError, match=f"a training begins at step {step} of {num_steps}; give at least 1 step"):
        TableCollection([spec("full")]).begin(num_steps=num_steps, step=step)


def test_a_method_without_a_schedule_needs_no_length() -> None:
    tables = TableCollection([spec("full")])
    assert len(list(losses(tables, begin=False))) == STEPS
    pack_collection(tables)


def test_packing_refuses_a_schedule_that_nobody_has_followed() -> None:
    tables = TableCollection([spec("deeplight")])
    for seed in range(3):
        tables(random_kjt({"a": NUM}, batch_size=16, seed=seed)).values().sum().backward()
    message = (
        r"rows were trained by 3 backward passes since the last tables.step\(\), which table 't' \(method 'deeplight'\)"
    )
    with pytest.raises(ConfigError, match=message):
        pack_collection(tables)
    tables.begin(num_steps=5)
    tables.step()
    pack_collection(tables)


def test_a_resumed_training_goes_on_with_its_schedule() -> None:
    """Steps 4 to 6 of 6 do what they do in one go."""
    whole = TableCollection([spec("deeplight")])
    parts = TableCollection([spec("deeplight")])
    whole.begin(num_steps=STEPS)
    for number in range(STEPS):
        if number in (0, 3):
            parts.begin(num_steps=STEPS, step=number)
        for tables in (whole, parts):
            tables(random_kjt({"a": NUM}, batch_size=16, seed=number)).values().sum().backward()
            tables.step()
    assert torch.equal(live(whole), live(parts))
    assert float((live(whole) == 0).float().mean()) > 0.4
