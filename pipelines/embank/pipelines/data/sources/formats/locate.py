"""The slow pass over one block of text that a fast check has refused: find the line, and say what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from embank.pipelines.data.sources.formats.blocks import Block
from embank.pipelines.data.sources.formats.dialect import Dialect
from embank.tables.errors import DataError
from embank.tables.wording import listing, shortened


def raise_encoding(block: Block, error: UnicodeDecodeError) -> NoReturn:
    """Name the line and the byte that is not UTF-8.

    Raises:
        DataError: always.
    """
    line = block.first_line + block.data.count(b"\n", 0, error.start)
    raise DataError(
        f"{block.path}, line {line}: byte 0x{block.data[error.start]:02X} at offset {block.offset + error.start} of "
        "the "
        f"file is not UTF-8. Convert the file, for example with `iconv -f latin1 -t utf-8 {block.path.name}`."
    )


def raise_structure(block: Block, *, dialect: Dialect, columns: Sequence[str], cure: str) -> NoReturn:
    """Name the first line whose number of cells is wrong. Its quotes are right: `misquoted` has seen to that.

    Args:
        columns: the columns that each line should have.
        cure: what else to try, added to the message.

    Raises:
        DataError: always.
    """
    rows = _rows(block, dialect)
    for line, words in rows:
        problem = _problem(words, dialect, columns)
        if problem:
            raise DataError(f"{block.path}, line {line}: {problem}{cure}")
    last = block.first_line + block.data.count(b"\n") - 1
    raise DataError(
        f"{block.path}, lines {block.first_line} to {last} ({len(rows)} rows): the rows and cells that come "
        "out are not those that line ends and separators make. Check the separator and the quotes."
    )


def line_of_row(block: Block, row: int, dialect: Dialect) -> int:
    """Line number on which row `row` of the block starts."""
    if row == 0:
        return block.first_line
    ends = dialect.line_ends(block.data)
    return block.first_line + block.data.count(b"\n", 0, int(ends[row - 1]) + 1)


def _rows(block: Block, dialect: Dialect) -> list[tuple[int, str]]:
    ends = np.append(-1, dialect.line_ends(block.data))
    rows, line = [], block.first_line
    for start, end in zip(ends[:-1] + 1, ends[1:], strict=True):
        piece = block.data[start : end + 1]
        rows.append((line, piece.decode("utf-8").rstrip("\r\n")))
        line += piece.count(b"\n")
    return rows


def _problem(words: str, dialect: Dialect, columns: Sequence[str]) -> str | None:
    num_cells, expected = _num_cells(words, dialect), len(columns)
    names = listing(columns, most=6)
    if not words.strip() and expected > 1:
        return f"the line is empty, but {expected} cells are expected ({names}). Delete the line."
    fact = f"the line has {num_cells} cells, but {expected} are expected ({names}): {shortened(words)!r}."
    if num_cells < expected:
        return f"{fact} Complete or delete the line."
    if num_cells > expected:
        if dialect.quote is None:
            return (
                f"{fact} Quotes have no meaning here, so no cell can hold a separator ({dialect.separator!r}). "
                "Mend the line."
            )
        return f"{fact} Quote cells that hold a separator ({dialect.separator!r}), or mend the line."
    return None


def _num_cells(words: str, dialect: Dialect) -> int:
    """One more than the separators that are not quoted or escaped."""
    if dialect.escapes_alone:
        words = re.sub(re.escape(str(dialect.escape)) + ".", "", words, flags=re.DOTALL)
    if dialect.quote is None:
        return words.count(dialect.separator) + 1
    return 1 + sum(outside.count(dialect.separator) for outside in words.split(dialect.quote)[::2])
