"""The optimizer of the dense parameters: the network's, and what methods hold besides rows."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from embank.pipelines.config.sections import TrainConfig
from embank.tables import Tables
from embank.tables.rows.held_bytes import distinct_nbytes


def dense_optimizer(
    network: nn.Module, learned: Sequence[nn.Parameter], *, config: TrainConfig
) -> torch.optim.Optimizer:
    """The optimizer that a configuration asks for.

    Weight decay is for matrices of weights. It leaves alone what has one dimension or none (biases, the scales and
    shifts of norms, slopes of activations) and what methods learn (projections, centroids, thresholds, decoders), whose
    size means something.

    Args:
        network: all of its parameters are trained.
        learned: parameters of the tables' methods.
        config: which optimizer, its rate and its decay.
    """
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    parameters: list[Any] = [*network.parameters(), *learned]
    if config.weight_decay:
        groups = [(weights, config.weight_decay), ([*others, *learned], 0.0)]
        parameters = [{"params": members, "weight_decay": decay} for members, decay in groups if members]
    match config.optimizer:
        case "adam" | "adamw":
            return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.0, fused=True)
        case "adagrad":
            return torch.optim.Adagrad(parameters, lr=config.lr, fused=True)
        case "sgd":
            return torch.optim.SGD(parameters, lr=config.lr, fused=True)


def training_nbytes(tables: Tables, optimizers: Iterable[torch.optim.Optimizer]) -> int:
    """Bytes of tables in training here: what they hold, and what optimizers keep for the dense parameters of their
    methods."""
    kept = [
        state
        for p in tables.dense_parameters()
        for optimizer in optimizers
        for state in optimizer.state.get(p, {}).values()
    ]
    return tables.nbytes("training") + distinct_nbytes(value for value in kept if isinstance(value, torch.Tensor))
