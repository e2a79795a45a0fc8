"""Delimited text, with or without a header: the reader under every text format.

The fast path hands each block to polars, after `misquoted` has seen that its quotes fit the dialect. polars fills the
missing cells of a short row with nulls and says nothing, so the separators of each block are counted (outside quotes)
and compared with what its rows should have, and line ends with the rows that came out; a block that fails goes to the
slow pass of `locate`, which names the line.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from embank.pipelines.data.loading.ahead import Clock, run_ahead
from embank.pipelines.data.sources.formats import locate
from embank.pipelines.data.sources.formats.base import Chunk, check_inputs, trimmed
from embank.pipelines.data.sources.formats.blocks import BLOCK_BYTES, Block, file_bytes, read_blocks
from embank.pipelines.data.sources.formats.dialect import Dialect, doubled_quotes
from embank.pipelines.data.sources.formats.header import Header
from embank.pipelines.data.sources.formats.misquoted import check_quotes, misplaced
from embank.pipelines.data.sources.formats.unquoted import with_their_characters, without_escapes
from embank.tables.errors import DataError

_log = logging.getLogger(__name__)
_SPACES = (b" ", b"\t", b"\r", b"\v", b"\f")


@dataclass(frozen=True, kw_only=True)
class TextLayout:
    """How a text file is laid out.

    Args:
        separator: one character.
        quote: one character, or None when quotes have no meaning.
        escape: how a quote inside a quoted cell is written, see `Dialect`.
        columns: names, for files without a header; None when the first line is the header.
        required: columns that the header must have, in any order, for layouts that are known.
        latin1: bytes are Latin-1 rather than UTF-8.
        substitute: bytes to replace before parsing, such as "::" by a tab.
        cure: words added to the message about a line with too few or too many cells.
    """

    separator: str
    quote: str | None = None
    escape: str | None = None
    columns: tuple[str, ...] | None = None
    required: tuple[str, ...] = ()
    latin1: bool = False
    substitute: tuple[bytes, bytes] | None = None
    cure: str = ""

    @property
    def dialect(self) -> Dialect:
        """Its characters."""
        return Dialect(separator=self.separator, quote=self.quote, escape=self.escape)


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
        suffixes: Sequence[str] = (),
    ) -> None:
        check_inputs(paths)
        self.name = str(paths[0])
        self.default = default
        self.files = list(paths)
        self.suffixes = tuple(suffixes)
        self.total_bytes = file_bytes(self.files)
        self._layout = layout
        headers = [_header(path, layout) for path in paths]
        filled = [header for header in headers if header is not None]
        if not filled:
            raise DataError(f"{paths[0]} is empty. Check that the file is complete.")
        self._headers = [header or filled[0] for header in headers]
        self.columns: tuple[str, ...] = filled[0].names
        self.twice = frozenset(name for header in filled for name in header.twice)
        for path, header in zip(self.files, self._headers, strict=True):
            header.check_same(path, self._headers[0], first=self.files[0])

    def types(self, column: str) -> Mapping[Path, pa.DataType]:
        """Nothing: all is text."""
        return {}

    def lacking(self, column: str) -> Collection[Path]:
        """The files that have no such column: all or none."""
        return [] if column in self.columns else self.files

    def chunks(self, columns: Sequence[str], *, where_held: Collection[str] = ()) -> Iterator[Chunk]:
        """Yield the named columns of all rows, as strings. A file without rows among others is left out, with a
        warning.

        Args:
            where_held: columns besides, if the files have them.
        """
        columns = [*columns, *(name for name in where_held if name in self.columns and name not in columns)]
        rows_before = 0
        for path, header in zip(self.files, self._headers, strict=True):
            num_rows = 0
            for chunk in run_ahead(self._chunks(path, header, columns), depth=1, clock=Clock()):
                num_rows += chunk.frame.height
                yield chunk
            if num_rows == 0 and len(self.files) > 1:
                _log.warning("%s has no rows", path)
            rows_before += num_rows
        if rows_before == 0:
            what = "is empty" if self._layout.columns else "has a header but no rows"
            more = f" (nor have {len(self.files) - 1} more files)" if len(self.files) > 1 else ""
            raise DataError(f"{self.name} {what}{more}. Check that the file is complete.")

    def frame(self) -> pl.DataFrame:
        """The whole source at once, for small files beside the main one."""
        return pl.concat([chunk.frame for chunk in self.chunks(self.columns)])

    def _chunks(self, path: Path, header: Header, columns: Sequence[str]) -> Generator[Chunk, None, None]:
        for block in run_ahead(self._blocks(path), depth=2, clock=Clock()):
            yield parse_block(block, header.names, columns, self._layout)

    def _blocks(self, path: Path) -> Generator[Block, None, None]:
        skip_header = self._layout.columns is None
        for block in read_blocks(path, dialect=self._layout.dialect, block_bytes=BLOCK_BYTES):
            block = _plain(block, self._layout)
            if skip_header:
                block, skip_header = _cut_first_row(block, self._layout.dialect)[1], False
            if block.data:
                yield block


def open_with_or_without(paths: Sequence[Path], layout: TextLayout, *, without: Sequence[str]) -> TextSource:
    """Files without a header that may lack some columns: their first line tells which of both it is.

    Args:
        layout: with all columns.
        without: those that may be absent, all together.

    Raises:
        DataError: see `TextSource`.
    """
    check_inputs(paths)
    assert layout.columns is not None
    fewer = tuple(name for name in layout.columns if name not in without)
    block = next((b for path in paths for b in read_blocks(path, dialect=layout.dialect, block_bytes=2**16)), None)
    line = b"" if block is None else block.data.partition(b"\n")[0]
    lacks = line.count(layout.separator.encode()) == len(fewer) - 1
    return TextSource(paths, replace(layout, columns=fewer) if lacks else layout)


def parse_block(block: Block, header: Sequence[str], columns: Sequence[str], layout: TextLayout) -> Chunk:
    """Parse one block, in UTF-8, with doubled quotes if any.

    Args:
        header: all columns of the file, in its order.
        columns: those to keep.

    Raises:
        DataError: naming the line that can't be read.
    """
    dialect = layout.dialect.doubled
    check_quotes(block.path, block.data, block.first_line, dialect, len(header))
    refuse = partial(locate.raise_structure, block, dialect=dialect, columns=header, cure=layout.cure)
    data = without_escapes(block.data, dialect, block.path) if dialect.escapes_alone else block.data
    try:
        frame = _parse(data, header, dialect)
    except (pl.exceptions.PolarsError, ValueError):
        refuse()
    if not _is_regular(data, frame.height, len(header), dialect.plain):
        refuse()
    frame = frame.select(columns)
    if data is not block.data:
        frame = with_their_characters(frame, dialect)
    quoted = dialect.quote is not None and dialect.quote.encode() in data
    if quoted or data is not block.data or _has_spaces(data, dialect):
        frame = trimmed(frame)
    return Chunk(frame=frame, where=_Where(block, dialect), num_bytes=block.num_bytes, path=block.path)


def _parse(data: bytes, names: Sequence[str], dialect: Dialect) -> pl.DataFrame:
    return pl.read_csv(
        data,
        has_header=False,
        separator=dialect.separator,
        quote_char=dialect.quote,
        schema=dict.fromkeys(names, pl.String),
        raise_if_empty=False,
    )


def _has_spaces(data: bytes, dialect: Dialect) -> bool:
    """Whether cells can have white space at their edges."""
    return not data.isascii() or any(space in data for space in _SPACES if space != dialect.separator.encode())


class _Where:
    """Row of a block to "FILE, line N"; keeps the block alive for as long as its chunk is in use."""

    def __init__(self, block: Block, dialect: Dialect) -> None:
        self._block, self._dialect = block, dialect

    def __call__(self, row: int) -> str:
        return f"{self._block.path}, line {locate.line_of_row(self._block, row, self._dialect)}"


def _is_regular(data: bytes, num_rows: int, num_columns: int, dialect: Dialect) -> bool:
    """Whether each parsed row can have had all its cells (polars refuses rows with more)."""
    return len(dialect.line_ends(data)) == num_rows and dialect.num_separators(data) == num_rows * (num_columns - 1)


def _plain(block: Block, layout: TextLayout) -> Block:
    """The block in UTF-8, with line feeds and doubled quotes."""
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
        data = data.replace(b"\r\r\n", b"\n").replace(b"\r\n", b"\n")
    doubled, stray = doubled_quotes(data, layout.dialect)
    if stray is not None:
        raise DataError(misplaced(block.path, data, block.first_line, stray, layout.dialect))
    return block if doubled is block.data else replace(block, data=doubled)


def _cut_first_row(block: Block, dialect: Dialect) -> tuple[Block, Block]:
    """The first row, and the others."""
    end = int(dialect.doubled.line_ends(block.data)[0]) + 1
    first, rest = block.data[:end], block.data[end:]
    line = block.first_line + first.count(b"\n")
    return replace(block, data=first), replace(block, data=rest, first_line=line, offset=block.offset + end)


def read_header(path: Path, layout: TextLayout) -> Header | None:
    """Column names in the first row of a file; None where the file is empty.

    Raises:
        DataError: the file is not text, or its header can't be used.
    """
    block = next(read_blocks(path, dialect=layout.dialect, block_bytes=2**20), None)
    if block is None or not block.data.strip():
        return None
    dialect = layout.dialect.doubled
    # Cut before it is decoded: what stands below the header is not its business.
    end = int(layout.dialect.line_ends(block.data)[0]) + 1
    row = _plain(replace(block, data=block.data[:end]), layout)
    if not row.data.strip():
        raise DataError(f"{path}, line 1: the line is empty, and should hold the names of the columns. Delete it.")
    cells = without_escapes(row.data, dialect, path) if dialect.escapes_alone else row.data
    numbers = [str(number) for number in range(dialect.num_separators(cells) + 1)]
    names = parse_block(row, numbers, numbers, layout).frame.row(0)
    return Header.of(path, ["" if name is None else str(name) for name in names], required=layout.required)


def _header(path: Path, layout: TextLayout) -> Header | None:
    return read_header(path, layout) if layout.columns is None else Header(names=layout.columns)
