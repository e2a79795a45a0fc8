"""Bytes of what is really held."""

from collections.abc import Iterable

from torch import Tensor, nn


def distinct_nbytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of some tensors, those that several tables share counted once."""
    places = {(t.data_ptr(), t.numel(), t.dtype): t for t in tensors if t.numel()}
    return sum(t.numel() * t.element_size() for t in places.values())


def tensors_of(module: nn.Module) -> list[Tensor]:
    """The parameters and buffers of a module, and tensors that are its public attributes (private ones are left from
    batches)."""
    plain = [
        value
        for part in module.modules()
        for name, value in vars(part).items()
        if isinstance(value, Tensor) and not name.startswith("_")
    ]
    return [*module.parameters(), *module.buffers(), *plain]
