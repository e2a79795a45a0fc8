"""Files of a bundle as streams: those of a folder, and those that deltas make of them without writing anything."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from embank.tables.serving.deltas.rows import BLOCK_NBYTES, FileRows, Rows
from embank.tables.storage.tensor_layout import header_bytes, read_header, tensor_places

CURE = "Copy the bundle again or export it again"


class Source(Protocol):
    """The content of a file, wherever it comes from."""

    def chunks(self) -> Iterator[Any]:
        """Its bytes, in pieces of bounded size."""

    def tensor(self, name: str) -> Rows | None:
        """A tensor of it, if it is a file of tensors that has one of that name."""


@dataclass(frozen=True)
class FileSource:
    """A file as it is.

    Args:
        file: its path.
        cure: what to do when it is damaged, a sentence.
    """

    file: Path
    cure: str = CURE

    def chunks(self) -> Iterator[bytes]:
        """See `Source`."""
        with self.file.open("rb") as opened:
            while piece := opened.read(BLOCK_NBYTES):
                yield piece

    @cached_property
    def header(self) -> str:
        """Of a file of tensors."""
        return read_header(self.file, cure=self.cure)

    @cached_property
    def tensors(self) -> dict[str, FileRows]:
        """The tensors of a file of tensors."""
        start = len(header_bytes(self.header))
        nbytes = self.file.stat().st_size - start
        places = tensor_places(self.header, what=f"'{self.file}'", cure=self.cure, nbytes=nbytes)
        return {name: FileRows(self.file, place, start) for name, place in places.items()}

    def tensor(self, name: str) -> Rows | None:
        """See `Source`."""
        return self.tensors.get(name)


@dataclass(frozen=True)
class TensorsSource:
    """A file of tensors that is put together from others.

    Args:
        header: its header.
        tensors: the tensors, in the order of the header's offsets.
    """

    header: str
    tensors: Mapping[str, Rows]

    def chunks(self) -> Iterator[Any]:
        """See `Source`."""
        yield header_bytes(self.header)
        for rows in self.tensors.values():
            for block in rows.blocks():
                yield block.data

    def tensor(self, name: str) -> Rows | None:
        """See `Source`."""
        return self.tensors.get(name)


def bundle_sources(folder: Path, names: Iterable[str]) -> dict[str, Source]:
    """The files of a bundle."""
    return {name: FileSource(folder / name) for name in names}


def digest(chunks: Iterable[Any], *, into: Path | None = None) -> dict[str, Any]:
    """SHA-256 and bytes of a stream, written to a new file on the way where one is named."""
    found, nbytes = hashlib.sha256(), 0
    if into is None:
        for chunk in chunks:
            found.update(chunk)
            nbytes += memoryview(chunk).nbytes
    else:
        into.parent.mkdir(parents=True, exist_ok=True)
        with into.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
                found.update(chunk)
                nbytes += memoryview(chunk).nbytes
    return {"sha256": found.hexdigest(), "nbytes": nbytes}
