"""Lookups under `torch.fx`: one step of the graph, whatever tracer it is.

A trace follows a model with stand-ins for its inputs (proxies), which have no ids to check. TorchRec's pipelines trace
every model that they run.
"""

from collections.abc import Mapping
from typing import Any, Self

from torch import nn
from torch.fx import Proxy


class OneStep(nn.Module):
    """A module that a trace takes as one step: what it does is not followed.

    The whole of a trace may be such a module, too: its graph then calls `itself`.
    """

    @property
    def itself(self) -> Self:
        """The module: what a graph calls where the module is all that was traced."""
        return self

    def step_of(self, *inputs: Any) -> Any:
        """What `forward` is to return under a trace; None if there is none.

        Args:
            inputs: what `forward` was given.
        """
        proxy = next((found for value in inputs if (found := _proxy_in(value)) is not None), None)
        if proxy is None:
            return None
        path = proxy.tracer.path_of_module(self)  # type: ignore[attr-defined]
        return proxy.tracer.create_proxy("call_module", path or "itself", inputs, {})


def _proxy_in(value: Any) -> Proxy | None:
    if isinstance(value, Proxy):
        return value
    if isinstance(value, Mapping):
        return next((item for item in value.values() if isinstance(item, Proxy)), None)
    return None
