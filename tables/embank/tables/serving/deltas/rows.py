"""Rows of tensors in files, block by block: read, compared, patched. No more than a few blocks are in memory.

Everything here is bytes: a delta knows neither methods nor codecs. Files are read, not mapped: one that is cut
meanwhile is an error, not the end of the process.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from embank.tables.errors import CheckpointError
from embank.tables.storage.tensor_layout import TensorPlace

BLOCK_NBYTES = 2**23
Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Changed = Callable[[Bytes, Bytes], Mask]
"""For two equally long blocks [n, row_nbytes]: which rows are to be taken from the second, [n]."""

_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


class Rows(Protocol):
    """The rows of a tensor, front to back."""

    @property
    def place(self) -> TensorPlace:
        """dtype and shape."""

    def blocks(self) -> Iterator[Bytes]:
        """Blocks [n, row_nbytes], all but the last equally long; the caller may not keep or change them."""


@dataclass(frozen=True)
class FileRows:
    """The rows of a tensor in a file.

    Args:
        file: where it is.
        place: in the file.
        data_start: where the file's tensors begin.
    """

    file: Path
    place: TensorPlace
    data_start: int

    def blocks(self) -> Iterator[Bytes]:
        """See `Rows`."""
        if not self.place.nbytes:
            return
        step = max(1, BLOCK_NBYTES // self.place.row_nbytes)
        with Cursor(self) as cursor:
            for start in range(0, self.place.num_rows, step):
                yield cursor.take(min(step, self.place.num_rows - start))


class Cursor:
    """A place in a tensor's rows that moves on as they are taken.

    Args:
        rows: what is read.
    """

    def __init__(self, rows: FileRows) -> None:
        self._rows = rows
        self.left = rows.place.num_rows

    def __enter__(self) -> "Cursor":
        self._file = self._rows.file.open("rb")
        self._file.seek(self._rows.data_start + self._rows.place.start)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def take(self, count: int) -> Bytes:
        """The next rows, [count, row_nbytes].

        Raises:
            CheckpointError: there are no more.
        """
        row_nbytes = self._rows.place.row_nbytes
        content: Bytes = np.empty(count * row_nbytes, np.uint8)
        if count > self.left or self._file.readinto(content) < content.size:  # type: ignore[arg-type]
            raise CheckpointError(f"'{self._rows.file}' is shorter than its header says. Copy it again")
        self.left -= count
        return content.reshape(count, row_nbytes)

    def skip(self, count: int) -> None:
        """Leaves rows out."""
        self._file.seek(count * self._rows.place.row_nbytes, os.SEEK_CUR)
        self.left -= count


@dataclass(frozen=True)
class PatchedRows:
    """Rows of which some are replaced, and behind which others follow.

    Args:
        base: what is patched.
        place: dtype and shape of the result.
        numbers: which rows are replaced, ascending.
        values: their rows, then those that follow.
        origin: the delta, for messages.
    """

    base: Rows
    place: TensorPlace
    numbers: FileRows
    values: FileRows
    origin: str

    def __post_init__(self) -> None:
        kept, wanted = self.kept, self.place.num_rows
        fits = (
            self.place.has_rows_like(self.base.place)
            and self.numbers.place.dtype in ("U32", "U64")
            and self.numbers.place.num_rows <= kept
            and self.values.place.num_rows == self.numbers.place.num_rows + wanted - kept
            and (not self.values.place.nbytes or self.values.place.row_nbytes == self.place.row_nbytes)
        )
        if not fits:
            self._refuse()

    @property
    def kept(self) -> int:
        """Rows that the base has as well."""
        return min(self.base.place.num_rows, self.place.num_rows)

    def blocks(self) -> Iterator[Bytes]:
        """See `Rows`."""
        start = 0
        with Cursor(self.values) as values, _Numbers(self.numbers, refuse=self._refuse) as numbers:
            for block in self.base.blocks():
                end = min(start + len(block), self.kept)
                replaced = numbers.below(end)
                patched = block[: end - start].copy() if replaced.size else block[: end - start]
                if replaced.size:
                    patched[replaced - start] = values.take(replaced.size)
                if patched.size:
                    yield patched
                start = end
            if numbers.left:
                self._refuse()
            step = max(1, BLOCK_NBYTES // self.place.row_nbytes)
            while values.left:
                yield values.take(min(step, values.left))

    def _refuse(self) -> None:
        raise CheckpointError(f"delta '{self.origin}' is damaged: its rows don't fit. Copy the delta again")


class _Numbers:
    """Ascending row numbers, read as they are asked for."""

    def __init__(self, rows: FileRows, *, refuse: Callable[[], None]) -> None:
        self._cursor, self._refuse = Cursor(rows), refuse
        self._dtype = np.uint32 if rows.place.dtype == "U32" else np.uint64
        self._pending: NDArray[np.int64] = np.empty(0, np.int64)
        self._last = -1

    def __enter__(self) -> "_Numbers":
        self._cursor.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._cursor.__exit__(*raised)

    @property
    def left(self) -> int:
        """Numbers that were not asked for."""
        return self._cursor.left + self._pending.size

    def below(self, end: int) -> NDArray[np.int64]:
        """The next numbers, as far as they are below `end`."""
        found: list[NDArray[np.int64]] = []
        while self.left:
            if not self._pending.size:
                self._read()
            cut = int(np.searchsorted(self._pending, end))
            found.append(self._pending[:cut])
            self._pending = self._pending[cut:]
            if self._pending.size:
                break
        return np.concatenate(found) if found else self._pending[:0]

    def _read(self) -> None:
        content = self._cursor.take(min(self._cursor.left, BLOCK_NBYTES // 8))
        numbers = content.view(self._dtype).reshape(-1).astype(np.int64)
        if numbers[0] <= self._last or (numbers[1:] <= numbers[:-1]).any():  # a difference might overflow
            self._refuse()
        self._pending, self._last = numbers, int(numbers[-1])


def bits_differ(old: NDArray[Any], new: NDArray[Any]) -> Mask:
    """Which rows are not the same to the bit."""
    if old.shape[1] % 8 == 0:  # eight bytes at a time
        old, new = old.view(np.uint64), new.view(np.uint64)
    moved: Mask = np.not_equal(old, new).any(axis=1)
    return moved


def moved_beyond(tolerance: float, dtype: str) -> Changed | None:
    """Which rows have a number that has moved by more than `tolerance`; None for numbers without such a distance."""
    if dtype not in (*_FLOATS, "BF16"):
        return None

    def numbers(rows: Bytes) -> NDArray[np.float64]:
        if dtype == "BF16":  # the upper half of an fp32
            return (rows.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return rows.view(_FLOATS[dtype]).astype(np.float64)

    def beyond(old: Bytes, new: Bytes) -> Mask:
        moved = bits_differ(old, new)
        with np.errstate(invalid="ignore"):
            near = (np.abs(numbers(new[moved]) - numbers(old[moved])) <= tolerance).all(axis=1)
        moved[moved] = ~near
        return moved

    return beyond


class Masks:
    """Which rows of a new tensor a delta takes: a bit a row.

    Args:
        old, new: the tensors; rows of `new` that `old` doesn't have are taken.
        changed: says which of the others.
    """

    def __init__(self, old: Rows, new: Rows, changed: Changed) -> None:
        self.kept = min(old.place.num_rows, new.place.num_rows)
        self._packed: list[tuple[int, Any]] = []
        self.num_changed, start = 0, 0
        blocks = old.blocks()
        for block in new.blocks():
            shared = max(0, min(len(block), self.kept - start))
            mask = np.ones(len(block), np.bool_)
            if shared:
                mask[:shared] = changed(next(blocks)[:shared], block[:shared])
            self.num_changed += int(mask[:shared].sum())
            self._packed.append((len(block), np.packbits(mask)))
            start += len(block)
        self.num_appended = new.place.num_rows - self.kept

    def __iter__(self) -> Iterator[Mask]:
        """The mask of each block of the new tensor."""
        for count, packed in self._packed:
            yield np.unpackbits(packed, count=count).astype(np.bool_)

    def numbers(self, dtype: str) -> Iterator[Bytes]:
        """The numbers of changed rows, as bytes."""
        start = 0
        for mask in self:
            numbers = start + np.flatnonzero(mask[: max(0, self.kept - start)])
            yield numbers.astype(np.uint32 if dtype == "U32" else np.uint64).view(np.uint8)
            start += len(mask)

    def values(self, new: FileRows) -> Iterator[Bytes]:
        """The rows that are taken; blocks without any are not read."""
        with Cursor(new) as cursor:
            for mask in self:
                if mask.any():
                    yield cursor.take(len(mask))[mask]
                else:
                    cursor.skip(len(mask))
