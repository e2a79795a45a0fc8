"""Text files as blocks of whole lines: plain or gzip, cut at line ends that are not inside quotes, with line
numbers."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from embank.pipelines.data.sources.formats.dialect import Dialect
from embank.pipelines.data.sources.formats.misquoted import unclosed
from embank.tables.errors import DataError

BLOCK_BYTES = 16 * 2**20
_MAX_QUOTED_BYTES = 64 * 2**20
_HEAD_BYTES = 2**20
_GZIP_MAGIC = b"\x1f\x8b"
_FOREIGN = {
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"PAR1": "a Parquet file; use --format parquet",
    b'{"': "JSON, which is not read; write it as CSV, TSV or Parquet",
    b"[{": "JSON, which is not read; write it as CSV, TSV or Parquet",
    b"BZh": "a bzip2 file; unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd file; unpack it first",
    codecs.BOM_UTF16_LE: "text in UTF-16; save it as UTF-8 (`iconv -f utf-16 -t utf-8`)",
    codecs.BOM_UTF16_BE: "text in UTF-16; save it as UTF-8 (`iconv -f utf-16 -t utf-8`)",
}


@dataclass(frozen=True, kw_only=True)
class Block:
    """Whole lines of one file.

    Attributes:
        path: the file.
        data: the lines, each ending in a line feed.
        first_line: 1-based number of the first line.
        offset: position of `data` in the (unpacked) file, in bytes.
        num_bytes: bytes of the file as stored that were read for this block.
    """

    path: Path
    data: bytes
    first_line: int
    offset: int
    num_bytes: int


def read_blocks(path: Path, *, dialect: Dialect, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """Cut a text file into blocks of whole rows. Lines that end in a lone carriage return come out ending in a line
    feed.

    Raises:
        DataError: the file is not text, is damaged, or a quote is never closed.
    """
    with path.open("rb") as stored:
        text = _open_text(stored, path)
        carriage_returns = _ends_lines_with_cr(path)
        line, offset, seen, data = 1, 0, 0, b""
        while True:
            piece = _read(text, block_bytes, path)
            piece = piece.replace(b"\r", b"\n") if carriage_returns else piece
            data = data + piece if data else piece
            if offset == 0 and data.startswith(codecs.BOM_UTF8):
                data, offset = data[3:], 3
            if not piece:
                data = data[: _end_of_text(data, dialect)]
                data += b"\n" if data else b""
            cut = _hold_blank_lines(data, _last_end(data, dialect, at_end=not piece), dialect)
            if cut:
                whole, data, now = data[:cut], data[cut:], stored.tell()
                yield Block(path=path, data=whole, first_line=line, offset=offset, num_bytes=now - seen)
                line, offset, seen = line + whole.count(b"\n"), offset + cut, now
            if len(data) > _MAX_QUOTED_BYTES + block_bytes or (data and not piece):
                raise DataError(_unclosed(path, data, dialect, line))
            if not piece:
                return


def _ends_lines_with_cr(path: Path) -> bool:
    """Whether lines end in carriage returns alone (old Mac files, some exports of spreadsheets): no line feed in the
    first MiB."""
    with path.open("rb") as stored:
        head = _read(_open_text(stored, path), _HEAD_BYTES + 1, path)
    return b"\r" in head[:_HEAD_BYTES] and b"\n" not in head


def _open_text(stored: IO[bytes], path: Path) -> IO[bytes]:
    start = stored.read(4)
    stored.seek(0)
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            raise DataError(f"{path} is {what}.")
    if start.startswith(_GZIP_MAGIC):
        return io.BufferedReader(gzip.GzipFile(fileobj=stored), buffer_size=2**20)
    return stored


def _read(text: IO[bytes], size: int, path: Path) -> bytes:
    try:
        return text.read(size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged: {error}. Copy or download the file again.") from error


def _last_end(data: bytes, dialect: Dialect, *, at_end: bool) -> int:
    """Length of the longest prefix of whole rows; at the end of the file all of it, if its quotes are closed."""
    if at_end and (dialect.quote is None or dialect.quote.encode() not in data):
        return len(data)
    return dialect.last_end(data)


def _end_of_text(data: bytes, dialect: Dialect) -> int:
    """Length without the line ends behind the last cell. One that is escaped belongs to the cell."""
    end = len(data.rstrip(b"\r\n"))
    if not dialect.escapes_alone or dialect.escape is None or data[end : end + 1] != b"\n":
        return end
    num_escapes = end - len(data[:end].rstrip(dialect.escape.encode()))
    return end + num_escapes % 2  # an even number of them escapes itself


def _hold_blank_lines(data: bytes, cut: int, dialect: Dialect) -> int:
    """Leave empty lines at the end of a block to the next one, which drops them if the file ends there."""
    end = _end_of_text(data[:cut], dialect) if data[max(0, cut - 4) : cut].count(b"\n") > 1 else -1
    return cut if end < 0 else (data.find(b"\n", end) + 1 if end else 0)


def _unclosed(path: Path, data: bytes, dialect: Dialect, first_line: int) -> str:
    if dialect.quotes(data).size == 0:
        return f"{path}, line {first_line}: the line is longer than {_MAX_QUOTED_BYTES >> 20} MiB. Is this a text file?"
    return unclosed(path, data, first_line, dialect)


def file_bytes(paths: list[Path]) -> int:
    """Total size of the files as stored."""
    return sum(os.stat(path).st_size for path in paths)
