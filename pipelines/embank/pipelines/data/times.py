"""Times as numbers that keep their order: numbers as they are, dates and ISO 8601 strings as microseconds since 1970."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from embank.pipelines.data.formats.base import Chunk
from embank.pipelines.data.numbers import to_float64
from embank.tables.errors import DataError

_FORMATS = (
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%dT%H:%M:%S%.fZ",
)


class TimeReader:
    """Reads a time column; its first row decides whether it holds numbers or dates."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._is_date: bool | None = None

    def read(self, chunk: Chunk) -> npt.NDArray[np.float64]:
        """Times of a chunk, [N] float64.

        Raises:
            DataError: a time is missing, can't be read, or is of the other kind.
        """
        raw = chunk.frame[self._column]
        if raw.dtype.is_temporal():
            raw = _microseconds(raw)
        values_N, _ = to_float64(raw)
        if self._is_date is None and len(raw):
            self._is_date = raw.dtype == pl.String and bool(np.isnan(values_N[0]))
        if self._is_date:
            values_N = _from_iso(raw)
        if not np.isfinite(values_N).all():
            raise DataError(self._message(chunk, int(np.argmin(np.isfinite(values_N)))))
        return values_N

    def _message(self, chunk: Chunk, row: int) -> str:
        value = chunk.frame[self._column][row]
        shown = "is missing" if value is None else f"is {value!r}"
        expected = "a date such as 2024-05-31 12:00:00 (or a number, the same kind in all rows)"
        if not self._is_date:
            expected = "a number, as in the first row"
        return (
            f"{chunk.where(row)}: time column {self._column!r} {shown}: expected {expected}. Mend or delete the line."
        )


def _microseconds(column: pl.Series) -> pl.Series:
    times = column if column.dtype in (pl.Time, pl.Duration) else column.cast(pl.Datetime("us"))
    return times.cast(pl.Int64)


def _from_iso(column: pl.Series) -> npt.NDArray[np.float64]:
    best = np.full(len(column), np.nan)
    for pattern in _FORMATS:
        dtype = pl.Datetime("us") if "%H" in pattern else pl.Date
        parsed = column.str.strptime(dtype, pattern, strict=False).cast(pl.Datetime("us")).cast(pl.Int64)
        values_N = parsed.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        best = np.where(np.isnan(best), values_N, best)
        if not np.isnan(best).any():
            break
    return best
