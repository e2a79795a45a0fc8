"""Times as numbers that keep their order: numbers as they are, dates and ISO 8601 text as microseconds since 1970
(UTC).

Text is `2024-05-31`, `2024-05-31 12:00`, `2024-05-31T12:00:00.5`, and with an offset `...+02:00`, `+0200`, `+02`, `Z`,
`UTC`. All rows
of a column are of one kind: times with an offset and times without one have no order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from embank.pipelines.data.prepare.numbers import to_float64
from embank.pipelines.data.sources.formats.base import Chunk
from embank.tables.errors import DataError
from embank.tables.wording import shown

NO_TIME = -np.inf
"""Of a row whose time is missing: before all others."""

_CLOCK = r"^(\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?)"
_OFFSET = r"\s*(Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)$"
_DAY = r"^(\d{4}-\d{2}-\d{2})$"
_LIKE_A_DATE = r"^\d{4}-\d{2}-\d{2}"
_FORMATS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M")

_NUMBER, _DATE, _ZONED = "a number", "a date", "a date with an offset from UTC"
_OF_DAY, _DURATION = "a time of day", "a duration"
_EXAMPLES = {
    _DATE: "a date such as 2024-05-31 12:00:00 (or a number, the same kind in all rows)",
    _ZONED: "a date with an offset such as 2024-05-31 12:00:00+02:00 (the same kind in all rows)",
}

Times = npt.NDArray[np.float64]


class TimeReader:
    """Reads a time column; its first value decides which kind all are of."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._kind: str | None = None

    def read(self, chunk: Chunk) -> Times:
        """Times of a chunk, [N] float64, `NO_TIME` where the cell is missing.

        Raises:
            DataError: a time can't be read, is of another kind than the first, or the column's type has no order of
                time.
        """
        raw = chunk.frame[self._column]
        present_N = raw.is_not_null().to_numpy()
        if not present_N.any():
            return np.full(len(raw), NO_TIME)
        if self._kind is None:
            self._kind = _kind_of(raw, first=int(np.argmax(present_N)))
        values_N = self._values(raw)
        unread_N = present_N & ~np.isfinite(values_N)
        if unread_N.any():
            raise DataError(self._message(chunk, int(np.argmax(unread_N))))
        return np.where(present_N, values_N, NO_TIME)

    @property
    def has_dates(self) -> bool:
        """Whether the times read so far are of days: microseconds since 1970."""
        return self._kind in (_DATE, _ZONED)

    def _values(self, raw: pl.Series) -> Times:
        """Nan where a time is missing, can't be read, or is of another kind."""
        if raw.dtype == pl.String and self._kind in (_DATE, _ZONED):
            return _from_text(raw, zoned=self._kind == _ZONED)
        if self._kind is None or _kind_of(raw, first=0) != self._kind:
            return np.full(len(raw), np.nan)
        return to_float64(_microseconds(raw) if raw.dtype.is_temporal() else raw)[0]

    def _message(self, chunk: Chunk, row: int) -> str:
        raw = chunk.frame[self._column]
        if raw.dtype not in (pl.String, pl.Boolean) and not (raw.dtype.is_numeric() or raw.dtype.is_temporal()):
            return (
                f"{chunk.where(row)}: time column {self._column!r} has type {raw.dtype}, which is no time; convert "
                "it to a timestamp."
            )
        expected = _EXAMPLES.get(str(self._kind), f"{self._kind}, as in the first row")
        value = raw[row]
        if isinstance(value, str) and pl.Series([value]).str.contains(_LIKE_A_DATE).item() and self._kind in _EXAMPLES:
            has_offset = pl.Series([value]).str.contains(_CLOCK + _OFFSET).item()
            if has_offset != (self._kind == _ZONED):
                expected += "; times with an offset and times without one have no order"
            else:
                expected += "; there is no such day or hour"
        return (
            f"{chunk.where(row)}: time column {self._column!r} is {shown(value)}: expected {expected}. Mend or "
            "delete the row."
        )


def _kind_of(raw: pl.Series, *, first: int) -> str | None:
    """The kind of a column's values; of text, that of the value at `first`."""
    dtype = raw.dtype
    if isinstance(dtype, pl.Datetime):
        return _DATE if dtype.time_zone is None else _ZONED
    if dtype == pl.Date:
        return _DATE
    if dtype == pl.Time:
        return _OF_DAY
    if isinstance(dtype, pl.Duration):
        return _DURATION
    if dtype != pl.String:
        return _NUMBER if dtype.is_numeric() or dtype == pl.Boolean else None
    value = raw.slice(first, 1)
    if np.isfinite(to_float64(value)[0]).all() or value.is_null().all():
        return _NUMBER
    return _ZONED if value.str.strip_chars().str.contains(_CLOCK + _OFFSET).item() else _DATE


def same_time(column: pl.Series, text: str) -> pl.Series:
    """Whether each time of a date or timestamp column is the one that a text says, [N] bool."""
    kind = _kind_of(column, first=0)
    if kind not in (_DATE, _ZONED):
        return pl.Series([False]).new_from_index(0, len(column))
    wanted = _from_text(pl.Series([text]), zoned=kind == _ZONED)[0]
    same: pl.Series = (_microseconds(column) == wanted).fill_null(False)
    return same


def _microseconds(column: pl.Series) -> pl.Series:
    if column.dtype == pl.Time:
        return column.cast(pl.Int64) / 1000  # nanoseconds since midnight
    return column.cast(pl.Duration("us") if isinstance(column.dtype, pl.Duration) else pl.Datetime("us")).cast(pl.Int64)


def _from_text(column: pl.Series, *, zoned: bool) -> Times:
    """Microseconds since 1970 [N], nan where there is no date, or one of the other kind."""
    text = column.str.strip_chars()
    clock = text.str.extract(_CLOCK + (_OFFSET if zoned else "$")).str.replace("T", " ", literal=True)
    best_N = _parsed(clock, _FORMATS[0])
    if np.isnan(best_N).any():
        best_N = np.where(np.isnan(best_N), _parsed(clock, _FORMATS[1]), best_N)
    if zoned:
        return best_N - _offset_microseconds(text)
    if np.isnan(best_N).any():
        days = text.str.extract(_DAY).str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us"))
        best_N = np.where(np.isnan(best_N), _numbers(days.cast(pl.Int64)), best_N)
    return best_N


def _parsed(clock: pl.Series, pattern: str) -> Times:
    return _numbers(clock.str.to_datetime(pattern, time_unit="us", strict=False).cast(pl.Int64))


def _offset_microseconds(text: pl.Series) -> Times:
    offset = text.str.extract(_CLOCK + _OFFSET, 2).replace(["Z", "UTC", "GMT"], "+00")
    digits = offset.str.slice(1).str.replace(":", "", literal=True).str.pad_end(4, "0").cast(pl.Int64)
    minutes = digits // 100 * 60 + digits % 100
    return _numbers(minutes * 60_000_000 * pl.Series(np.where((offset.str.slice(0, 1) == "-").fill_null(False), -1, 1)))


def _numbers(values: pl.Series) -> Times:
    return values.cast(pl.Float64).fill_null(float("nan")).to_numpy()
