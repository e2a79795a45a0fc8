"""Where each piece of a table lies in the files that torch's distributed checkpoint writes: our own index, in JSON.

torch keeps the same in `.metadata`, by pickle, and reading that executes what it says. Nothing that embank loads may
execute.
"""

import io
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from embank.tables.errors import CheckpointError
from embank.tables.rows.store_spec import ROW_DTYPES
from embank.tables.storage.json_text import read_json
from embank.tables.storage.refusals import cause_of

INDEX = "index.json"

_NAMES = {dtype: name for name, dtype in ROW_DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A box of a tensor and the bytes that hold it.

    Args:
        offsets, sizes: of the box; one or two dimensions.
        file: in the folder of the index.
        start, nbytes: where it lies in the file, as `torch.save` writes a tensor.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A tensor in the files.

    Args:
        size: of the whole tensor.
        is_striped: whether its first dimension are striped positions (`TableShard`), not row numbers.
        dtype: of its numbers, a key of `ROW_DTYPES`.
        pieces: boxes that fill it.
    """

    size: tuple[int, ...]
    is_striped: bool
    dtype: str
    pieces: tuple[Piece, ...]


def write_index(folder: Path, metadata: Metadata, *, striped: Collection[str]) -> None:
    """Writes the index of what torch has just saved to a folder.

    Args:
        folder: where torch saved it.
        metadata: what torch said of it.
        striped: names of the tensors whose positions are striped.
    """
    tensors = {
        name: saved for name, saved in metadata.state_dict_metadata.items() if isinstance(saved, TensorStorageMetadata)
    }
    sizes = {
        (name, tuple(chunk.offsets)): tuple(chunk.sizes) for name, saved in tensors.items() for chunk in saved.chunks
    }
    pieces: dict[str, list[Piece]] = {}
    for index, stored in (metadata.storage_data or {}).items():
        offsets = tuple(index.offset)
        piece = Piece(
            offsets=offsets,
            sizes=sizes[index.fqn, offsets],
            file=stored.relative_path,
            start=stored.offset,
            nbytes=stored.length,
        )
        pieces.setdefault(index.fqn, []).append(piece)
    content = {
        name: {
            "size": list(tensors[name].size),
            "is_striped": name in striped,
            "dtype": _NAMES[tensors[name].properties.dtype],
            "pieces": [asdict(piece) for piece in held],
        }
        for name, held in sorted(pieces.items())
    }
    (folder / INDEX).write_text(json.dumps(content))


def read_index(folder: Path) -> dict[str, Saved]:
    """The tensors in a folder, by name.

    Raises:
        CheckpointError: there is no index, or it is not one that `write_index` writes.
    """
    try:
        return {name: _parse(values) for name, values in read_json(folder / INDEX).items()}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"'{folder / INDEX}' is damaged ({error!r}); restore it or remove this checkpoint"
        ) from error


def _parse(values: Mapping[str, Any]) -> Saved:
    size = _numbers(values["size"])
    pieces = tuple(
        Piece(
            offsets=_numbers(piece["offsets"]),
            sizes=_numbers(piece["sizes"]),
            file=_file_name(piece["file"]),
            start=_numbers([piece["start"]])[0],
            nbytes=_numbers([piece["nbytes"]])[0],
        )
        for piece in values["pieces"]
    )
    covered = 0
    for piece in pieces:
        inside = [o + s <= n for o, s, n in zip(piece.offsets, piece.sizes, size, strict=True)]
        if not all(inside):
            raise ValueError(f"a piece at {piece.offsets} of {piece.sizes} in a tensor of {size}")
        covered += torch.Size(piece.sizes).numel()
    if covered != torch.Size(size).numel():
        raise ValueError(f"pieces hold {covered} of {torch.Size(size).numel()} numbers")
    if type(values["is_striped"]) is not bool:
        raise ValueError(f"is_striped is {values['is_striped']!r}")
    dtype = values.get("dtype", "fp32")  # before rows could be anything else, it was not said
    if dtype not in ROW_DTYPES:
        raise ValueError(f"dtype is {dtype!r}")
    return Saved(size=size, is_striped=values["is_striped"], dtype=dtype, pieces=pieces)


def _numbers(values: Any) -> tuple[int, ...]:
    if not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(f"{values!r} are no whole numbers")
    return tuple(values)


def _file_name(name: Any) -> str:
    if not isinstance(name, str) or name != Path(name).name:
        raise ValueError(f"{name!r} is no file of this folder")
    return name


def read_piece(folder: Path, piece: Piece) -> Tensor:
    """The numbers of a piece, in its sizes.

    Raises:
        CheckpointError: the file is missing, or holds something else there.
    """
    path = folder / piece.file
    try:
        with path.open("rb") as file:
            file.seek(piece.start)
            value = torch.load(io.BytesIO(file.read(piece.nbytes)), map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises on damaged bytes has many types
        raise CheckpointError(
            f"'{path}' can't be read: {cause_of(error)}. Restore it or remove this checkpoint"
        ) from error
    if not isinstance(value, Tensor) or tuple(value.shape) != piece.sizes or not value.is_floating_point():
        raise CheckpointError(f"'{path}' holds something else than rows of shape {piece.sizes} at byte {piece.start}")
    return value
