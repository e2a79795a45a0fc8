"""Times of a split by time, in all the forms that logs have."""

import datetime as dt
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.data import naive_prepare as naive

from embank.pipelines.data.prepare.prepare import prepare
from embank.pipelines.data.prepare.times import NO_TIME, TimeReader
from embank.pipelines.data.sources.formats.base import Chunk
from embank.tables.errors import DataError

SECOND = 1_000_000
NOON = int(dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC).timestamp()) * SECOND


def read(*columns: pl.Series | Sequence[Any]) -> list[float]:
    """Microseconds of columns that follow one another."""
    reader = TimeReader("ts")
    times: list[float] = []
    for column in columns:
        frame = pl.DataFrame({"ts": column})
        times += reader.read(Chunk(frame=frame, where=lambda row: f"log.csv, row {row + 1}", num_bytes=0)).tolist()
    return times


@pytest.mark.parametrize(
    "text",
    [
        "2024-05-01T14:00:00+02:00",
        "2024-05-01T14:00:00.000+0200",
        "2024-05-01 14:00+02",
        "2024-05-01 06:30:00 -05:30",
        "2024-05-01 12:00:00+00",
        "2024-05-01 12:00:00 UTC",
        "2024-05-01T12:00:00Z",
        "2024-05-01T12:00Z",
        " 2024-05-01T12:00:00.000000000Z ",
        "2024-05-01 12:00:00 GMT",
        "2024-05-02 01:45:00+13:45",
    ],
)
def test_text_with_an_offset(text: str) -> None:
    assert read([text, None, text]) == [NOON, NO_TIME, NOON]


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("2024-05-01", NOON - 12 * 3600 * SECOND),
        ("2024-05-01 12:00", NOON),
        ("2024-05-01T12:00:01", NOON + SECOND),
        ("2024-05-01 12:00:00.25", NOON + SECOND // 4),
    ],
)
def test_text_without_an_offset(text: str, micros: int) -> None:
    assert read([text, "2024-05-01T12:00:00"]) == [micros, NOON]


def test_one_kind_in_several_types() -> None:
    moment = dt.datetime(2024, 5, 1, 12)
    assert read(pl.Series([None], dtype=pl.Null), pl.Series([None, moment]), ["2024-05-01 12:00:00"]) == [
        NO_TIME,
        NO_TIME,
        NOON,
        NOON,
    ]
    assert read([dt.date(2024, 5, 1)], [moment]) == [NOON - 12 * 3600 * SECOND, NOON]
    zoned = pl.Series([moment]).dt.replace_time_zone("UTC")
    assert read(zoned, ["2024-05-01T14:00:00+02:00"]) == [NOON, NOON]
    assert read([None, 5], ["7.5"], [True]) == [NO_TIME, 5, 7.5, 1]
    assert read([dt.time(0, 0, 1)], [dt.time(0, 0, 2)]) == [SECOND, 2 * SECOND]
    assert read([dt.timedelta(seconds=1)]) == [SECOND]


MOMENT = pl.Series([dt.datetime(2024, 5, 1, 12)])
OTHER_KINDS: list[tuple[str, Any, Any, str]] = [
    ("a number after dates", ["2024-05-01"], ["5"], "is '5': expected a date such as 2024-05-31 12:00:00"),
    ("a date after numbers", ["5"], ["2024-05-01"], "is '2024-05-01': expected a number, as in the first row."),
    (
        "integers after timestamps",
        MOMENT,
        [1_714_564_800],
        "is 1714564800: expected a date such as 2024-05-31 12:00:00",
    ),
    ("timestamps after integers", [5], MOMENT, "is datetime.datetime(2024, 5, 1, 12, 0): expected a number, as in"),
    (
        "no offset after an offset",
        ["2024-05-01T12:00:00Z"],
        ["2024-05-01T12:00:00"],
        "expected a date with an offset such as 2024-05-31 12:00:00+02:00 (the same kind in all rows); times with an "
        "offset and times "
        "without one have no order. Mend",
    ),
    (
        "an offset after none",
        ["2024-05-01T12:00:00"],
        ["2024-05-01T12:00:00+00"],
        "times with an offset and times without one have no order. Mend",
    ),
    ("a zone after none", MOMENT, MOMENT.dt.replace_time_zone("UTC"), "expected a date such as"),
    (
        "no such day",
        ["2024-02-29"],
        ["2023-02-29"],
        "is '2023-02-29': expected a date such as 2024-05-31 12:00:00 (or a",
    ),
    ("no such day, said", ["2024-02-29"], ["2023-02-29"], "there is no such day or hour. Mend or delete the row."),
    (
        "no such hour",
        ["2024-02-29 00:00"],
        ["2024-02-29 25:00"],
        "there is no such day or hour. Mend or delete the row.",
    ),
    (
        "the first day",
        ["2024-02-30", "2024-03-01"],
        [],
        "is '2024-02-30': expected a date such as 2024-05-31 12:00:00 (or a",
    ),
    ("a list after numbers", [1], [[1]], "has type List(Int64), which is no time; convert it to a timestamp."),
    ("bytes after text", ["5"], [b"5"], "has type Binary, which is no time; convert it to a timestamp."),
    ("infinity", [1.0], [float("inf")], "is inf: expected a number"),
    ("a list", [[1]], [], "has type List(Int64), which is no time; convert it to a timestamp."),
]


@pytest.mark.parametrize(
    ("first", "second", "expected"), [case[1:] for case in OTHER_KINDS], ids=[c[0] for c in OTHER_KINDS]
)
def test_times_of_another_kind_have_no_order(first: Any, second: Any, expected: str) -> None:
    with pytest.raises(DataError) as caught:
        read(first, *([second] if len(second) else []))
    assert expected in str(caught.value)
    assert str(caught.value).startswith("log.csv, row 1: time column 'ts' ")


@pytest.mark.parametrize("format", ["parquet", "csv"])
def test_rows_without_a_time_go_to_training(tmp_path: Path, caplog: pytest.LogCaptureFixture, format: str) -> None:
    times = [None, *[dt.datetime(2024, 5, 1) + dt.timedelta(hours=hour) for hour in range(28)], None]
    frame = pl.DataFrame({"click": [0, 1] * 15, "row": range(30), "ts": times})
    (frame.write_parquet if format == "parquet" else frame.write_csv)(tmp_path / f"log.{format}")
    config = {"label": {"column": "click"}, "numeric": ["row"], "split": {"by": "time", "column": "ts"}}
    with caplog.at_level(logging.WARNING):
        prepare(config, [tmp_path / f"log.{format}"], tmp_path / "out", format=format)
    assert "time column 'ts' is missing in 2 rows; they go to training" in caplog.text
    rows = {split: [int(row["row"]) for row in naive.read_rows(tmp_path / "out", split)] for split in naive.SPLITS}
    assert rows == {"train": [*range(23), 29], "valid": [23, 24, 25], "test": [26, 27, 28]}


def test_training_needs_rows_with_a_time_too(tmp_path: Path) -> None:
    times = [None] * 27 + [1, 2, 3]
    pl.DataFrame({"click": [0, 1] * 15, "row": range(30), "ts": times}).write_parquet(tmp_path / "log.parquet")
    config = {"label": {"column": "click"}, "numeric": ["row"], "split": {"by": "time", "column": "ts"}}
    schema = prepare(config, [tmp_path / "log.parquet"], tmp_path / "out", format="parquet")
    assert [split.num_rows for split in schema.splits] == [28, 1, 1]
    pl.DataFrame({"click": [0, 1] * 15, "row": range(30), "ts": [None, *[1, 2] * 14, None]}).write_parquet(
        tmp_path / "two.parquet"
    )
    with pytest.raises(DataError, match="time column 'ts' has 2 different values; a split by time needs at least 3"):
        prepare(config, [tmp_path / "two.parquet"], tmp_path / "two", format="parquet")
