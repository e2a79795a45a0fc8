"""Tensors in a bundle's files: each piece of memory once, however many names it has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor is in its file: tensors that share memory share a key, each with its own shape."""

    key: str
    shape: Sequence[int]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "StoredTensor":
        """The inverse of `asdict`.

        Raises:
            TypeError: keys are missing or unknown, or values of another type.
        """
        stored = cls(**values)
        sizes = stored.shape if isinstance(stored.shape, list) else [None]
        if type(stored.key) is not str or not all(type(size) is int and size >= 0 for size in sizes):
            raise TypeError(f"a stored tensor is {dict(values)}")
        return stored


class TensorFile:
    """Tensors on their way into a file, those that share memory once."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._keys: dict[tuple[Any, ...], str] = {}

    def add(self, name: str, tensor: Tensor) -> StoredTensor:
        """Takes a tensor in, under its own name or that of one in the same place."""
        place: tuple[Any, ...] = (tensor.data_ptr(), tensor.numel(), tensor.dtype)
        if not tensor.is_contiguous():
            place = (*place, tensor.shape, tensor.stride())
        key = self._keys.setdefault(place, name) if tensor.numel() else name
        if key == name:
            self.tensors[name] = tensor.detach().contiguous()
        return StoredTensor(key=key, shape=list(tensor.shape))

    def write(self, file: Path) -> None:
        """Writes the file, as readable as its folder: safetensors would keep it from other users."""
        save_file(self.tensors, file)
        file.chmod(file.parent.stat().st_mode & 0o666)
