"""A GPU that is not there: tensors in host memory that say they are elsewhere, and refuse what a GPU would refuse.

Every operation on them is computed on the CPU, so values can be compared. An operation that mixes them with host
tensors in a way that CUDA does not allow raises an error. Streams and pinned memory are not simulated.

Torch knows the device from then on, so tests enter it in a process of their own (`tests.contracts.beside_the_host`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from embank.tables import RowTier
from embank.tables.collections.addressed import Addressed, AddressedSequence
from embank.tables.rows.lanes import HostLane, Mark, Passed

NAME = "pretended"
_MAY_MIX = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}
_TAKES_HOST_INDICES = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put_.default,
    torch.ops.aten.index_put.default,
    torch.ops.aten._index_put_impl_.default,
}


class There(torch.Tensor):
    """A tensor on the simulated GPU."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "There":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=torch.device(NAME, 0),
            requires_grad=here.requires_grad,
        )
        made.here = here
        return made

    def tolist(self) -> Any:
        """Subclasses have none of their own."""
        return self.here.tolist()

    def __repr__(self) -> str:
        return f"There({self.here})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Takes operations that make tensors on the simulated GPU out of none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _refuse_mixture(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    if func in _MAY_MIX:
        return
    if func in _TAKES_HOST_INDICES and isinstance(args[0], There):
        args = (args[0], *args[2:])
    tensors = [leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)]
    on_host = [t for t in tensors if not isinstance(t, There) and t.dim() > 0]
    if on_host and any(isinstance(t, There) for t in tensors):
        shapes = [tuple(t.shape) for t in on_host]
        raise RuntimeError(f"{func} got tensors on the host {shapes} beside ones on the device")


def _run(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    _refuse_mixture(func, args, kwargs)
    there = {id(leaf.here): leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, There)}
    device = kwargs.get("device")
    is_simulated = device is not None and torch.device(device).type == NAME
    own = {**kwargs, "device": torch.device("cpu")} if is_simulated else kwargs

    def bare(leaf: Any) -> Any:
        return leaf.here if isinstance(leaf, There) else leaf

    out = func(*tree_map(bare, args), **tree_map(bare, dict(own)))
    goes_there = bool(there) if device is None else is_simulated
    if func is torch.ops.aten.copy_.default:
        goes_there = isinstance(args[0], There)

    def placed(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or isinstance(leaf, There):
            return leaf
        if id(leaf) in there:
            return there[id(leaf)]
        return There(leaf) if goes_there else leaf

    return tree_map(placed, out)


class _Lane(HostLane):
    """Copies between the host and the simulated GPU, at once."""

    def __init__(self) -> None:
        self.device = torch.device(NAME, 0)

    def upload(self, staged: list[Tensor]) -> tuple[list[Tensor], Mark]:
        with _Mode():  # the stager's thread has modes of its own
            return [tensor.clone().to(self.device) for tensor in staged], Passed()

    def download(self, tensors: list[Tensor], after: Mark) -> list[Tensor]:
        with _Mode():
            return [tensor.cpu() for tensor in tensors]


@cache
def _register() -> None:
    _setup_privateuseone_for_python_backend(NAME)


def tier(name: str) -> RowTier:
    """A tier of the simulated GPU."""
    made = RowTier(name=name)  # type: ignore[arg-type]
    object.__setattr__(made, "device", f"{NAME}:0")
    return made


@contextmanager
def simulated_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Has the simulated GPU there while the context lasts."""
    _register()
    monkeypatch.setattr(RowTier, "refuse_missing_device", lambda _self: None)
    monkeypatch.setattr(Addressed, "pin_memory", lambda self: self)
    monkeypatch.setattr(AddressedSequence, "pin_memory", lambda self: self)
    monkeypatch.setattr("embank.tables.rows.staged.lane_to", lambda _device: _Lane())
    with torch.autograd.set_multithreading_enabled(False), _Mode():
        yield torch.device(NAME, 0)
