"""What becomes of tables when a model that they are part of is cast or moved, or made under other defaults than
torch's."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from embank.tables.errors import ConfigError

Change = Callable[[Tensor], Tensor]
"""Of a parameter or buffer, as `nn.Module._apply` takes it."""


def keeping_types(change: Change, *, device: torch.device) -> Change:
    """A change that leaves types as they are: rows are fp32, and what methods hold besides rows is combined with them.

    Args:
        change: what is to be done to each parameter and buffer.
        device: where the rows are.

    Raises:
        ConfigError: it moves them to another device than the rows', or into memory that processes share.
    """
    probe = change(torch.zeros(1, device=device))
    if probe.device.type == "cpu" and probe.is_shared():  # type: ignore[no-untyped-call]
        raise ConfigError(
            "rows can't be put into shared memory with a model, so processes would train copies of their own; give the "
            "tables a Sharding over the processes, or train in one"
        )
    is_elsewhere = probe.device.type != device.type or (device.index is not None and probe.device != device)
    if is_elsewhere and probe.device.type != "meta":
        raise ConfigError(
            f"these tables' rows are on '{device}' and can't be moved to '{probe.device}' with a model; make the "
            f"tables with tier=RowTier(device='{probe.device}'), and move the rest of the model"
        )
    if probe.dtype == torch.float32:
        return change

    def moved(tensor: Tensor) -> Tensor:
        return tensor if tensor.is_floating_point() else change(tensor)

    return moved


def only_moving(change: Change) -> Change:
    """A change that leaves the types of all tensors as they are: served rows are what their codec made them."""

    def moved(tensor: Tensor) -> Tensor:
        changed = change(tensor)
        return changed if changed.dtype == tensor.dtype else tensor.to(changed.device)

    return moved


@contextmanager
def own_defaults() -> Iterator[None]:
    """Makes tensors as torch does by itself, whatever the caller has set for the model around:
    `torch.set_default_dtype`, a `torch.device` block, inference mode. Rows are fp32 and where their tier says."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), _on_the_host():
            yield
    finally:
        torch.set_default_dtype(dtype)


def _on_the_host() -> AbstractContextManager[object]:
    """A `torch.device("cpu")` block where the caller has set another device. Such a block makes every call of torch
    several microseconds longer, which is a quarter of what it takes to code many small tables."""
    is_there = torch.get_default_device().type == "cpu"
    return nullcontext() if is_there else torch.device("cpu")
