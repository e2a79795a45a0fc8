"""Where the tensors of a safetensors file lie, so that it can be read and written in pieces of bounded size.

The library maps a file or loads it, and writes what is in memory. A file is 8 bytes (the header's length, little
endian), a JSON header padded with spaces, and the tensors' bytes without gaps:
https://github.com/huggingface/safetensors#format
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embank.tables.errors import CheckpointError
from embank.tables.storage.refusals import cause_of

MAX_HEADER_NBYTES = 100_000_000
"""What the library reads at most."""

ALIGNMENT = 64
"""Bytes of a cache line: the tensors of our files begin at a multiple, counted from where the file does."""

_LENGTH_NBYTES = 8

ROW_NBYTES = 2**16
"""Bytes of a unit of comparison at most: longer rows are taken apart."""

NBYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
"""Bytes of a number by its name in the header."""


@dataclass(frozen=True, kw_only=True)
class TensorPlace:
    """One tensor in a file.

    Args:
        dtype: as the header names it.
        shape: of the tensor.
        start: where its bytes begin, counted from the end of the header.
        nbytes: how many there are.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int

    @property
    def row_nbytes(self) -> int:
        """Bytes of a row: an entry of the first axis, or, where that is long, of the first few axes."""
        if not self.nbytes or not self.shape:
            return self.nbytes
        size = NBYTES[self.dtype]
        for length in reversed(self.shape[1:]):
            if size * length > ROW_NBYTES:
                break
            size *= length
        return size

    @property
    def num_rows(self) -> int:
        """Rows of `row_nbytes`."""
        return self.nbytes // self.row_nbytes if self.nbytes else 0

    def has_rows_like(self, other: "TensorPlace") -> bool:
        """Whether it differs from another tensor only in numbers and in how many rows there are."""
        if self.dtype != other.dtype or not (self.nbytes and other.nbytes) or len(self.shape) != len(other.shape):
            return False
        return self.shape[1:] == other.shape[1:]


def read_header(file: Path, *, cure: str) -> str:
    """The header of a file, as it stands there.

    Raises:
        CheckpointError: it is damaged, or can't be read.
    """
    try:
        with file.open("rb") as opened:
            nbytes = int.from_bytes(opened.read(8), "little")
            if nbytes > MAX_HEADER_NBYTES:
                raise CheckpointError(f"'{file}' is damaged: it announces a header of {nbytes:,} bytes. {cure}")
            content = opened.read(nbytes)
            if len(content) < nbytes:
                raise CheckpointError(f"'{file}' is damaged: it ends within its header. {cure}")
            return content.decode()
    except OSError as error:
        raise CheckpointError(f"'{file}' can't be read: {cause_of(error)}. {cure}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"'{file}' is damaged: its header is no text. {cure}") from error


def tensor_places(header: str, *, what: str, cure: str, nbytes: int | None = None) -> dict[str, TensorPlace]:
    """The tensors that a header names, in the order of their bytes.

    Args:
        header: from `read_header`.
        what: whose it is, for messages.
        cure: what to do about a damaged one, a sentence.
        nbytes: bytes of all tensors, where they are known.

    Raises:
        CheckpointError: it is no header, or tensors overlap, leave gaps or have other bytes than their shapes say.
    """
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        places = {name: _place(entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{what} is damaged: its header is none of safetensors ({error!r}). {cure}") from error
    ordered = dict(sorted(places.items(), key=lambda item: (item[1].start, item[1].nbytes)))
    end = 0
    for name, place in ordered.items():
        if place.start != end:
            raise CheckpointError(
                f"{what} is damaged: tensor '{name}' begins at byte {place.start:,}, not {end:,}. {cure}"
            )
        end += place.nbytes
    if nbytes is not None and end != nbytes:
        raise CheckpointError(f"{what} is damaged: its tensors take {end:,} bytes, and it has {nbytes:,}. {cure}")
    return ordered


def _place(entry: Mapping[str, Any]) -> TensorPlace:
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(number) is int and number >= 0 for number in (start, end, *shape)):
        raise ValueError(f"offsets {[start, end]}, shape {list(shape)}")
    if NBYTES[entry["dtype"]] * math.prod(shape) != end - start:
        raise ValueError(f"{end - start} bytes for {entry['dtype']} {list(shape)}")
    return TensorPlace(dtype=entry["dtype"], shape=shape, start=start, nbytes=end - start)


def make_header(tensors: Iterable[tuple[str, str, Sequence[int]]]) -> str:
    """A header for tensors that follow each other.

    Args:
        tensors: name, dtype (as in `NBYTES`) and shape of each.

    Returns:
        JSON, with spaces at its end up to where the first tensor is to begin.
    """
    entries, start = {}, 0
    for name, dtype, shape in tensors:
        nbytes = NBYTES[dtype] * math.prod(shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + nbytes]}
        start += nbytes
    text = json.dumps(entries, separators=(",", ":"))
    return text + " " * (-(_LENGTH_NBYTES + len(text.encode())) % ALIGNMENT)


def header_bytes(header: str) -> bytes:
    """A header as a file begins with it."""
    content = header.encode()
    return len(content).to_bytes(8, "little") + content
