"""Rows' optimizers by the classes and arguments that PyTorch and TorchRec name them with."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torchrec

from embank.tables.errors import ConfigError
from embank.tables.rows.store_spec import RowOptimizer, RowOptimizerName
from embank.tables.wording import shown

_NAMES: dict[type, RowOptimizerName] = {
    torch.optim.SGD: "sgd",
    torch.optim.Adagrad: "adagrad",
    torch.optim.Adam: "adam",
    torchrec.optim.SGD: "sgd",
    torchrec.optim.Adagrad: "adagrad",
    torchrec.optim.Adam: "adam",
    torchrec.optim.RowWiseAdagrad: "rowwise_adagrad",
}
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "momentum": (0,),
    "dampening": (0,),
    "weight_decay": (0,),
    "nesterov": (False,),
    "maximize": (False,),
    "lr_decay": (0,),
    "initial_accumulator_value": (0,),
    "amsgrad": (False,),
    "foreach": (None, True, False),
    "fused": (None, True, False),
    "differentiable": (False,),
    "capturable": (False,),
    "gradient_clipping": (False,),
    "max_norm": (0, None),
}
"""Arguments that change nothing at these values; rows have no such thing at others."""
_KNOWN = {"lr": "lr", "learning_rate": "lr", "eps": "eps", "betas": "betas"}


def row_optimizer_of(optimizer: Callable[..., Any], arguments: Mapping[str, Any]) -> RowOptimizer:
    """The rows' optimizer that stands for one of torch's or TorchRec's.

    Args:
        optimizer: its class.
        arguments: of the class, `lr` among them; what is not given has the class's default.

    Raises:
        ConfigError: one that rows don't have, or an argument that would have to change something and can't.

    Example:
        >>> row_optimizer_of(torch.optim.SGD, {"lr": 0.1})
        RowOptimizer(name='sgd', lr=0.1, eps=1e-08, betas=(0.9, 0.999))
        >>> row_optimizer_of(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})
        Traceback (most recent call last):
            ...
        embank.tables.errors.ConfigError: rows can't be updated by SGD with momentum 0.9; leave it out, or give the
        tables no optimizer in the backward pass, so that their rows are parameters for yours
    """
    name = _NAMES.get(optimizer) if isinstance(optimizer, type) else None
    label = getattr(optimizer, "__name__", shown(optimizer))
    if name is None:
        raise ConfigError(f"rows have no optimizer {label}; use {', '.join(sorted({cls.__name__ for cls in _NAMES}))}")
    chosen: dict[str, Any] = {}
    own = {_KNOWN[key]: value for key, value in _defaults(optimizer).items() if key in _KNOWN}
    for key, value in {**own, **arguments}.items():
        if key in _KNOWN:
            chosen[_KNOWN[key]] = value
        elif value not in _NEUTRAL.get(key, ()):
            raise ConfigError(
                f"rows can't be updated by {label} with {key} {shown(value)}; leave it out, or give the tables no "
                "optimizer in the backward pass, so that their rows are parameters for yours"
            )
    if "lr" not in chosen:
        raise ConfigError(f"{label} for rows has no learning rate; give lr")
    if name == "sgd":
        chosen.pop("eps", None)
    return RowOptimizer(name=name, **{key: value for key, value in chosen.items() if value is not None})


def _defaults(optimizer: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(optimizer).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
