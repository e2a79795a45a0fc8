"""What a spelling under `null_values` is equal to: in every type of Parquet, in text, and in rows that are served."""

import datetime as dt
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tests.data import naive_prepare as naive
from tests.data.test_preprocessing import assert_as_written, assert_same, encoded, rules_of

from embank.pipelines.config.columns import parse_config, read_columns
from embank.pipelines.data.prepare.nulls import NullValues
from embank.pipelines.data.prepare.prepare import prepare
from embank.pipelines.data.preprocessing.encode import RowEncoder
from embank.pipelines.data.preprocessing.encoded import Encoded
from embank.pipelines.data.preprocessing.few import FewRows
from embank.pipelines.data.preprocessing.frames import chunk_of
from embank.pipelines.data.preprocessing.rules import Preprocessing
from embank.tables.errors import ConfigError, DataError

NUM_ROWS = 20
SPLIT = {"by": "ratio", "ratios": [0.6, 0.2, 0.2]}


def prepared(folder: Path, frame: pl.DataFrame, *, format: str = "parquet", **config: Any) -> Path:
    """A log of `frame` repeated, and a label, prepared in `folder / "out"`."""
    log = pl.concat([frame] * (NUM_ROWS // len(frame))).with_columns(y=pl.Series([0, 1] * (NUM_ROWS // 2)))
    folder.mkdir(exist_ok=True)
    path = folder / f"log.{format}"
    log.write_parquet(path) if format == "parquet" else log.write_csv(path)
    prepare({"label": "y", "split": SPLIT} | config, path, folder / "out", format=format)
    return folder / "out"


def tokens(out: Path, name: str, count: int) -> list[Any]:
    return [naive.decode(out, name, row[name]) for row in naive.read_rows(out, "train")[:count]]


def missing(out: Path, name: str, count: int) -> list[bool]:
    """Of a numeric column with an indicator."""
    return [row[f"{name}_missing"] == 1.0 for row in naive.read_rows(out, "train")[:count]]


def served(rules: Preprocessing, rows: list[dict[str, Any]]) -> Encoded:
    """By frames, and by the shorter way where it can."""
    config = rules.config
    chunk = chunk_of(rows, rules.columns, numeric=list(config.numeric), nulls=config.null_values)
    whole, few = RowEncoder(rules, remembers=False).encode(chunk), FewRows(rules).encode(rows)
    if few is not None:
        assert_same(few, whole)
    return whole


NOON, DAY = dt.datetime(2024, 5, 31, 12), dt.date(9999, 12, 31)
TYPED: list[tuple[Sequence[Any], pl.DataType | type[pl.DataType], str]] = [
    ([DAY, dt.date(2024, 1, 1)], pl.Date, "9999-12-31"),
    ([NOON, dt.datetime(2024, 1, 1)], pl.Datetime("ms"), "2024-05-31 12:00:00"),
    ([NOON, dt.datetime(2024, 1, 1)], pl.Datetime("ns"), "2024-05-31 12:00:00"),
    ([NOON, dt.datetime(2024, 1, 1)], pl.Datetime("us", "UTC"), "2024-05-31 12:00:00Z"),
    ([NOON.replace(microsecond=500_000), NOON], pl.Datetime("us"), "2024-05-31 12:00:00.5"),
    ([dt.time(0, 0), dt.time(12, 30)], pl.Time, "00:00:00"),
    ([False, True], pl.Boolean, "false"),
    ([b"NULL", b"x"], pl.Binary, "NULL"),
    ([b" NULL ", b"x"], pl.Binary, "NULL"),
    ([-999, 5], pl.Int16, "-999.0"),
    ([-999.0, 0.5], pl.Float64, "-999"),
    ([0.1, 0.5], pl.Float32, "0.1"),
    ([Decimal("9.90"), Decimal("9.91")], pl.Decimal(10, 2), "9.9"),
]


@pytest.mark.parametrize(("values", "dtype", "spelling"), TYPED)
def test_a_value_of_any_type_is_missing_by_its_spelling(
    tmp_path: Path, values: Sequence[Any], dtype: Any, spelling: str
) -> None:
    frame = pl.DataFrame({"c": pl.Series(values, dtype=dtype)})
    out = prepared(tmp_path, frame, categorical=["c"], null_values=[spelling])
    first, other = tokens(out, "c", 2)
    assert first is None
    assert other is not None
    rules = rules_of(out)
    assert_as_written(encoded(rules, [tmp_path / "log.parquet"]), out)
    if dtype != pl.Float32:  # Python's 0.1 is the 64-bit one
        assert served(rules, frame.to_dicts()).ids["c"].tolist() == [
            row["c"] for row in naive.read_rows(out, "train")[:2]
        ]


@pytest.mark.parametrize(
    ("dtype", "spelling"),
    [
        (pl.Date, "9999-12-31 00:00:00"),
        (pl.Datetime("ns"), "9999-12-31 00:00:00"),  # beyond 64 bits of nanoseconds: another year if it wrapped
        (pl.Datetime("ms"), "2024-05-31 12:00:00.0001"),
        (pl.Datetime("us"), "2024-05-31 12:00:00Z"),
        (pl.Datetime("us", "UTC"), "2024-05-31 12:00:00"),
        (pl.Date, "2024-5-31"),
        (pl.UInt8, "-1"),
        (pl.Int64, "1e400"),
        (pl.Int64, "0.5"),
        (pl.Float32, "16777217"),
        (pl.Decimal(38, 2), "1.005"),
        (pl.Boolean, "0"),
        (pl.Duration("us"), "0"),
    ],
)
def test_what_is_spelled_otherwise_is_no_value_of_a_type(dtype: Any, spelling: str) -> None:
    values = NullValues.of([spelling]).typed(dtype)
    assert values is None or values.len() == 0


def test_bytes_are_missing_in_hashed_columns_and_lists(tmp_path: Path) -> None:
    frame = pl.DataFrame({"h": [b"NULL", b"\xff"], "b": [[b"NULL", b"\xff"], [b"a"]], "t": [[b"NULL", b"x"], [b"a"]]})
    config: dict[str, Any] = {
        "categorical": ["h"],
        "multivalued": {"b": None, "t": None},
        "hashed": ["h", "b"],
        "null_values": ["NULL"],
    }
    out = prepared(tmp_path / "stated", frame, **config)
    rows = naive.read_rows(out, "train")[:2]
    bare = naive.read_rows(prepared(tmp_path / "bare", frame, **{**config, "null_values": []}), "train")[:2]
    empty = pl.DataFrame({"h": [None, b"\xff"], "b": [[b"\xff"], [b"a"]], "t": [[b"x"], [b"a"]]})
    assert rows == naive.read_rows(prepared(tmp_path / "empty", empty, **{**config, "null_values": []}), "train")[:2]
    assert rows[0]["b"] == bare[0]["b"][1:]
    assert rows[0]["h"] != bare[0]["h"]


def test_lists_of_numbers_lose_members_by_value(tmp_path: Path) -> None:
    frame = pl.DataFrame({"b": [[-999, 5], [7]], "f": [[9.9, 1.5], [2.0]]})
    out = prepared(tmp_path, frame, multivalued={"b": None, "f": None}, null_values=["-999.0", "9.90"])
    assert tokens(out, "b", 2) == [["5"], ["7"]]
    assert tokens(out, "f", 2) == [["1.5"], ["2"]]
    rows = naive.read_rows(out, "train")[:2]
    one = served(rules_of(out), frame.to_dicts())
    for name in ("b", "f"):
        assert [one.bags[name].slice(row, row + 1).tolist() for row in range(2)] == [row[name] for row in rows]


CELLS = ["-999", "-999.0", "-999.00", "-9.99e2", "-998.9", "5"]


@pytest.mark.parametrize("spelling", [-999, "-999.0", -999.0])
def test_numbers_are_missing_by_value_in_text_and_in_types(tmp_path: Path, spelling: Any) -> None:
    numeric = {"x": {"transform": "none", "missing": "indicator"}}
    config: dict[str, Any] = {"numeric": numeric, "categorical": ["c"], "null_values": [spelling]}
    text = pl.DataFrame({"x": CELLS, "c": ["a"] * len(CELLS)})
    text = pl.concat([text, text.head(4)])  # of ten rows
    out = prepared(tmp_path / "csv", text, format="csv", **config)
    want = [True, True, True, True, False, False]
    assert missing(out, "x", 6) == want
    typed = text.with_columns(pl.col("x").cast(pl.Float64))
    assert missing(prepared(tmp_path / "parquet", typed, **config), "x", 6) == want
    prepare(None, tmp_path / "csv" / "log.csv", tmp_path / "like", like=out)
    assert naive.read_rows(tmp_path / "like", "train") == naive.read_rows(out, "train")
    rules = rules_of(out)
    assert_as_written(encoded(rules, [tmp_path / "csv" / "log.csv"]), out)
    for cell, is_missing in zip(CELLS, want, strict=True):
        for value in (cell, float(cell), np.float32(cell)):
            for other in (None, 5, "5", 5.5, True):  # whatever stands in other rows
                rows: list[dict[str, Any]] = [{"x": value, "c": "a"}, {"x": other, "c": "a"}]
                assert served(rules, rows).dense[0, 1] == is_missing, (value, other)


def test_times_are_numbers_too_and_categories_are_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    times = ["-999.0"] * 5 + [str(row) for row in range(15)]
    frame = pl.DataFrame({"c": ["-999.0", "-999", "5", "6"] * 5, "t": times})
    split = {"by": "time", "column": "t", "ratios": [0.9, 0.05, 0.05]}
    out = prepared(tmp_path, frame, format="csv", categorical=["c"], null_values=[-999], split=split)
    assert "time column 't' is missing in 5 rows" in caplog.text
    assert {row[0] for row in naive.read_vocabulary(out, "c")} == {None, "-999.0", "5", "6"}
    frame = frame.with_columns(y=pl.Series(["1", "-999.0", "0", "1"] * 5))
    (tmp_path / "label").mkdir()
    frame.write_csv(tmp_path / "label" / "log.csv")
    config: dict[str, Any] = {
        "label": {"column": "y", "positive": ">= 1"},
        "categorical": ["c"],
        "null_values": [-999],
        "split": SPLIT,
    }
    with pytest.raises(DataError, match="line 3: label 'y' is missing"):
        prepare(config, tmp_path / "label" / "log.csv", tmp_path / "label" / "out", format="csv")


FAR = 10**18


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_whole_numbers_near_a_null_value_stay(tmp_path: Path, format: str) -> None:
    cells = [FAR, FAR + 1, FAR + 49, -FAR, 2**53 + 1]
    frame = pl.DataFrame({"x": cells, "c": cells})
    numeric = {"x": {"transform": "none", "missing": "indicator"}}
    out = prepared(tmp_path, frame, format=format, numeric=numeric, categorical=["c"], null_values=[FAR, str(2**53)])
    want = [True, False, False, False, False]
    assert tokens(out, "c", 5) == [None if gone else str(cell) for gone, cell in zip(want, cells, strict=True)]
    assert missing(out, "x", 5) == want
    rules = rules_of(out)
    assert_as_written(encoded(rules, [tmp_path / f"log.{format}"]), out)
    for cell, gone in zip([*cells, 2**53], [*want, True], strict=True):
        for value in (cell, np.int64(cell), str(cell), Decimal(cell), f"+0{cell}" if cell > 0 else str(cell)):
            one = served(rules, [{"x": value, "c": "1"}, {"x": 0.5, "c": "1"}])
            assert one.dense[0, 1] == gone, value
        missing_id = rules.index.missing_id("c")
        assert (served(rules, [{"x": 1, "c": cell}]).ids["c"][0] == missing_id) == gone


def test_booleans_of_numeric_columns(tmp_path: Path) -> None:
    frame = pl.DataFrame({"x": [False, True], "c": ["a", "b"]})
    numeric = {"x": {"transform": "none", "missing": "indicator"}}
    for number, null in enumerate(("false", 0)):
        folder = tmp_path / str(number)
        frame = frame.with_columns(click=pl.Series([False, True]))
        label = "y" if null == "false" else "click"  # where 0 is missing, false is a class
        out = prepared(folder, frame, label=label, numeric=numeric, categorical=["c"], null_values=[null])
        assert missing(out, "x", 2) == [True, False]
        for other in (True, 5.5, "5", None):
            assert served(rules_of(out), [{"x": False, "c": "a"}, {"x": other, "c": "a"}]).dense[0, 1] == 1.0


def test_numbers_are_kept_as_the_file_has_them(tmp_path: Path) -> None:
    path = tmp_path / "columns.yaml"

    def read(nulls: str) -> list[str]:
        path.write_text(f"label: y\ncategorical: [c]\nnull_values: {nulls}\n")
        return parse_config(read_columns(path), origin="columns.yaml").null_values

    assert read("[9.90, -999.0, 1.0e+3, 007, '0x1F', +5, .nan, x, ~]") == [
        *("9.90", "-999.0", "1.0e+3", "007", "0x1F", "+5", "nan", "x", "NULL", "Null", "null")
    ]
    for odd, value in (("1_000", "1000"), ("0x1F", "31"), ("1_0.5", "10.5")):
        with pytest.raises(
            ConfigError, match=rf"null_values has {odd}, which YAML reads as {value}; .*quote it.*'{odd}'"
        ):
            read(f"[x, {odd}]")
    frame = pl.DataFrame({"c": ["9.90", "9.9", "5", "6"]})
    read("[9.90]")
    (tmp_path / "log").mkdir()
    out = prepared(tmp_path / "log", frame, format="csv", **{**read_columns(path), "label": "y", "split": SPLIT})
    assert tokens(out, "c", 3) == [None, "9.9", "5"]


def test_labels_of_two_classes_are_no_numbers(tmp_path: Path) -> None:
    frame = pl.DataFrame({"c": ["0", "0.0"]})
    out = prepared(tmp_path, frame, format="csv", categorical=["c"], null_values=[0.0])
    assert tokens(out, "c", 2) == ["0", None]
