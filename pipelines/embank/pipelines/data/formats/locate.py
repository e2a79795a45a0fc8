"""The slow pass over one block of text that a fast check has refused: find the line, and say what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from embank.pipelines.data.formats.blocks import Block, line_ends
from embank.tables.errors import DataError
from embank.tables.wording import listing

_SHOWN_CHARACTERS = 60


def raise_encoding(block: Block, error: UnicodeDecodeError) -> NoReturn:
    """Name the line and the byte that is not UTF-8.

    Raises:
        DataError: always.
    """
    line = block.first_line + block.data.count(b"\n", 0, error.start)
    raise DataError(
        f"{block.path}, line {line}: byte 0x{block.data[error.start]:02X} at offset {block.offset + error.start} of the "
        f"file is not UTF-8. Convert the file, for example with `iconv -f latin1 -t utf-8 {block.path.name}`."
    )


def raise_structure(
    block: Block, *, separator: str, quote: str | None, columns: Sequence[str], cure: str, cause: str
) -> NoReturn:
    """Name the first line whose number of cells or whose quoting is wrong.

    Args:
        columns: the columns that each line should have.
        cure: what else to try, added to the message.
        cause: what the fast path said, for the case that no line looks wrong here.

    Raises:
        DataError: always.
    """
    rows = _rows(block, quote)
    for line, words in rows:
        problem = _problem(words, separator=separator, quote=quote, columns=columns)
        if problem:
            raise DataError(f"{block.path}, line {line}: {problem}{cure}")
    last = block.first_line + block.data.count(b"\n") - 1
    raise DataError(
        f"{block.path}, lines {block.first_line} to {last} ({len(rows)} rows): can't be parsed: {cause}. "
        "Check the separator and the quotes."
    )


def line_of_row(block: Block, row: int, quote: str | None) -> int:
    """Line number on which row `row` of the block starts."""
    if row == 0:
        return block.first_line
    ends = line_ends(block.data, quote)
    return block.first_line + block.data.count(b"\n", 0, int(ends[row - 1]) + 1)


def _rows(block: Block, quote: str | None) -> list[tuple[int, str]]:
    ends = np.append(-1, line_ends(block.data, quote))
    rows, line = [], block.first_line
    for start, end in zip(ends[:-1] + 1, ends[1:], strict=True):
        piece = block.data[start : end + 1]
        rows.append((line, piece.decode("utf-8").rstrip("\r\n")))
        line += piece.count(b"\n")
    return rows


def _problem(words: str, *, separator: str, quote: str | None, columns: Sequence[str]) -> str | None:
    num_cells, quoting = _scan(words, separator=separator, quote=quote)
    if quoting is not None:
        return f"a quote ({quote}) inside cell {quoting} of {_shown(words)!r}. Double it and quote the whole cell."
    expected = len(columns)
    if not words.strip() and expected > 1:
        return f"the line is empty, but {expected} cells are expected ({listing(columns, most=6)}). Delete the line."
    if num_cells < expected:
        return (
            f"the line has {num_cells} cells, but {expected} are expected ({listing(columns, most=6)}): "
            f"{_shown(words)!r}. Complete or delete the line."
        )
    if num_cells > expected:
        return (
            f"the line has {num_cells} cells, but {expected} are expected ({listing(columns, most=6)}): "
            f"{_shown(words)!r}. Quote cells that hold a separator ({separator!r}), or mend the line."
        )
    return None


def _scan(words: str, *, separator: str, quote: str | None) -> tuple[int, int | None]:
    """Number of cells, and the 1-based cell with a misplaced quote, if any."""
    if quote is None or quote not in words:
        return words.count(separator) + 1, None
    cell, position = 1, 0
    while position < len(words):
        if words[position] != quote:
            end = words.find(separator, position)
            end = len(words) if end < 0 else end
            if quote in words[position:end]:
                return cell, cell
        else:
            end = _closing(words, position, quote)
            if end < len(words) and words[end] != separator:
                return cell, cell
        if end >= len(words):
            return cell, None
        cell, position = cell + 1, end + 1
    return cell, None


def _closing(words: str, position: int, quote: str) -> int:
    """Position after the quote that closes the one at `position`."""
    position += 1
    while True:
        position = words.find(quote, position)
        if position < 0:
            return len(words)
        if words[position + 1 : position + 2] != quote:
            return position + 1
        position += 2


def _shown(words: str) -> str:
    return words if len(words) <= _SHOWN_CHARACTERS else words[: _SHOWN_CHARACTERS - 3] + "..."
