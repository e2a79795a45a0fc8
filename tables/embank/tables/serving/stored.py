"""Tensors in a bundle's files: each piece of memory once, however many names it has."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embank.tables.errors import ConfigError
from embank.tables.storage.tensor_layout import ALIGNMENT, header_bytes, make_header
from embank.tables.wording import shown


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
            raise TypeError(f"a stored tensor is {shown(values)}")
        return stored


_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


def mapped_tensors(file: Path, keys: Iterable[str]) -> dict[str, Tensor]:
    """Tensors of a file, all in one piece of memory that is mapped from it: tables that lie next to each other in the
    file are so for torch as well, which safetensors' own tensors are not.

    Args:
        file: in the safetensors format, checked by safetensors (`safe_open`).
        keys: names of tensors.

    Raises:
        KeyError: there is no such tensor, or its type is one that no bundle has.
        OSError: the file can't be read.
    """
    with file.open("rb") as opened:
        header_nbytes = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(header_nbytes))
    # Private to this process and never written to, so that pages are those of the file.
    content = torch.from_file(str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)
    return {key: _part(content[8 + header_nbytes :], header[key]) for key in keys}


def _part(data: Tensor, entry: dict[str, Any]) -> Tensor:
    dtype, (first, last) = _TYPES[entry["dtype"]], entry["data_offsets"]
    if first == last:
        return torch.empty(entry["shape"], dtype=dtype)
    part = data[first:last]
    if part.storage_offset() % dtype.itemsize:
        part = part.clone()  # other writers than safetensors may leave tensors where they can't be looked up
    return part.view(dtype).view(entry["shape"])


class TensorFile:
    """Tensors on their way into a file, those that share memory once."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._keys: dict[tuple[Any, ...], str] = {}

    def add(self, name: str, tensor: Tensor) -> StoredTensor:
        """Takes a tensor in, under its own name or that of one in the same place.

        Raises:
            ConfigError: no bundle has tensors of its type.
        """
        if tensor.dtype not in _NAMES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in _NAMES)
            raise ConfigError(
                f"tensor '{name}' is of {tensor.dtype}, and bundles hold {known}; convert it before saving"
            )
        place: tuple[Any, ...] = (tensor.data_ptr(), tensor.numel(), tensor.dtype)
        if not tensor.is_contiguous():
            place = (*place, tensor.shape, tensor.stride())
        key = self._keys.setdefault(place, name) if tensor.numel() else name
        if key == name:
            self.tensors[name] = tensor.detach().contiguous()
        return StoredTensor(key=key, shape=list(tensor.shape))

    def write(self, file: Path) -> None:
        """Writes the file, in the safetensors format, as readable as its folder.

        Rows of 64 bytes, or of a power of two below, begin at a multiple of it, so that no more cache lines are read
        than they need: by the library's own order, which begins at a multiple of 8, a row of 16 numbers is in two.
        Matrices with rows alike follow each other, so that they can be looked up as one.
        """
        ordered = sorted(self.tensors.items(), key=_place_of)
        header = make_header((name, _NAMES[tensor.dtype], tensor.shape) for name, tensor in ordered)
        with file.open("wb") as opened:
            opened.write(header_bytes(header))
            for _, tensor in ordered:
                if tensor.numel():
                    opened.write(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
        file.chmod(file.parent.stat().st_mode & 0o666)


def _place_of(item: tuple[str, Tensor]) -> tuple[int, int, int, str]:
    """What sorts tensors: whose rows want the most alignment come first, as each leaves that to what follows it."""
    name, tensor = item
    row_nbytes = tensor.itemsize * (tensor.shape[-1] if tensor.dim() > 1 else 1)
    return -min(ALIGNMENT, row_nbytes & -row_nbytes), -tensor.itemsize, row_nbytes, name
