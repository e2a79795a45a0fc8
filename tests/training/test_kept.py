"""Raw columns beside scores, where files differ in what they hold them as."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embank.pipelines.data.sources.formats.parquet import ParquetSource
from embank.pipelines.runs.kept import KeptColumns
from embank.tables import DataError

SECOND = datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)


def source_of(folder: Path, *columns: pa.Array) -> ParquetSource:
    paths = [folder / f"{number}.parquet" for number in range(len(columns))]
    for path, column in zip(paths, columns, strict=True):
        pq.write_table(pa.table({"k": column, "other": list(range(len(column)))}), path)
    return ParquetSource(paths)


def kept_of(source: ParquetSource, *, is_csv: bool = False) -> list[pl.DataFrame]:
    kept = KeptColumns(source, ["k", "k"], is_csv=is_csv)
    assert kept.names == ["k"]
    return [kept.of(chunk) for chunk in source.chunks(["k"])]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (
            pa.array([Decimal("1.10")], pa.decimal128(5, 2)),
            pa.array([Decimal("1.234")], pa.decimal128(9, 3)),
            [Decimal("1.100"), Decimal("1.234")],
        ),
        (pa.array([1], pa.int32()), pa.array([2**40], pa.int64()), [1, 2**40]),
        (pa.array([1], pa.uint64()), pa.array([-1], pa.int8()), [1, -1]),
        (pa.array([0.5], pa.float32()), pa.array([0.1], pa.float64()), [0.5, 0.1]),
        (pa.array([3], pa.int64()), pa.array([0.5], pa.float32()), [3.0, 0.5]),
        (pa.nulls(1), pa.array([7], pa.int64()), [None, 7]),
        (pa.nulls(1), pa.array(["a"]), [None, "a"]),
        (pa.array(["b"]).dictionary_encode(), pa.array(["a"], pa.large_string()), ["b", "a"]),
        (
            pa.array([SECOND], pa.timestamp("us", "UTC")),
            pa.array([SECOND + timedelta(microseconds=1)], pa.timestamp("ns", "UTC")),
            [SECOND, SECOND + timedelta(microseconds=1)],
        ),
        (pa.array([[1]], pa.list_(pa.int32())), pa.array([[2**40, 3]], pa.list_(pa.int64())), [[1], [2**40, 3]]),
    ],
)
def test_values_stay_what_they_are(first: pa.Array, second: pa.Array, expected: list[Any], tmp_path: Path) -> None:
    frames = kept_of(source_of(tmp_path, first, second))
    assert len({frame.schema["k"] for frame in frames}) == 1
    assert pl.concat(frames)["k"].to_list() == expected


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (pa.array([1]), pa.array(["a"]), "has type int64 in .*0.parquet and large_string in .*1.parquet, and no type"),
        (
            pa.array([Decimal("1234567.89")], pa.decimal128(10, 2)),
            pa.array([0.5], pa.float32()),
            r"has type decimal128\(38, 2\) in .*0.parquet and float in",
        ),
        (
            pa.array([[0.5]], pa.list_(pa.float64())),
            pa.array([[Decimal("1.1")]], pa.list_(pa.decimal128(20, 2))),
            "has type large_list<.*double> in .*0.parquet and large_list<.*decimal128",
        ),
        (pa.array(["a"]), pa.array([b"a"]), "has type large_string in .*0.parquet and large_binary in"),
        (pa.array([True]), pa.array([1]), "has type bool in .*0.parquet and int64 in"),
        (pa.array([2**63], pa.uint64()), pa.array([-1]), "0.parquet: column 'k' has a value that int64 can't hold"),
        (pa.array([2**60 + 1]), pa.array([0.5]), "0.parquet: column 'k' has a value that double can't hold"),
        (
            pa.array([2**62], pa.timestamp("us")),
            pa.array([0], pa.timestamp("ns")),
            "0.parquet, row 1: column 'k' is",
        ),
    ],
)
def test_what_no_type_holds_is_refused(first: pa.Array, second: pa.Array, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        kept_of(source_of(tmp_path, first, second))


@pytest.mark.parametrize("column", [pa.array([[1]]), pa.array([b"a"]), pa.array([timedelta(1)])])
def test_csv_has_no_place_for_it_in_any_file(column: pa.Array, tmp_path: Path) -> None:
    source = source_of(tmp_path, pa.nulls(1), column)
    with pytest.raises(DataError, match=r"1\.parquet: column 'k' has type .*, which CSV can't hold"):
        kept_of(source, is_csv=True)
