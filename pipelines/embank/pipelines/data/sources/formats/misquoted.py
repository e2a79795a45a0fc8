"""Refuses text whose quotes don't fit the dialect that it is read in, with the line and the key that would read it."""

from __future__ import annotations

from pathlib import Path

from embank.pipelines.data.sources.formats.dialect import (
    Dialect,
    doubled_quotes,
    misplaced_quote,
    row_of_whole_lines,
)
from embank.tables.errors import DataError
from embank.tables.wording import shortened


def check_quotes(path: Path, data: bytes, first_line: int, dialect: Dialect, num_columns: int) -> None:
    """Refuse a block (without escape characters) in which a quote is neither at a cell's edge nor doubled, or that may
    be in another dialect than the one that was not stated.

    Raises:
        DataError: naming the line.
    """
    if dialect.quote is None or dialect.quote.encode() not in data:
        return
    position = misplaced_quote(data, dialect)
    if position is not None:
        raise DataError(misplaced(path, data, first_line, position, dialect))
    if dialect.escape is not None:
        return
    row = row_of_whole_lines(data, dialect, num_columns)
    if row is not None:
        line, words = _row(data, first_line, row, dialect)
        raise DataError(
            f"{path}, line {line}: the quote ({dialect.quote}) in {words!r} is closed in a later line, and each of "
            "these lines has "
            f"{num_columns} cells of its own. Set `quote: null` in the configuration if quotes are plain characters "
            "in this file, "
            f"`escape: '\"'` if quotes inside cells are doubled and this is one cell with line ends in it."
        )


def unclosed(path: Path, data: bytes, first_line: int, dialect: Dialect) -> str:
    """The message about a block whose last quote is not closed."""
    plain, _ = doubled_quotes(data, dialect)
    position = misplaced_quote(plain, dialect.doubled)
    if position is not None:
        return misplaced(path, plain, first_line, position, dialect.doubled)
    line = first_line + plain.count(b"\n", 0, int(dialect.doubled.quotes(plain)[0]))
    return (
        f"{path}, line {line}: a quote ({dialect.quote}) is opened and not closed. Close it, double it if it belongs "
        "to the text, "
        "or set `quote: null` in the configuration if the file uses no quotes."
    )


def misplaced(path: Path, data: bytes, first_line: int, position: int, dialect: Dialect) -> str:
    """The message about the quote at `position`."""
    start, end = data.rfind(b"\n", 0, position) + 1, data.find(b"\n", position)
    words = data[start : end if end >= 0 else len(data)].decode("utf-8", "replace")
    line = first_line + data.count(b"\n", 0, position)
    cure = "Double it and quote the whole cell"
    separator = dialect.separator.encode()
    before = data[start:position]
    trimmed = before.rstrip(b" \t".replace(separator, b""))
    if trimmed != before and trimmed[-1:] in (b"", separator):
        cure = "Remove the white space before it, or double it and quote the whole cell"
    if dialect.escape is None and f"\\{dialect.quote}".encode() in data[start:end]:
        cure = (
            f'Set `escape: "\\\\"` in the configuration if `\\{dialect.quote}` stands for a quote; else double it '
            "and quote the whole cell"
        )
    return (
        f"{path}, line {line}: a quote ({dialect.quote}) inside cell {_cell(data, position, dialect)} of "
        f"{shortened(words)!r}. {cure}. "
        "If quotes are plain characters in this file, set `quote: null`."
    )


def _cell(data: bytes, position: int, dialect: Dialect) -> int:
    """1-based number of the cell that `position` lies in; the quotes before it are right."""
    before, _ = doubled_quotes(data[:position], dialect)
    ends = dialect.doubled.line_ends(before)
    row = before[int(ends[-1]) + 1 :] if ends.size else before
    inside, cell = False, 1
    for character in row.decode("utf-8", "replace"):
        inside ^= character == dialect.quote
        cell += character == dialect.separator and not inside
    return cell


def _row(data: bytes, first_line: int, row: int, dialect: Dialect) -> tuple[int, str]:
    """Number of a row's first line, and this line, shortened."""
    ends = dialect.line_ends(data)
    start = int(ends[row - 1]) + 1 if row else 0
    words = data[start : data.find(b"\n", start)].decode("utf-8", "replace")
    return first_line + data.count(b"\n", 0, start), shortened(words)
