"""Which characters separate, quote and escape in a text file, and what its bytes mean by them.

Everything here is about positions in a block of bytes, found with numpy: quotes are few beside bytes, so files without
them cost nothing, and files with them one pass. A block is cut, checked and (where it has an escape character)
rewritten to doubled quotes before a parser sees it. A parser that is told the wrong dialect swallows whole lines
without a word; the check makes that an error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
_NEWLINE = 10
_NONE: Positions = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How cells are separated and quoted.

    Args:
        separator: one character.
        quote: one character, or None when quotes have no meaning.
        escape: how a quote inside a quoted cell is written: None doubled, where what may be another dialect is refused;
            the quote itself: doubled, stated by the user, so nothing is in doubt; another character: it stands before
                the quote.
            Without quotes: the character before separators and line ends that belong to a cell.
    """

    separator: str
    quote: str | None = None
    escape: str | None = None

    @property
    def has_escapes(self) -> bool:
        """Whether a character other than the quote escapes."""
        return self.quote is not None and self.escape not in (None, self.quote)

    @property
    def escapes_alone(self) -> bool:
        """Whether cells are not quoted but escaped, see `unquoted`."""
        return self.quote is None and self.escape is not None

    @property
    def plain(self) -> Dialect:
        """The dialect without escapes where cells are escaped alone."""
        return Dialect(separator=self.separator) if self.escapes_alone else self

    @property
    def doubled(self) -> Dialect:
        """The dialect of a block after `doubled_quotes`."""
        return Dialect(separator=self.separator, quote=self.quote, escape=self.quote) if self.has_escapes else self

    def quotes(self, data: bytes) -> Positions:
        """Positions of the quotes that open and close: all but those behind an escape character."""
        if self.quote is None or self.quote.encode() not in data:
            return _NONE
        bytes_B = np.frombuffer(data, dtype=np.uint8)
        at_Q = np.flatnonzero(bytes_B == ord(self.quote))
        return at_Q[~_behind(bytes_B, at_Q, self.escape)] if self.has_escapes else at_Q

    def line_ends(self, data: bytes) -> Positions:
        """Positions of the line feeds that end rows: those outside quotes, and not escaped where cells are escaped
        alone."""
        bytes_B = np.frombuffer(data, dtype=np.uint8)
        ends = np.flatnonzero(bytes_B == _NEWLINE)
        if self.escapes_alone:
            return ends[~_behind(bytes_B, ends, self.escape)]
        at_Q = self.quotes(data)
        return ends[~_inside(at_Q, ends)] if at_Q.size else ends

    def num_separators(self, data: bytes) -> int:
        """How many separators stand outside quotes; of a dialect without an escape character."""
        bytes_B = np.frombuffer(data, dtype=np.uint8)
        is_separator_B = bytes_B == ord(self.separator)
        if self.quote is not None and self.quote.encode() in data:
            # The parity of the quotes before each byte: separators are too many to be looked up one by one.
            is_separator_B &= (np.cumsum(bytes_B == ord(self.quote), dtype=np.uint8) & 1) == 0
        return int(np.count_nonzero(is_separator_B))

    def last_end(self, data: bytes) -> int:
        """Length of the longest prefix of whole rows."""
        if self.escapes_alone:
            ends = self.line_ends(data)
            return int(ends[-1]) + 1 if ends.size else 0
        at_Q, end = self.quotes(data), len(data)
        while True:
            end = data.rfind(b"\n", 0, end)
            before = int(np.searchsorted(at_Q, end))
            if end < 0 or before % 2 == 0:
                return end + 1
            end = int(at_Q[before - 1])  # inside a quoted cell: go on before the quote that opens it


def _inside(at_Q: Positions, where: Positions) -> npt.NDArray[np.bool_]:
    """Which positions lie behind an odd number of quotes."""
    return (np.searchsorted(at_Q, where) & 1).astype(np.bool_)


def _behind(bytes_B: Bytes, at_Q: Positions, escape: str | None) -> npt.NDArray[np.bool_]:
    """Which positions stand right behind an odd number of escape characters: an even number escapes itself."""
    behind = np.zeros(len(at_Q), dtype=np.bool_)
    if escape is None:
        return behind
    at_E, index_E = runs_of(bytes_B, escape)
    if at_E.size:
        found = np.minimum(np.searchsorted(at_E, at_Q - 1), len(at_E) - 1)
        behind = (at_E[found] == at_Q - 1) & (index_E[found] % 2 == 0)
    return behind


def runs_of(bytes_B: Bytes, character: str) -> tuple[Positions, Positions]:
    """Positions of a character, and the place of each in its run of neighbours (0 the first)."""
    at_E = np.flatnonzero(bytes_B == ord(character))
    starts = np.flatnonzero(np.diff(at_E, prepend=-2) != 1)
    first = np.repeat(starts, np.diff(np.append(starts, len(at_E))))
    return at_E, np.arange(len(at_E)) - first


def doubled_quotes(data: bytes, dialect: Dialect) -> tuple[bytes, int | None]:
    """The same cells with doubled quotes in place of escaped ones, for a parser that knows these only.

    Inside quotes an escape character before a quote makes it part of the text, and before itself stands for one of
    itself; before anything else, and outside quotes, it is text, as Spark writes it (MySQL's files with enclosed text
    read the same way).

    Returns:
        The bytes, and the position of the first escaped quote outside quotes, which has no meaning (None if there is
        none).
    """
    if not dialect.has_escapes or dialect.escape is None or dialect.escape.encode() not in data:
        return data, None
    assert dialect.quote is not None
    bytes_B = np.frombuffer(data, dtype=np.uint8)
    at_E, index_E = runs_of(bytes_B, dialect.escape)
    inside_E = _inside(dialect.quotes(data), at_E)
    following_E = np.append(bytes_B[1:], _NEWLINE)[at_E]
    escapes_E = index_E % 2 == 0
    before_quote_E = escapes_E & (following_E == ord(dialect.quote))
    stray = at_E[before_quote_E & ~inside_E]
    changed_B = bytes_B.copy()
    changed_B[at_E[before_quote_E]] = ord(dialect.quote)
    dropped = at_E[escapes_E & inside_E & (following_E == ord(dialect.escape))]
    return np.delete(changed_B, dropped).tobytes(), int(stray[0]) if stray.size else None


def misplaced_quote(data: bytes, dialect: Dialect) -> int | None:
    """Position of the first quote that is neither at a cell's edge nor doubled; None when there is none.

    No file with escaped quotes passes: such a quote stands behind a backslash, so it can only be a closing one here.
    Between two of them lies then an odd number of others, but an even number by the dialect that wrote them; and with a
    single one the last quote is open.

    Args:
        data: starts at a row; may end inside a quoted cell.
        dialect: one without an escape character.
    """
    at_Q = dialect.quotes(data)
    bytes_B = np.frombuffer(data, dtype=np.uint8)
    is_edge = np.zeros(256, dtype=np.bool_)
    is_edge[[ord(dialect.separator), _NEWLINE]] = True
    opening, closing = at_Q[0::2], at_Q[1::2]
    bad_opening = opening[~is_edge[bytes_B[opening - 1]] & (opening > 0)]
    bad_closing = closing[~is_edge[bytes_B[np.minimum(closing + 1, len(data) - 1)]] & (closing + 1 < len(data))]
    # What is left may double with its neighbour: a closing quote right before an opening one.
    bad = np.concatenate(
        [bad_opening[~_among(closing, bad_opening - 1)], bad_closing[~_among(opening, bad_closing + 1)]]
    )
    return int(bad.min()) if bad.size else None


def _among(sorted_values: Positions, wanted: Positions) -> npt.NDArray[np.bool_]:
    """Which wanted values are in the sorted ones."""
    found = np.searchsorted(sorted_values, wanted)
    inside = found < len(sorted_values)
    inside[inside] = sorted_values[found[inside]] == wanted[inside]
    return inside


def row_of_whole_lines(data: bytes, dialect: Dialect, num_columns: int) -> int | None:
    """Index of the first row of several lines each of which has a row's number of cells when quotes are not looked at.

    In a file whose quotes are plain characters all rows of several lines are such ones, made where one cell starts with
    a quote and a later one ends with one; a text that goes over several lines hardly ever has the right number of
    separators in all of them.
    """
    ends = dialect.line_ends(data)
    bytes_B = np.frombuffer(data, dtype=np.uint8)
    all_ends = np.flatnonzero(bytes_B == _NEWLINE)
    if len(all_ends) == len(ends):
        return None
    separators = np.flatnonzero(bytes_B == ord(dialect.separator))
    in_line = np.diff(np.searchsorted(separators, all_ends), prepend=0)
    row_of_line = np.searchsorted(ends, all_ends)
    lines = np.bincount(row_of_line, minlength=len(ends))
    whole = np.bincount(row_of_line[in_line == num_columns - 1], minlength=len(ends))
    doubtful = np.flatnonzero((lines > 1) & (lines == whole))
    return int(doubtful[0]) if doubtful.size else None
