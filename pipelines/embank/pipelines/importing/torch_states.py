"""Tensors by name that torch has saved: a file of `torch.save`, or a folder of `torch.distributed.checkpoint`.

Nothing in them is executed: files are read with `weights_only`, and of a checkpoint's pickled index only the classes
that describe tensors are made.
"""

from __future__ import annotations

import io
import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embank.pipelines.vectors.files import VectorFile
from embank.tables.errors import DataError
from embank.tables.storage.refusals import cause_of
from embank.tables.storage.resources import refuse_exhausted
from embank.tables.wording import listing

METADATA = ".metadata"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_METADATA_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(str(dtype).removeprefix("torch.") for dtype in (*_FLOATS, torch.bool))}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "pathlib": {"PosixPath", "PurePosixPath", "WindowsPath"},
    "collections": {"OrderedDict"},
}
"""What the index of a checkpoint may be made of."""


class TorchState(ABC):
    """Tensors by name.

    Attributes:
        path: of the file or the folder.
        shapes: of the tensors of floats or whole numbers, by name, in the order of the file.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]

    @abstractmethod
    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some rows of a tensor, [stop - start, ...], as it was saved."""

    def mapped(self, name: str) -> Tensor | None:
        """The tensor where it lies in the file, mapped; None where it is in parts."""
        return None

    def read(self, name: str) -> Tensor:
        """A whole tensor."""
        shape = self.shapes[name]
        return self.rows(name, 0, shape[0]) if shape else self.rows(name, 0, 1).reshape(())

    def refused(self, what: str) -> DataError:
        """An error about what was saved."""
        return DataError(f"'{self.path}': {what}")


def open_state(path: str | Path) -> TorchState:
    """What torch has saved.

    Args:
        path: a file of `torch.save`, with a `state_dict` or nested mappings of tensors; or the folder of a distributed
            checkpoint.

    Raises:
        DataError: it is neither, truncated, or holds other objects than tensors and plain values.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / METADATA).is_file():
            raise DataError(
                f"'{path}' has no {METADATA}, so it is no checkpoint of torch.distributed.checkpoint; give its "
                "folder, or a file that torch.save wrote"
            )
        return CheckpointState(path)
    if not path.is_file():
        raise DataError(f"there is no file '{path}'; give what torch.save or torch.distributed.checkpoint wrote")
    return SavedState(path)


class SavedState(TorchState):
    """A file of `torch.save`, its tensors mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, Tensor] = {}
        self._gather(_loaded(path), "")
        if not self.tensors:
            raise self.refused("it holds no tensor; give a state_dict: torch.save(model.state_dict(), FILE)")
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def _gather(self, value: Any, name: str) -> None:
        """Tensors in nested mappings, by names that are joined with dots."""
        if isinstance(value, Tensor):
            if value.layout == torch.strided and not value.is_meta:
                self.tensors[name] = value.detach()
        elif isinstance(value, Mapping):
            for key, part in value.items():
                self._gather(part, f"{name}.{key}" if name else str(key))

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        tensor = self.tensors[name]
        return tensor[start:stop] if tensor.dim() else tensor.reshape(1)

    def mapped(self, name: str) -> Tensor | None:
        return self.tensors[name]


def _loaded(path: Path) -> Any:
    how: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        try:
            return torch.load(path, mmap=True, **how)
        except RuntimeError as error:
            if "mmap" not in str(error):  # files of torch before 1.6 can't be mapped
                raise
            return torch.load(path, **how)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error) or "weights_only" in str(error).lower():
            raise DataError(
                f"'{path}' can't be read as tensors alone: it is damaged, or holds other objects, which would be "
                "executed when they are unpickled, and are not. Save the tensors: torch.save(model.state_dict(), "
                "FILE)"
            ) from error
        raise DataError(f"'{path}' is no file of torch.save, or truncated. Save it again") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        refuse_exhausted(error, doing=f"reading '{path}'")
        cause = cause_of(error) if isinstance(error, OSError) else " ".join(str(error).split())[:200]
        raise DataError(f"'{path}' is no file of torch.save, or truncated: {cause}. Save it again") from error


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A part of a tensor in a file of a checkpoint."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    first_byte: int
    num_bytes: int


class CheckpointState(TorchState):
    """The folder of a distributed checkpoint: tensors in parts, as the ranks have written them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        metadata = self._metadata()
        try:
            self._describe(metadata)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self.refused(f"its {METADATA} is of another version of torch ({error}); save it again") from error
        self._held: dict[_Piece, Tensor] = {}

    def _metadata(self) -> Any:
        file = self.path / METADATA
        try:
            return _IndexReader(io.BytesIO(file.read_bytes())).load()
        except OSError as error:
            raise self.refused(f"its {METADATA} can't be read: {cause_of(error)}") from error
        except Exception as error:  # a damaged pickle may raise anything
            raise self.refused(
                f"its {METADATA} is damaged or holds other objects than a checkpoint's index ("
                f"{' '.join(str(error).split())[:200]}); copy the folder again"
            ) from error

    def _describe(self, metadata: Any) -> None:
        places = {(index.fqn, tuple(index.offset or ())): info for index, info in metadata.storage_data.items()}
        self.shapes, self.pieces = {}, {}
        for name, saved in metadata.state_dict_metadata.items():
            if not hasattr(saved, "chunks"):
                continue  # other objects than tensors, which are left where they are
            pieces = []
            for chunk in saved.chunks:
                info = places[name, tuple(chunk.offsets)]
                if getattr(info, "transform_descriptors", None):
                    raise ValueError("its tensors are compressed")
                pieces.append(
                    _Piece(
                        offsets=tuple(chunk.offsets),
                        sizes=tuple(chunk.sizes),
                        file=Path(str(info.relative_path)).name,
                        first_byte=int(info.offset),
                        num_bytes=int(info.length),
                    )
                )
            shape = tuple(saved.size)
            if sum(torch.Size(piece.sizes).numel() for piece in pieces) != torch.Size(shape).numel():
                raise ValueError(f"'{name}' is not there as a whole")
            self.shapes[name], self.pieces[name] = shape, sorted(pieces, key=lambda piece: piece.offsets)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        shape, pieces = self.shapes[name], self.pieces[name]
        if not shape:
            return self._piece(name, pieces[0]).reshape(1)
        target: Tensor | None = None
        asked = [p for p in pieces if max(start, p.offsets[0]) < min(stop, p.offsets[0] + p.sizes[0])]
        # Rows are asked for in order: parts that reach further are asked for again.
        self._held = {piece: values for piece, values in self._held.items() if piece in asked}
        for piece in asked:
            if 0 in piece.sizes:
                continue
            first, last = max(start, piece.offsets[0]), min(stop, piece.offsets[0] + piece.sizes[0])
            values = self._piece(name, piece)
            if target is None:
                target = torch.empty(stop - start, *shape[1:], dtype=values.dtype)
            into = [slice(first - start, last - start)]
            into += [slice(o, o + s) for o, s in zip(piece.offsets[1:], piece.sizes[1:], strict=True)]
            target[tuple(into)] = values[first - piece.offsets[0] : last - piece.offsets[0]]
        return torch.empty(stop - start, *shape[1:]) if target is None else target

    def _piece(self, name: str, piece: _Piece) -> Tensor:
        """A part of a tensor."""
        if piece in self._held:
            return self._held[piece]
        file = self.path / piece.file
        try:
            with file.open("rb") as opened:
                opened.seek(piece.first_byte)
                content = opened.read(piece.num_bytes)
            if len(content) < piece.num_bytes:
                raise EOFError("it is truncated")
            values = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if not isinstance(values, Tensor) or tuple(values.shape) != piece.sizes:
                raise ValueError(f"it holds something else than the part of '{name}' that the index says")
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            refuse_exhausted(error, doing=f"reading '{file}'")
            cause = cause_of(error) if isinstance(error, OSError) else " ".join(str(error).split())[:200]
            raise self.refused(f"'{name}' can't be read from {piece.file}: {cause}. Copy the folder again") from error
        self._held[piece] = values.detach()
        return self._held[piece]


class _IndexReader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _METADATA_CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


class StateVectors(VectorFile):
    """A matrix of a state, as vectors.

    Args:
        state: holds it.
        tensor: its name.
        what: what to call it in messages.
    """

    def __init__(self, state: TorchState, tensor: str, *, what: str) -> None:
        self.path, self.state, self.tensor = state.path, state, tensor
        self.column = f"{what} ('{tensor}')"
        shape = state.shapes[tensor]
        if len(shape) != 2:
            raise self.refused(f"it has the shape {list(shape)}; give a matrix, a row an id")
        self.num_rows, self.dim = shape
        self._refuse_no_rows()

    @cached_property
    def dtype(self) -> str:  # type: ignore[override]
        return str(self.state.rows(self.tensor, 0, 1).dtype).removeprefix("torch.")

    def chunks(self) -> Iterator[Tensor]:
        for start in range(0, self.num_rows, self.rows_per_chunk):
            rows_rD = self.state.rows(self.tensor, start, min(self.num_rows, start + self.rows_per_chunk))
            if rows_rD.dtype not in _FLOATS:
                raise self.refused(
                    f"it holds {str(rows_rD.dtype).removeprefix('torch.')}; give {listing(map(str, _FLOATS))}"
                )
            rows_rD = rows_rD.float()
            self.refuse_non_finite(rows_rD, start=start)
            yield rows_rD

    def mapped(self) -> Tensor | None:
        rows_RD = self.state.mapped(self.tensor)
        return rows_RD if rows_RD is not None and rows_RD.dtype == torch.float32 and rows_RD.is_contiguous() else None
