"""In which mode a module runs: training or evaluation, with moving statistics or without, followed by an exporter."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module in evaluation mode and without gradients; afterwards each part of it is in the mode that it was in."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True


_STATISTICS_MOVE: ContextVar[bool] = ContextVar("_STATISTICS_MOVE", default=True)


def statistics_move() -> bool:
    """Whether a training pass may move buffers, such as running means and counts of use: not in a step on search
    parameters alone.

    Example:
        >>> from embank.tables import statistics_move
        >>> statistics_move()
        True
    """
    return _STATISTICS_MOVE.get()


@contextmanager
def moving_statistics(moves: bool) -> Iterator[None]:
    """What `statistics_move` answers in the block."""
    token = _STATISTICS_MOVE.set(moves)
    try:
        yield
    finally:
        _STATISTICS_MOVE.reset(token)


def is_followed() -> bool:
    """Whether `torch.export` or `torch.compile` follows what runs now: then no step may depend on the number of ids."""
    return torch.compiler.is_compiling()
