"""What values of Arrow's types mean in each role that a column can have: the right result, or an error that names the
column."""

import datetime as dt
import decimal
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data import naive_prepare as naive
from tests.data.typed_columns import BASE, DAY, MOMENT, NUM_ROWS, UUID, D, cycle, rows_of, run, write

from embank.pipelines.config.columns import parse_config
from embank.pipelines.data.prepare.encode import Encoder
from embank.pipelines.data.prepare.prepare import prepare
from embank.pipelines.data.prepare.spelling import spelled
from embank.pipelines.data.sources.formats.parquet import ParquetSource
from embank.tables.errors import DataError, EmbankError, WorkError
from embank.tables.ids.token_hash import token_id

TOKENS: list[tuple[pa.DataType, list[Any], list[str | None]]] = [
    (pa.int8(), [5, -5, None], ["5", "-5", None]),
    (pa.uint64(), [5, 2**64 - 1], ["5", "18446744073709551615"]),
    (pa.float16(), [5.0, 0.1, -0.0, 1e-7], ["5", "0.1", "0", "0.0000001"]),
    (pa.float32(), [5.0, 0.1, 2.5, float("nan")], ["5", "0.1", "2.5", None]),
    (pa.float64(), [5.0, 0.1, -0.0, 1e-6, 1e16], ["5", "0.1", "0", "0.000001", "10000000000000000"]),
    (pa.float64(), [float("inf"), float("-inf"), 1.5], ["inf", "-inf", "1.5"]),
    (pa.decimal128(10, 2), [D("5.00"), D("0.10"), D("-100.00"), None], ["5", "0.1", "-100", None]),
    (pa.decimal32(5, 2), [D("2.50"), D("5.00")], ["2.5", "5"]),
    (pa.decimal64(15, 0), [D("100"), D("5")], ["100", "5"]),
    (pa.decimal256(60, 9), [D("0.000000100"), D("5")], ["0.0000001", "5"]),
    (pa.bool_(), [True, False, None], ["true", "false", None]),
    (pa.string(), ["5", " 05", " ", None], ["5", "05", None, None]),
    (pa.large_string(), ["5", "5.0"], ["5", "5.0"]),
    (pa.string_view(), ["a", "a" * 40], ["a", "a" * 40]),
    (pa.binary(), [b"ab", "é".encode(), b""], ["ab", "é", None]),
    (pa.large_binary(), [b"ab", b"c"], ["ab", "c"]),
    (pa.binary_view(), [b"ab", b"c"], ["ab", "c"]),
    (pa.binary(2), [b"ab", b"cd"], ["ab", "cd"]),
    (pa.dictionary(pa.int32(), pa.string()), ["a", "b", None], ["a", "b", None]),
    (pa.dictionary(pa.int32(), pa.large_string()), ["a", ""], ["a", None]),
    (pa.date32(), [DAY, None], ["2024-05-31", None]),
    (pa.date64(), [DAY], ["2024-05-31"]),
    (pa.time32("s"), [dt.time(12, 30)], ["12:30:00"]),
    (pa.time64("us"), [dt.time(12, 30, 0, 5000), dt.time(0)], ["12:30:00.005", "00:00:00"]),
    (pa.timestamp("s"), [MOMENT.replace(microsecond=0)], ["2024-05-31 12:00:00"]),
    (pa.timestamp("ms"), [MOMENT, None], ["2024-05-31 12:00:00.5", None]),
    (pa.timestamp("us"), [MOMENT], ["2024-05-31 12:00:00.5"]),
    (pa.timestamp("ns"), [MOMENT], ["2024-05-31 12:00:00.5"]),
    (pa.timestamp("us", "UTC"), [MOMENT], ["2024-05-31 12:00:00.5Z"]),
    (pa.timestamp("us", "Europe/Berlin"), [MOMENT], ["2024-05-31 12:00:00.5Z"]),
    (pa.uuid(), [bytes.fromhex(UUID.replace("-", "")), None], [UUID, None]),
]


@pytest.mark.parametrize(("dtype", "values", "tokens"), TOKENS, ids=[f"{case[0]}-{len(case[1])}" for case in TOKENS])
@pytest.mark.parametrize("role", ["categorical", "hashed"])
def test_one_spelling_of_a_value_whatever_its_type(
    tmp_path: Path, dtype: pa.DataType, values: list[Any], tokens: list[str | None], role: str
) -> None:
    write(tmp_path / "log.parquet", x=cycle(values, dtype))
    run(tmp_path / "log.parquet", tmp_path / "out", **{role: ["x"]})
    found = [row["x"] for row in rows_of(tmp_path / "out")]
    expected = [tokens[row % len(tokens)] for row in range(NUM_ROWS)]
    if role == "categorical":
        assert [naive.decode(tmp_path / "out", "x", one) for one in found] == expected
        return
    assert found == [token_id(token) for token in expected]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([16, 32, 64]), st.data())
def test_floats_are_spelled_as_by_the_slow_way(width: int, data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.floats(width=width), min_size=1, max_size=20))
    values = np.array(numbers, dtype=f"f{width // 8}")
    assert spelled(pl.Series(values)).to_list() == [naive.spell(value) for value in values]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 20), st.data())
def test_decimals_are_spelled_as_by_the_slow_way(scale: int, data: st.DataObject) -> None:
    units = data.draw(
        st.lists(st.integers(-(10**36), 10**36) | st.integers(-9, 9).map(lambda n: n * 10**scale), min_size=1)
    )
    values = [D(number).scaleb(-scale, decimal.Context(prec=60)) for number in units]
    series = pl.Series(pl.from_arrow(pa.array(values, pa.decimal128(38, scale))))
    assert spelled(series).to_list() == [naive.spell(value) for value in values]


BAGS: list[tuple[pa.DataType, list[Any], list[list[str]]]] = [
    (pa.list_(pa.int64()), [[1, 2], [], None, [None, 3]], [["1", "2"], [], [], ["3"]]),
    (pa.list_(pa.float64()), [[1.0, 0.1]], [["1", "0.1"]]),
    (pa.list_(pa.decimal128(10, 2)), [[D("1.00"), D("2.50")], None], [["1", "2.5"], []]),
    (pa.list_(pa.bool_()), [[True, False]], [["true", "false"]]),
    (pa.list_(pa.date32()), [[DAY]], [["2024-05-31"]]),
    (pa.list_(pa.binary()), [[b"a", b""], None], [["a"], []]),
    (pa.list_(pa.dictionary(pa.int32(), pa.string())), [["a", "b"], None], [["a", "b"], []]),
    (pa.large_list(pa.string()), [["a ", "", None, " "]], [["a"]]),
    (pa.list_(pa.string(), 2), [["a", "b"], ["c", None], None], [["a", "b"], ["c"], []]),
    (pa.list_view(pa.string()), [["a", "b"], []], [["a", "b"], []]),
    (pa.map_(pa.string(), pa.float32()), [[("a", 0.5), ("b", 1.0)], [], None], [["a", "b"], [], []]),
    (pa.map_(pa.int32(), pa.string()), [[(7, "x")]], [["7"]]),
]


@pytest.mark.parametrize(("dtype", "values", "bags"), BAGS, ids=[str(case[0]) for case in BAGS])
def test_lists_of_all_kinds_and_maps_are_bags(
    tmp_path: Path, dtype: pa.DataType, values: list[Any], bags: list[list[str]]
) -> None:
    write(tmp_path / "log.parquet", x=cycle(values, dtype))
    run(tmp_path / "log.parquet", tmp_path / "out", multivalued={"x": None})
    found = [naive.decode(tmp_path / "out", "x", row["x"]) for row in rows_of(tmp_path / "out")]
    assert found == [bags[row % len(bags)] for row in range(NUM_ROWS)]
    run(tmp_path / "log.parquet", tmp_path / "hashed", multivalued={"x": None}, hashed=["x"])
    hashed = [row["x"] for row in rows_of(tmp_path / "hashed")]
    assert hashed == [[token_id(token) for token in bags[row % len(bags)]] for row in range(NUM_ROWS)]


def test_that_values_of_a_map_are_not_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "log.parquet", x=cycle([[("a", 0.5)]], pa.map_(pa.string(), pa.float32())))
    with caplog.at_level(logging.WARNING):
        run(tmp_path / "log.parquet", tmp_path / "out", multivalued={"x": None})
    assert "column 'x' is a map: its keys are read, its values are not" in caplog.text


ROLES: dict[str, dict[str, Any]] = {
    "categorical": {"categorical": ["x", "other"]},
    "hashed": {"hashed": ["x"]},
    "multivalued": {"multivalued": {"x": "|"}},
    "hashed bag": {"multivalued": {"x": None}, "hashed": ["x"]},
    "numeric": {"numeric": ["x"]},
    "standard": {"numeric": {"x": "standard"}},
    "label": {"label": {"column": "x"}},
    "label by rule": {"label": {"column": "x", "positive": ">= 1"}},
    "group": {"group": "x"},
    "split by hash": {"split": {"by": "hash", "key": ["x"], "ratios": [0.4, 0.3, 0.3]}},
    "split by column": {"split": {"by": "column", "column": "x"}},
    "split by time": {"split": {"by": "time", "column": "x"}},
}
STRUCT = pa.struct([("a", pa.int64()), ("b", pa.float64())])
OTHERS: list[tuple[pa.DataType, list[Any]]] = [
    (pa.null(), [None]),
    (pa.int64(), [0, 1]),
    (pa.int64(), [None, 7, 3, -(2**63)]),
    (pa.float64(), [1e300, -1e300, 5e-324, 2.0**60]),
    (pa.float64(), [None]),
    (pa.float32(), [0.0, 1.0]),
    (pa.bool_(), [True, False]),
    (pa.decimal128(38, 0), [D(0), D(1)]),
    (pa.decimal256(76, 0), [D(10) ** 70, D(1)]),
    (pa.decimal256(76, 60), [D(1)]),
    (pa.string(), ["0", "1"]),
    (pa.string(), ["train", "valid", "test"]),
    (pa.string(), [None]),
    (pa.string(), ["2024-02-30", "2024-05-01", "12"]),
    (pa.dictionary(pa.int32(), pa.string()), ["train", "valid", "test"]),
    (pa.binary(), [b"\xff\xfe", b"ab"]),
    (pa.binary(), [b"train", b"valid", b"test"]),
    (pa.duration("s"), [1, 2, 3]),
    (pa.duration("ns"), [1, None, 3]),
    (pa.date32(), [DAY, dt.date(1, 1, 1), dt.date(9999, 12, 31)]),
    (pa.timestamp("s"), [2**40, 0, 1]),
    (pa.timestamp("us"), [2**62, 0, 1]),
    (pa.timestamp("us", "Nowhere/Noplace"), [3, 0, 1]),
    (STRUCT, [{"a": 1, "b": 0.5}]),
    (pa.list_(STRUCT), [[{"a": 1, "b": 0.5}]]),
    (pa.list_(pa.list_(pa.int64())), [[[1], [2]]]),
    (pa.list_(pa.null()), [[None], []]),
    (pa.list_(pa.duration("s")), [[1]]),
    (pa.list_(pa.binary()), [[b"\xff"], [b"a"]]),
    (pa.list_(pa.timestamp("us")), [[2**62], [1]]),
    (pa.map_(pa.string(), pa.bool_()), [[("a", True)]]),
    (pa.map_(pa.string(), STRUCT), [[("a", {"a": 1, "b": 0.5})]]),
    (pa.json_(), ['{"a": 1}']),
    (pa.bool8(), [1, 0]),
    (pa.opaque(pa.binary(), "x", "y"), [b"a"]),
]
EVERYTHING = [*[case[:2] for case in TOKENS], *[case[:2] for case in BAGS], *OTHERS]


def encode(path: Path, config: dict[str, Any]) -> int:
    """The first pass of `prepare`, where raw values are read; the second sees codes and numbers only. Returns rows."""
    resolved = parse_config(config, origin="the configuration")
    source = ParquetSource(sorted(path.glob("*.parquet")) if path.is_dir() else [path])
    encoder = Encoder(resolved)
    return sum(encoder.encode(chunk).table.num_rows for chunk in source.chunks(resolved.columns))


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
def test_every_type_in_every_role_works_or_is_refused_by_name(
    tmp_path: Path, role: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """No library's exception, no panic; a message has the column's name and the file's."""
    path = tmp_path / "log.parquet"
    for dtype, values in EVERYTHING:
        write(path, x=cycle(values, dtype))
        try:
            assert encode(path, {**BASE, **ROLES[role]}) == NUM_ROWS, dtype
        except EmbankError as error:
            assert "'x'" in str(error), error
            assert str(path) in str(error), error
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
def test_parts_of_two_types(tmp_path: Path, role: str, capfd: pytest.CaptureFixture[str]) -> None:
    """As above, with a column that is of another type in the second part."""
    chance = random.Random(role)
    for _ in range(20):
        for part, (dtype, values) in enumerate(chance.sample(EVERYTHING, 2)):
            write(tmp_path / f"part-{part}.parquet", x=cycle(values, dtype))
        try:
            assert encode(tmp_path, {**BASE, **ROLES[role]}) == 2 * NUM_ROWS
        except EmbankError as error:
            assert "'x'" in str(error), error
            assert str(tmp_path) in str(error), error
    assert "panicked" not in capfd.readouterr().err


def error_of(tmp_path: Path, column: pa.Array, **config: Any) -> str:
    """The message about a column x, with the folder's name cut out."""
    write(tmp_path / "log.parquet", x=column)
    with pytest.raises(DataError) as caught:
        run(tmp_path / "log.parquet", tmp_path / "out", **config)
    return str(caught.value).replace(f"{tmp_path}/", "")


REFUSED: list[tuple[str, pa.Array, str, str]] = [
    (
        "struct",
        cycle([{"a": 1, "b": 0.5}], STRUCT),
        "categorical",
        "log.parquet: column 'x' has type struct<a: int64, b: double>, which is not read: write each field that you "
        "need as a column of its own.",
    ),
    (
        "list of struct",
        cycle([[{"a": 1, "b": 0.5}]], pa.list_(STRUCT)),
        "multivalued",
        "log.parquet: column 'x' has type list<element: struct<a: int64, b: double>>, which is not read: its members "
        "are structures; write a "
        "list of text or numbers, one for each thing that you need.",
    ),
    (
        "map to booleans",
        cycle([[("a", True)]], pa.map_(pa.string(), pa.bool_())),
        "multivalued",
        "log.parquet: column 'x' has type map<string, bool ('x')>, which is not read: whether a key that is false "
        "belongs to the bag is not "
        "clear; write a list of the keys that do.",
    ),
    (
        "wide decimal",
        pa.array([D(1)] * 5 + [D(10) ** 50] * 19, pa.decimal256(60, 0)),
        "categorical",
        f"log.parquet, row 6: column 'x' is 1{'0' * 50}, which decimal256(60, 0) can hold and `embank prepare` can't: "
        "a decimal of more than "
        "38 digits, or a year outside 1 to 9999. Mend the value.",
    ),
    (
        "bytes that are no text",
        pa.array([b"a"] * 7 + [b"\xff"] * 17),
        "categorical",
        "log.parquet, row 8: column 'x' is b'\\xff', bytes that are not UTF-8. List the column under hashed, which "
        "takes any bytes, or convert "
        "it to text.",
    ),
    (
        "a duration",
        cycle([1], pa.duration("s")),
        "categorical",
        "log.parquet, row 1: column 'x' has type Duration(time_unit='ms'), which is no single token; convert it to "
        "text or integers.",
    ),
]


@pytest.mark.parametrize(
    ("column", "role", "expected"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_what_has_no_token_is_refused_with_a_cure(tmp_path: Path, column: pa.Array, role: str, expected: str) -> None:
    assert error_of(tmp_path, column, **{role: {"x": None} if role == "multivalued" else ["x"]}) == expected


def test_members_of_bags_are_found_by_their_row(tmp_path: Path) -> None:
    column = pa.array([[b"a", b"b"], [], [b"\xff"], *[[b"a"]] * 21])
    assert error_of(tmp_path, column, multivalued={"x": None}).startswith(
        "log.parquet, row 3: column 'x' is [b'\\xff']"
    )


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    table = pa.table([pa.array([0, 1] * 12), *[pa.array(["a", "b"] * 12)] * 2], names=["click", "x", "x"])
    pq.write_table(table, tmp_path / "log.parquet")
    config = {"label": {"column": "click"}, "categorical": ["x"], "split": {"by": "ratio"}}
    with pytest.raises(DataError, match=r"log\.parquet has 2 columns called 'x'\. Rename or remove all but one\."):
        prepare(config, [tmp_path / "log.parquet"], tmp_path / "out", format="parquet")


def test_what_a_library_raises_is_said_in_terms_of_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for raised in (
        pl.exceptions.DuplicateError("Expression dump"),
        pa.ArrowInvalid("sic"),
        pl.exceptions.PanicException("unwrap"),
    ):

        def fail(*_: object, raised: BaseException = raised) -> None:
            raise raised

        monkeypatch.setattr(Encoder, "encode", fail)
        assert error_of(tmp_path, cycle([5], pa.int64())) == (
            "log.parquet, row 1 and the 23 rows after it can't be read as the configuration says. Columns and their "
            "types: click (Int64), other "
            "(String), part (String). Convert those of unusual types to text or numbers."
        )
    monkeypatch.setattr(Encoder, "encode", lambda *_: np.empty(1 << 58))
    with pytest.raises(WorkError, match=r"out of memory: .* The process was reading .*row 1 and the rows after it"):
        run(tmp_path / "log.parquet", tmp_path / "out")
