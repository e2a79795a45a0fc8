"""Cells without quotes in which an escape character stands before separators and line ends: MySQL's and PostgreSQL's
own text files.

The parser knows no such cells, so what is escaped is swapped for bytes that the file doesn't hold, and swapped back in
the cells.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from embank.pipelines.data.sources.formats.dialect import Dialect, runs_of
from embank.tables.errors import DataError

_SEPARATOR, _NEWLINE = 0x1C, 0x1D
_LETTERS = {"n": _NEWLINE, "t": ord("\t"), "r": ord("\r")}


def without_escapes(data: bytes, dialect: Dialect, path: Path) -> bytes:
    r"""The cells with stand-ins for escaped separators and line ends. `\n`, `\t` and `\r` are a line feed, a tab and a
    carriage return, and two escape characters are one; before anything else an escape character is text, as in `\N`.

    Raises:
        DataError: the file holds a byte that would stand for something else.
    """
    assert dialect.escape is not None
    if dialect.escape.encode() not in data:
        return data
    for stand_in in (_SEPARATOR, _NEWLINE):
        if bytes([stand_in]) in data:
            raise DataError(
                f"{path} holds the control character 0x{stand_in:02X}, which can't be read with `escape` and `quote: "
                "null`. Remove it."
            )
    bytes_B = np.frombuffer(data, dtype=np.uint8)
    becomes = np.zeros(256, dtype=np.uint8)
    becomes[ord(dialect.escape)] = ord(dialect.escape)
    for letter, byte in _LETTERS.items():
        becomes[ord(letter)] = byte
    becomes[ord("\n")] = _NEWLINE
    becomes[becomes == ord(dialect.separator)] = _SEPARATOR
    becomes[ord(dialect.separator)] = _SEPARATOR
    at_E, index_E = runs_of(bytes_B, dialect.escape)
    escapes = at_E[(index_E % 2 == 0) & (at_E + 1 < len(data))]
    escapes = escapes[becomes[bytes_B[escapes + 1]] > 0]
    changed_B = bytes_B.copy()
    changed_B[escapes + 1] = becomes[bytes_B[escapes + 1]]
    return np.delete(changed_B, escapes).tobytes()


def with_their_characters(frame: pl.DataFrame, dialect: Dialect) -> pl.DataFrame:
    """The parsed cells with separators and line ends in place of their stand-ins."""
    cells = pl.all().str.replace_all(chr(_SEPARATOR), dialect.separator, literal=True)
    return frame.with_columns(cells.str.replace_all(chr(_NEWLINE), "\n", literal=True))
