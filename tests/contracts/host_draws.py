"""Random numbers of a GPU, drawn by the host's generator: what is random then comes out the same on both."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_FILLS = {f"aten::{name}_" for name in ("normal", "uniform", "exponential", "random", "bernoulli")}
_MAKES = {f"aten::{name}" for name in ("rand", "randn", "randint", "randperm")}


class HostDraws(TorchDispatchMode):
    """While it is entered, tensors of any device are filled with random numbers as if they were the host's."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, name = dict(kwargs or {}), func._schema.name
        if name in _FILLS and args[0].device.type != "cpu":
            target: Tensor = args[0]
            return target.copy_(func(torch.empty(target.shape, dtype=target.dtype), *args[1:], **kwargs))
        if name in _MAKES and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs, device=torch.device("cpu")).to(device)
        return func(*args, **kwargs)
