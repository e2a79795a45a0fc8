"""Columns whose type differs between the files of an input, and files without rows."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data import naive_prepare as naive
from tests.data.typed_columns import DAY, MOMENT, NUM_ROWS, D, cycle, run, write

from embank.tables.errors import DataError


def test_parts_without_rows_and_columns_without_values(tmp_path: Path) -> None:
    """As Spark and pandas write them: no rows and other types, or rows and null types."""
    write(tmp_path / "in/part-1.parquet", x=cycle([5], pa.int64()))
    write(tmp_path / "in/part-2.parquet", x=pa.nulls(NUM_ROWS))
    write(tmp_path / "in/part-3.parquet", x=cycle([D("5.00")], pa.decimal128(9, 2)), more=cycle([1], pa.int8()))
    pq.write_table(pa.table({"x": pa.nulls(0)}), tmp_path / "in/part-0.parquet")
    pq.write_table(pa.table({}), tmp_path / "in/part-4.parquet")
    for role in ({"categorical": ["x"]}, {"numeric": ["x"]}):
        schema = run(tmp_path / "in", tmp_path / f"out-{next(iter(role))}", **role)
        assert [split.num_rows for split in schema.splits] == [48, 12, 12]
    vocabulary = naive.read_vocabulary(tmp_path / "out-categorical", "x")
    assert vocabulary[1:] == [("5", "token", 32), (None, "missing", 16)]


def test_no_part_has_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"click": pa.nulls(0)}), tmp_path / "log.parquet")
    with pytest.raises(DataError, match=r"log\.parquet has no rows\. Check that the file is complete\."):
        run(tmp_path / "log.parquet", tmp_path / "out")


def test_parts_in_which_a_value_would_have_two_tokens(tmp_path: Path) -> None:
    write(tmp_path / "in/1.parquet", x=cycle([1, 0], pa.int64()))
    write(tmp_path / "in/2.parquet", x=cycle([D("1.00"), None], pa.decimal128(9, 2)))
    write(tmp_path / "in/3.parquet", x=cycle(["1"], pa.string()))
    run(tmp_path / "in", tmp_path / "out", categorical=["x"])
    assert [token for token, _, _ in naive.read_vocabulary(tmp_path / "out", "x")[1:]] == ["1", None, "0"]
    write(tmp_path / "in/4.parquet", x=cycle([True], pa.bool_()))
    for number, role in enumerate(({"categorical": ["x"]}, {"hashed": ["x"]}, {"group": "x"})):
        with pytest.raises(
            DataError, match=r"4\.parquet, row 1: column 'x' holds booleans, and numbers at .*1\.parquet, row 1,"
        ):
            run(tmp_path / "in", tmp_path / f"out-{number}", **role)
    run(tmp_path / "in", tmp_path / "numbers", numeric=["x"])  # true is the number 1
    for first, second in ((pa.date32(), pa.timestamp("us")), (pa.timestamp("us"), pa.timestamp("us", "UTC"))):
        for number, dtype in enumerate((first, second)):
            write(
                tmp_path / f"times/{number}.parquet", x=cycle([MOMENT if pa.types.is_timestamp(dtype) else DAY], dtype)
            )
        with pytest.raises(DataError, match=r"column 'x' holds timestamps.*, and (dates|timestamps) at"):
            run(tmp_path / "times", tmp_path / "times-out", categorical=["x"])


def test_ids_that_are_rounded_floats(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As pandas makes them of 64-bit integers with a missing value."""
    columns = {
        "x": cycle([2.0**53, 1.0, float("inf")], pa.float64()),
        "y": cycle([[2.0**24], None], pa.list_(pa.float32())),
        "z": cycle([2.0**53 - 1, float("inf"), None], pa.float64()),
    }
    write(tmp_path / "log.parquet", **columns)
    run(tmp_path / "log.parquet", tmp_path / "out", categorical=["x", "z"], multivalued={"y": None}, numeric=[])
    lines = [record.getMessage().split(",")[0] for record in caplog.records if "not exact" in record.getMessage()]
    assert lines == [f"column '{name}' holds floats of 2**{bits} and more" for name, bits in (("x", 53), ("y", 24))]
    assert [token for token, _, _ in naive.read_vocabulary(tmp_path / "out", "x")[1:]] == [
        "9007199254740992",
        "1",
        "inf",
    ]


def test_a_part_that_lacks_a_column(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", x=cycle([5], pa.int64()), unused=cycle([5], pa.int64()))
    write(tmp_path / "b.parquet")
    assert run(tmp_path, tmp_path / "out").splits[0].num_rows == 32
    with pytest.raises(DataError, match=r"b\.parquet has no column 'x', as .*a\.parquet has\. Prepare files of one"):
        run(tmp_path, tmp_path / "other", categorical=["x"])
