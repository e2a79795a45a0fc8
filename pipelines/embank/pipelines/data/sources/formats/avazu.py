"""Avazu's click-through rate contest (Kaggle): `train.csv` or `train.gz`, 24 columns with a header.

`hour` is YYMMDDHH. It becomes the features `hour` (of the day, 0-23) and `weekday` (1 Monday - 7 Sunday) and, as
`time`, the key of the default split, which cuts between hours. `id` is different in every row and is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from embank.pipelines.data.prepare.tokens import as_tokens
from embank.pipelines.data.sources.formats.base import Chunk, Format, Source, TextOptions, check_inputs
from embank.pipelines.data.sources.formats.derived import DerivedSource
from embank.pipelines.data.sources.formats.text import TextLayout, TextSource, read_header
from embank.tables.errors import DataError

PLAIN = (
    *("C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category"),
    *("device_id", "device_ip", "device_model", "device_type", "device_conn_type"),
    *(f"C{number}" for number in range(14, 22)),
)
HEADER = ("id", "click", "hour", *PLAIN)
DERIVED = ("time", "hour", "weekday")
DEFAULT = {
    "label": {"column": "click"},
    "categorical": ["hour", "weekday", *PLAIN],
    "split": {"by": "time", "column": "time", "ratios": [0.8, 0.1, 0.1]},
}


def open_files(paths: Sequence[Path], options: TextOptions) -> Source:
    """Open Avazu files."""
    check_inputs(paths)
    for path in paths:
        header = read_header(path, TextLayout(separator=","))
        names = set(header.names) if header else set()
        if names == set(HEADER) - {"click"}:
            raise DataError(
                f"{path} has no column 'click': it is Avazu's test file, whose labels are secret. Give the training "
                "file "
                "(train.gz); `prepare` makes validation and test splits of it."
            )
    layout = TextLayout(separator=",", required=HEADER)
    return DerivedSource(
        TextSource(paths, layout),
        columns=("click", *DERIVED, *PLAIN, "id"),
        needs=_needs,
        derive=_derive,
        default=DEFAULT,
    )


def _needs(columns: Sequence[str]) -> Sequence[str]:
    raw = ["hour" if name in DERIVED else name for name in columns]
    return list(dict.fromkeys(raw))


def _derive(chunk: Chunk, columns: Sequence[str]) -> Iterator[Chunk]:
    if not set(columns) & set(DERIVED):
        yield chunk
        return
    raw = pl.col("hour")
    day = pl.lit("20") + raw.str.slice(0, 6)
    date = day.str.to_date("%Y%m%d", strict=False)
    hour = raw.str.slice(6).cast(pl.Int32, strict=False)
    frame = chunk.frame.with_columns(
        raw.alias("time"), hour.cast(pl.String).alias("hour"), date.dt.weekday().cast(pl.String).alias("weekday")
    )
    good = chunk.frame.select(
        ((raw.str.len_bytes() == 8) & date.is_not_null() & hour.is_between(0, 23)).fill_null(False)
    ).to_series()
    if not good.all():
        row = int(good.arg_min() or 0)
        value = chunk.frame["hour"][row]
        raise DataError(
            f"{chunk.where(row)}: column 'hour' is {value!r}; expected YYMMDDHH, such as 14102100. Mend the line.",
            field="hour",
            row=row,
            value=value,
        )
    yield Chunk(frame=frame.select(columns), where=chunk.where, num_bytes=chunk.num_bytes)


def open_rows(paths: Sequence[Path], options: TextOptions) -> Source:
    """Open Avazu files, the test file included, to score their rows."""
    return TextSource(paths, TextLayout(separator=",", required=("hour", *PLAIN)))


def _derive_rows(chunk: Chunk, columns: Sequence[str]) -> Chunk:
    text = chunk.frame.with_columns(as_tokens(chunk, "hour").alias("hour")) if "hour" in chunk.frame.columns else None
    return next(_derive(chunk if text is None else replace(chunk, frame=text), columns))


FORMAT = Format(
    name="avazu",
    summary="Avazu (Kaggle) train.csv or train.gz",
    open=open_files,
    open_rows=open_rows,
    needs=_needs,
    derive=_derive_rows,
    example={"hour": "14102100"},
)
