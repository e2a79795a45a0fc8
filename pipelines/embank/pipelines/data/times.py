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


def read_times(chunk: Chunk, name: str) -> npt.NDArray[np.float64]:
    """Times of a column, [N] float64.

    Raises:
        DataError: a time is missing or can't be read.
    """
    raw = chunk.frame[name]
    values_N, _ = to_float64(_microseconds(raw) if raw.dtype.is_temporal() else raw)
    if raw.dtype == pl.String and np.isnan(values_N).any():
        values_N = _from_iso(raw)
    if not np.isfinite(values_N).all():
        row = int(np.argmin(np.isfinite(values_N)))
        value = raw[row]
        shown = "is missing" if value is None else f"is {value!r}"
        raise DataError(
            f"{chunk.where(row)}: time column {name!r} {shown}: expected a number or a date such as 2024-05-31 12:00:00 "
            "(the same kind in all rows). Mend or delete the line."
        )
    return values_N


def _microseconds(column: pl.Series) -> pl.Series:
    return column if column.dtype == pl.Time else column.cast(pl.Datetime("us"))


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
