"""What a collection really holds, found by walking over everything that can be reached from it."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from embank.tables import TableSpec
from embank.tables.collections.base import Tables

LEFT_OUT = {"counting", "_indices", "_offsets", "_vbe_B_offsets"}
"""Attributes that belong to batches, not to tables."""


def reachable(root: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """Every tensor that is an attribute or an element of something that is, each once. Specs belong to who made
    them."""
    seen = set() if seen is None else seen
    if id(root) in seen or isinstance(root, (str, bytes, int, float, type, TableSpec)):
        return
    seen.add(id(root))
    if isinstance(root, Tensor):
        yield root
        return
    inner: list[Any] = []
    if isinstance(root, Mapping):
        inner = list(root.values())
    elif isinstance(root, (list, tuple, set, frozenset)):
        inner = list(root)
    elif hasattr(root, "__dict__") and (isinstance(root, nn.Module) or type(root).__module__.startswith("embank.")):
        inner = [value for name, value in vars(root).items() if name not in LEFT_OUT]
    for value in inner:
        yield from reachable(value, seen)


def held_nbytes(root: Any) -> int:
    """Bytes of all memory behind the tensors that can be reached, whatever their shapes."""
    memories = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in reachable(root) if t.numel()}
    return sum(memories.values())


def constants(tables: Tables) -> int:
    """Bytes that FBGEMM's modules hold besides rows, their optimizer's state and the caches of a GPU: a few numbers per
    kernel."""
    kernels = [kernel for store in tables.row_stores() for kernel in getattr(store, "kernels", ())]
    inner = [t for kernel in kernels for t in reachable(kernel.tbe)]
    large = {t.untyped_storage().data_ptr() for kernel in kernels for t in kernel.flat.values()}
    memories = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in inner if t.numel()}
    return sum(nbytes for place, nbytes in memories.items() if place not in large)
