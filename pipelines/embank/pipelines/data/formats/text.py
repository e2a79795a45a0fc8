"""Delimited text, with or without a header: the reader under every text format.

The fast path hands each block to polars. polars fills the missing cells of a short row with nulls and says nothing, so the
separators of each block are counted (outside quotes) and compared with what its rows should have; a block that fails goes to
the slow pass of `locate`, which names the line.
"""

from __future__ import annotations

import csv
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from embank.pipelines.data.ahead import Clock, run_ahead
from embank.pipelines.data.formats import locate
from embank.pipelines.data.formats.base import Chunk, check_inputs
from embank.pipelines.data.formats.blocks import BLOCK_BYTES, Block, file_bytes, inside_quotes, line_ends, read_blocks
from embank.tables.errors import DataError
from embank.tables.wording import did_you_mean, listing


@dataclass(frozen=True, kw_only=True)
class TextLayout:
    """How a text file is laid out.

    Args:
        separator: one character.
        quote: one character, or None when quotes have no meaning.
        columns: names, for files without a header; None when the first line is the header.
        required: columns that the header must have, in any order, for layouts that are known.
        latin1: bytes are Latin-1 rather than UTF-8.
        substitute: bytes to replace before parsing, such as "::" by a tab.
        cure: words added to the message about a line with too few or too many cells.
    """

    separator: str
    quote: str | None = None
    columns: tuple[str, ...] | None = None
    required: tuple[str, ...] = ()
    latin1: bool = False
    substitute: tuple[bytes, bytes] | None = None
    cure: str = ""


class TextSource:
    """Text files of one layout, read one after the other.

    Raises:
        DataError: a file is missing, empty, has a wrong header, or (while reading) a line that can't be read.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        layout: TextLayout,
        *,
        default: Mapping[str, Any] | None = None,
    ) -> None:
        check_inputs(paths)
        self.name = str(paths[0])
        self.default = default
        self.total_bytes = file_bytes(list(paths))
        self._paths = list(paths)
        self._layout = layout
        self._headers = [layout.columns or read_header(path, layout) for path in paths]
        self.columns: tuple[str, ...] = self._headers[0]
        _check_same(self._paths, self._headers)

    def chunks(self, columns: Sequence[str]) -> Iterator[Chunk]:
        """Yield the named columns of all rows, as strings."""
        for path, header in zip(self._paths, self._headers, strict=True):
            num_rows = 0
            for chunk in run_ahead(self._chunks(path, header, columns), depth=1, clock=Clock()):
                num_rows += chunk.frame.height
                yield chunk
            if num_rows == 0:
                what = "is empty" if self._layout.columns else "has a header but no rows"
                raise DataError(f"{path} {what}. Check that the file is complete.")

    def frame(self) -> pl.DataFrame:
        """The whole source at once, for small files beside the main one."""
        return pl.concat([chunk.frame for chunk in self.chunks(self.columns)])

    def _chunks(self, path: Path, header: Sequence[str], columns: Sequence[str]) -> Generator[Chunk, None, None]:
        for block in run_ahead(self._blocks(path), depth=2, clock=Clock()):
            yield parse_block(block, header, columns, self._layout)

    def _blocks(self, path: Path) -> Generator[Block, None, None]:
        skip_header = self._layout.columns is None
        for block in read_blocks(path, quote=self._layout.quote, block_bytes=BLOCK_BYTES):
            block = _as_utf8(block, self._layout)
            if skip_header:
                block, skip_header = _without_first_line(block), False
            if block.data:
                yield block


def parse_block(block: Block, header: Sequence[str], columns: Sequence[str], layout: TextLayout) -> Chunk:
    """Parse one block.

    Args:
        header: all columns of the file, in its order.
        columns: those to keep.

    Raises:
        DataError: naming the line that can't be read.
    """
    refuse = partial(
        locate.raise_structure,
        block,
        separator=layout.separator,
        quote=layout.quote,
        columns=header,
        cure=layout.cure,
    )
    try:
        frame = pl.read_csv(
            block.data,
            has_header=False,
            separator=layout.separator,
            quote_char=layout.quote,
            schema=dict.fromkeys(header, pl.String),
            raise_if_empty=False,
        )
    except (pl.exceptions.PolarsError, ValueError) as error:
        refuse(cause=str(error).splitlines()[0])
    if not _is_regular(block.data, frame.height, len(header), layout):
        refuse(cause="the cells don't add up")
    frame = frame.select(columns)
    if layout.quote is not None and layout.quote.encode() in block.data:
        frame = frame.with_columns(pl.when(pl.col(name) != "").then(pl.col(name)).alias(name) for name in columns)
    return Chunk(frame=frame, where=_Where(block, layout.quote), num_bytes=block.num_bytes)


class _Where:
    """Row of a block to "FILE, line N"; keeps the block alive for as long as its chunk is in use."""

    def __init__(self, block: Block, quote: str | None) -> None:
        self._block, self._quote = block, quote

    def __call__(self, row: int) -> str:
        return f"{self._block.path}, line {locate.line_of_row(self._block, row, self._quote)}"


def _is_regular(data: bytes, num_rows: int, num_columns: int, layout: TextLayout) -> bool:
    """Whether each parsed row can have had all its cells (polars refuses rows with more)."""
    is_separator = np.frombuffer(data, dtype=np.uint8) == ord(layout.separator)
    inside = inside_quotes(data, layout.quote)
    if inside is not None:
        is_separator &= ~inside
        return len(line_ends(data, layout.quote)) == num_rows and int(is_separator.sum()) == num_rows * (
            num_columns - 1
        )
    return data.count(b"\n") == num_rows and np.count_nonzero(is_separator) == num_rows * (num_columns - 1)


def _as_utf8(block: Block, layout: TextLayout) -> Block:
    data = block.data
    if not data.isascii():
        if layout.latin1:
            data = data.decode("latin-1").encode("utf-8")
        else:
            try:
                data.decode("utf-8")
            except UnicodeDecodeError as error:
                locate.raise_encoding(block, error)
    if layout.substitute is not None:
        data = data.replace(*layout.substitute)
    if b"\r\n" in data:
        data = data.replace(b"\r\n", b"\n")
    return block if data is block.data else replace(block, data=data)


def _without_first_line(block: Block) -> Block:
    end = block.data.find(b"\n") + 1
    return replace(block, data=block.data[end:], first_line=block.first_line + 1, offset=block.offset + end)


def read_header(path: Path, layout: TextLayout) -> tuple[str, ...]:
    """Column names in the first line of a file.

    Raises:
        DataError: the file is empty, not text, or its header can't be used.
    """
    block = next(read_blocks(path, quote=None, block_bytes=2**20), None)
    if block is None or not block.data.strip():
        raise DataError(f"{path} is empty. Check that the file is complete.")
    line = _as_utf8(replace(block, data=block.data[: block.data.find(b"\n") + 1]), layout).data.decode("utf-8")
    quoting = {"quotechar": layout.quote} if layout.quote else {"quoting": csv.QUOTE_NONE}
    names = tuple(name.strip() for name in next(csv.reader([line], delimiter=layout.separator, **quoting), []))
    _check_header(path, names, layout)
    return names


def _check_header(path: Path, names: tuple[str, ...], layout: TextLayout) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}, line 1: the header names column {twice[0]!r} twice. Rename one of them.")
    if "" in names:
        raise DataError(f"{path}, line 1: column {names.index('') + 1} of the header has no name. Give it one.")
    for required in layout.required:
        if required not in names:
            hint = did_you_mean(required, [name for name in names if name not in layout.required])
            raise DataError(
                f"{path}, line 1: the header has no column {required!r}.{hint} It has: {listing(names)}. "
                f"This format needs: {listing(layout.required, most=40)}."
            )


def _check_same(paths: list[Path], headers: list[tuple[str, ...]]) -> None:
    for path, header in zip(paths, headers, strict=True):
        if set(header) != set(headers[0]):
            odd = sorted(set(header) ^ set(headers[0]))
            raise DataError(
                f"{path}, line 1: the header differs from that of {paths[0]} in column {odd[0]!r}. "
                "Prepare files of one layout together."
            )
