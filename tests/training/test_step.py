"""A training step: the optimizer of the dense parameters, clipping."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from embank.ctr_models import CTRModel, Inputs, build_network
from embank.pipelines.config.run import parse_config
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import build
from embank.pipelines.train.optimizer import dense_optimizer
from embank.pipelines.train.step import NonFiniteLossError, Stepper
from embank.tables import ConfigError, TableCollection
from tests.training.runs import config, raw_config


@pytest.mark.parametrize("name", ["adam", "adamw", "adagrad", "sgd"])
def test_weight_decay_shrinks_weights_alone(data: Path, name: str) -> None:
    """With gradients of zero, what moves is what decays."""
    train = config(data, train={"optimizer": name, "weight_decay": 0.5, "lr": 0.1}).train
    network = build_network(
        "deepfm", inputs=Inputs(names=("a", "b"), dims=(4, 4), num_dense=2), hidden_units=(6,), batch_norm=True
    )
    method = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = dense_optimizer(network, [method], config=train)
    named = {**dict(network.named_parameters()), "method": method}
    with torch.no_grad():
        for parameter in named.values():
            parameter.fill_(2.0)
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = {key for key, parameter in named.items() if not torch.equal(parameter, torch.full_like(parameter, 2.0))}
    assert moved == {key for key, parameter in named.items() if parameter.ndim > 1 and key != "method"}
    assert {"deep.0.weight", "deep.1.weight", "deep.0.bias", "linear.bias"} <= named.keys()
    assert not moved & {"deep.1.weight", "deep.0.bias", "linear.bias"}, "a norm's scale, biases"
    if name in ("adam", "adamw"):
        torch.testing.assert_close(named["deep.0.weight"], torch.full_like(named["deep.0.weight"], 2 * (1 - 0.1 * 0.5)))


def one_step(data: Path, folder: Path, **train: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """How far a step moves dense parameters (all in one vector), and rows."""
    settings = config(data, train={"optimizer": "sgd", "lr": 1.0, **train})
    schema = Schema.load(data)
    model = build(settings, schema, data=data, rows_folder=folder)
    assert isinstance(model.tables, TableCollection)
    stepper = Stepper(model, config=settings.train, batch_size=64, num_rows=600, num_steps=10)
    before = [p.detach().clone() for p in stepper.parameters]
    rows = {name: view.clone() for name, view in model.tables.weights().items()}
    torch.manual_seed(0)
    batch = next(iter(Loader(data, "train", batch_size=64, shuffle=False, address=stepper.address).epoch(0)))
    stepper(batch, step=0)
    moved = torch.cat([(p.detach() - old).flatten() for p, old in zip(stepper.parameters, before, strict=True)])
    return moved, {name: view - rows[name] for name, view in model.tables.weights().items()}


def test_clipping_scales_the_dense_gradient_and_leaves_rows(data: Path, tmp_path: Path) -> None:
    free, rows = one_step(data, tmp_path)
    norm = float(free.norm())
    clipped, same_rows = one_step(data, tmp_path, clip_grad_norm=norm / 4)
    torch.testing.assert_close(clipped, free / 4, rtol=1e-4, atol=1e-7)
    wide, _ = one_step(data, tmp_path, clip_grad_norm=norm * 4)
    torch.testing.assert_close(wide, free, rtol=0, atol=0)
    assert rows.keys() == same_rows.keys()
    for name, moved in rows.items():
        assert torch.equal(same_rows[name], moved), name
    with pytest.raises(ConfigError, match=r"train\.clip_grad_norm is 0\.0: it must be above 0"):
        parse_config(raw_config(data, train={"clip_grad_norm": 0.0}))


def diverging(data: Path, folder: Path, change: Callable[[CTRModel], None]) -> str:
    """What a step says of a model that something has been done to."""
    settings = config(data)
    schema = Schema.load(data)
    model = build(settings, schema, data=data, rows_folder=folder)
    stepper = Stepper(model, config=settings.train, batch_size=64, num_rows=600, num_steps=10)
    change(model)
    batch = next(iter(Loader(data, "train", batch_size=64, shuffle=False, address=stepper.address).epoch(0)))
    with pytest.raises(NonFiniteLossError) as caught:
        stepper(batch, step=0)
    return str(caught.value)


def fill_network(model: CTRModel) -> None:
    for parameter in model.network.parameters():
        torch.nn.init.constant_(parameter, 1e30)


def fill_rows(model: CTRModel, name: str, value: float) -> None:
    with model.tables.writing():
        model.tables.weights()[name].fill_(value)


def fill_rows_and_network(model: CTRModel) -> None:
    fill_network(model)
    fill_rows(model, "user", torch.nan)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (fill_network, r"overflow; the largest number is 1e\+30 in the network's parameter '.*'; lower train.lr"),
        (
            partial(fill_rows, name="first_order/user", value=torch.nan),
            "rows of table 'first_order/user' are not finite; lower train.table_lr",
        ),
        (
            partial(fill_rows, name="user", value=1e30),
            r"the largest embedding is 1e\+30 in table 'user'; lower train.table_lr",
        ),
        (
            fill_rows_and_network,
            r"table 'user' are not finite, and the network's parameter '.*' has grown to 1e\+30; lower train.lr",
        ),
    ],
)
def test_a_loss_that_is_not_finite_names_the_users_table_and_what_is_large(
    data: Path, tmp_path: Path, change: Callable[[CTRModel], None], cause: str
) -> None:
    said = diverging(data, tmp_path, change)
    assert re.search(cause, said), said
    assert "@" not in said
