"""Raw rows by the rules of a prepared folder: the same ids and numbers as `embank prepare` wrote."""

import random
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.test_formats_published import criteo_rows, write

from embank.pipelines.data.prepare.prepare import prepare
from embank.pipelines.data.preprocessing.encode import RowEncoder
from embank.pipelines.data.preprocessing.encoded import Encoded
from embank.pipelines.data.preprocessing.few import FewRows
from embank.pipelines.data.preprocessing.frames import chunk_of
from embank.pipelines.data.preprocessing.rules import Preprocessing
from embank.tables.errors import CheckpointError, DataError

CONFIG: dict[str, Any] = {
    "label": {"column": "click"},
    "categorical": ["user", "city"],
    "multivalued": {"genres": "|"},
    "hashed": ["page", "genres"],
    "numeric": {
        "price": {"transform": "log1p", "missing": "indicator"},
        "age": {"transform": "standard", "missing": "mean"},
        "clicks": {"transform": "log_squared", "missing": "zero"},
        "rank": "none",
    },
    "null_values": ["NULL", "-999"],
    "min_count": {"default": 1, "city": 3},
    "split": {"by": "ratio", "ratios": [0.8, 0.1, 0.1]},
}
COLUMNS = ["user", "city", "page", "genres", "price", "age", "clicks", "rank"]
CITIES = ["Ulm", "Köln", "NULL", "", " Bonn ", "-999", "5", "rare"]


def rows_of(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {
            "click": rng.randrange(2),
            "user": rng.choice(["", f"u{rng.randrange(30)}", rng.randrange(9)]),
            "city": rng.choice(CITIES if rng.random() < 0.95 else [f"only-{rng.randrange(10**9)}"]),
            "page": rng.choice(["", f"/p/{rng.randrange(50)}"]),
            "genres": "|".join(rng.sample(["a", " b", "c c", "NULL", ""], rng.randrange(4))),
            "price": rng.choice(["", "0", "-3", "12.5", "99999", "NULL"]),
            "age": rng.choice(["", "18", "65", "-999"]),
            "clicks": rng.choice(["", "0", "2", "7", "800"]),
            "rank": rng.choice(["", "1", "0.1"]),
        }
        for _ in range(count)
    ]


def csv_of(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    lines = [",".join(rows[0])] + [",".join(str(cell) for cell in row.values()) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    raw = csv_of(folder / "log.csv", rows_of(500))
    prepare({**CONFIG, "hashed": ["page"]}, raw, folder / "data", format="csv")
    prepare(CONFIG, raw, folder / "hashed", format="csv")
    return folder


def rules_of(folder: Path) -> Preprocessing:
    rules = Preprocessing.of_prepared(folder)
    assert rules is not None
    return rules


def encoded(rules: Preprocessing, paths: list[Path], *, remembers: bool = True) -> Encoded:
    encoder = RowEncoder(rules, remembers=remembers)
    return Encoded.concatenate([encoder.encode(chunk) for chunk in rules.open(paths).chunks(rules.columns)])


def assert_as_written(one: Encoded, folder: Path) -> None:
    """Rows of a folder that is split by position are in the order of the input."""
    tables = [
        pq.read_table(file) for split in ("train", "valid", "test") for file in sorted((folder / split).iterdir())
    ]
    table = pa.concat_tables(tables)
    for name, ids in one.ids.items():
        np.testing.assert_array_equal(ids, table[name].to_numpy(), err_msg=name)
    for name, bags in one.bags.items():
        want = table[name].to_pylist()
        assert [bags.slice(row, row + 1).tolist() for row in range(one.num_rows)] == want
    numeric = [name for name in table.column_names if table[name].type == pa.float32()]
    for column, name in enumerate(numeric):
        np.testing.assert_array_equal(one.dense[:, column], table[name].to_numpy(), err_msg=name)


def assert_same(one: Encoded, other: Encoded) -> None:
    assert list(one.ids) == list(other.ids)
    assert list(one.bags) == list(other.bags)
    for name, ids in one.ids.items():
        np.testing.assert_array_equal(ids, other.ids[name], err_msg=name)
        assert ids.dtype == other.ids[name].dtype == np.int64
    for name, bags in one.bags.items():
        np.testing.assert_array_equal(bags.values, other.bags[name].values, err_msg=name)
        assert bags.values.flags.writeable  # or torch warns
        np.testing.assert_array_equal(bags.offsets, other.bags[name].offsets, err_msg=name)
    np.testing.assert_array_equal(one.dense, other.dense)
    assert one.dense.dtype == other.dense.dtype == np.float32
    assert one.unknown == other.unknown


@pytest.mark.parametrize("name", ["data", "hashed"])
@pytest.mark.parametrize("remembers", [True, False])
def test_raw_rows_become_what_was_prepared(prepared: Path, name: str, remembers: bool) -> None:
    rules = rules_of(prepared / name)
    assert_as_written(encoded(rules, [prepared / "log.csv"], remembers=remembers), prepared / name)


def test_labels_are_not_needed_and_columns_may_stand_anywhere(prepared: Path, tmp_path: Path) -> None:
    rules = rules_of(prepared / "data")
    rows = [{"extra": 1, **dict(reversed([(k, v) for k, v in row.items() if k != "click"]))} for row in rows_of(500)]
    assert_same(encoded(rules, [csv_of(tmp_path / "new.csv", rows)]), encoded(rules, [prepared / "log.csv"]))


def test_a_bundle_s_files_give_the_same(prepared: Path, tmp_path: Path) -> None:
    rules = rules_of(prepared / "data")
    for file, write_file in rules.files().items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        write_file(tmp_path / file)
    loaded = Preprocessing.load(tmp_path)
    assert_same(encoded(loaded, [prepared / "log.csv"]), encoded(rules, [prepared / "log.csv"]))
    assert loaded.example == rules.example
    assert loaded.vocabulary("city").tokens.to_list() == rules.vocabulary("city").tokens.to_list()
    assert {*rules.files(tokens=False)} == {"preprocess.json", "vocabulary.safetensors"}
    text = (tmp_path / "preprocess.json").read_text()
    (tmp_path / "preprocess.json").write_text(text.replace('"format_version": 1', '"format_version": 9', 1))
    with pytest.raises(CheckpointError, match="format version 9"):
        Preprocessing.load(tmp_path)


def test_unknown_values_are_counted_and_missing_ones_are_not(prepared: Path) -> None:
    rules = rules_of(prepared / "data")
    rows = [dict.fromkeys(COLUMNS), {**dict.fromkeys(COLUMNS), "user": "new", "city": "new", "genres": "a|x|y"}]
    for one in (
        RowEncoder(rules, remembers=False).encode(chunk_of(rows, rules.columns, numeric=list(rules.config.numeric))),
        FewRows(rules).encode(rows),
    ):
        assert one is not None
        assert one.unknown == {"user": 1, "city": 1, "genres": 2}
        assert one.ids["user"].tolist() == [rules.index.missing_id("user"), 0]


CELL = st.one_of(
    st.none(), st.sampled_from(["u1", "u29", "Ulm", "NULL", "-999", "", "5", "a|c c", " u1", "Köln", "x|", "\x1f"]),
    st.integers(-1000, 30), st.text(max_size=12), st.just(2**63), st.booleans(), st.floats(allow_nan=False, width=32),
)  # fmt: skip
NUMBER = st.one_of(st.none(), st.integers(-5, 10**6), st.floats(allow_nan=False, allow_infinity=False, width=32))
ROW = st.fixed_dictionaries(
    {
        **dict.fromkeys(("user", "city", "page", "genres"), CELL),
        **dict.fromkeys(("price", "age", "clicks", "rank"), NUMBER),
    }
)


@pytest.mark.parametrize("name", ["data", "hashed"])
@given(rows=st.lists(ROW, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.slow
def test_a_few_rows_are_read_as_a_frame_of_them(prepared: Path, name: str, rows: list[dict[str, Any]]) -> None:
    rules = rules_of(prepared / name)
    numeric = list(rules.config.numeric)
    few = FewRows(rules).encode(rows)
    try:
        chunk = chunk_of(rows, rules.columns, numeric=numeric)
        whole = RowEncoder(rules, remembers=False).encode(chunk)
    except DataError:
        assert few is None
        return
    if few is not None:
        assert_same(few, whole)
    try:
        assert_same(RowEncoder(rules).encode(chunk), whole)
    except DataError as error:
        assert "stand in" in str(error)


def test_frames_of_all_libraries_are_the_same_rows(prepared: Path) -> None:
    rules = rules_of(prepared / "data")
    numeric = list(rules.config.numeric)
    full = {"user": 3, "city": "Ulm", "page": "/p/1", "genres": "a|c c"}
    rows = [{**full, "price": 3.5, "age": 18.0, "clicks": 7.0, "rank": 1.0}, {**dict.fromkeys(COLUMNS), "user": 4}]
    want = FewRows(rules).encode(rows)
    assert want is not None
    frame = pl.DataFrame(rows)
    pandas = pd.DataFrame(rows, index=[7, 7])
    for given_rows in (rows, frame, frame.lazy(), frame.to_arrow(), frame.to_arrow().to_batches()[0], pandas):
        chunk = chunk_of(given_rows, rules.columns, numeric=numeric)
        assert_same(RowEncoder(rules, remembers=False).encode(chunk), want)


def test_no_rows_are_none_of_any_library(prepared: Path) -> None:
    rules = rules_of(prepared / "data")
    for rows in (
        [],
        pl.DataFrame(schema=COLUMNS),
        pd.DataFrame(columns=COLUMNS),
        pd.DataFrame({c: [1.0] for c in COLUMNS})[:0],
    ):
        chunk = chunk_of(rows, rules.columns, numeric=list(rules.config.numeric))
        assert RowEncoder(rules, remembers=False).encode(chunk).num_rows == 0


def test_brackets_are_refused_in_logs_and_read_in_rows(prepared: Path) -> None:
    rules = rules_of(prepared / "data")
    rows = [{**dict.fromkeys(COLUMNS), "genres": "[a|c c]"}]
    chunk = chunk_of(rows, rules.columns, numeric=list(rules.config.numeric))
    whole, few = RowEncoder(rules, remembers=False).encode(chunk), FewRows(rules).encode(rows)
    assert few is not None
    assert_same(few, whole)
    with pytest.raises(DataError, match="stand in"):
        RowEncoder(rules).encode(chunk)


def test_values_of_any_library_are_what_they_stand_for(prepared: Path) -> None:
    rules = rules_of(prepared / "data")
    numeric = list(rules.config.numeric)

    def of(price: Any, user: Any) -> Encoded:
        rows = [{**dict.fromkeys(COLUMNS), "price": price, "user": user}]
        return RowEncoder(rules, remembers=False).encode(chunk_of(rows, rules.columns, numeric=numeric))

    for price, user in (
        (3.0, 5),
        (np.float32(3), np.int64(5)),
        (Decimal(3), np.str_("5")),
        ("3", 5.0),
        (Fraction(3), "5"),
    ):
        assert_same(of(price, user), of(3, "5"))
    assert_same(of(pd.NA, pd.NaT), of(None, None))
    assert_same(of(np.bool_(True), "5"), of(1, "5"))
    mixed = [{**dict.fromkeys(COLUMNS), "price": price} for price in (True, "3.5", 10**400 * 0 + 2, None)]
    chunk = chunk_of(mixed, rules.columns, numeric=numeric)
    dense = RowEncoder(rules, remembers=False).encode(chunk).dense[:, 0]
    np.testing.assert_array_equal(dense[:3], np.log1p([1, 3.5, 2]).astype(np.float32))


def test_what_is_wrong_with_rows_is_said(prepared: Path) -> None:
    rules = rules_of(prepared / "data")
    numeric = list(rules.config.numeric)
    good = dict.fromkeys(COLUMNS)

    def said(rows: Any) -> DataError:
        with pytest.raises(DataError) as caught:
            RowEncoder(rules).encode(chunk_of(rows, rules.columns, numeric=numeric))
        return caught.value

    lacks = {name: None for name in COLUMNS if name != "price"}
    error = said([good, {**lacks, "prise": 3}])
    assert str(error) == (
        "rows[1] has no 'price', which the model was trained on. Did you mean 'prise'? Give null where the value is "
        "missing."
    )
    assert (error.field, error.row) == ("price", 1)
    error = said([good, {**good, "price": "cheap"}])
    assert str(error).startswith("rows[1]: column 'price' is 'cheap': it is no number")
    assert (error.field, error.row, error.value) == ("price", 1, "cheap")
    assert "'rank' is inf" in str(said([{**good, "rank": float("inf")}]))
    assert "'user' is {'a': 1}, a dict" in str(said([{**good, "user": {"a": 1}}]))
    for name in ("user", "genres", "price"):
        assert "no Unicode" in str(said([{**good, name: "\ud800"}]))
    assert "no Unicode" in str(said([{**good, "genres": ["\ud800"]}]))
    assert "rows[0] is 3" in str(said([3]))
    assert "are one mapping" in str(said(good))
    assert "are a int" in str(said(3))
    assert str(said(pl.DataFrame([lacks]).with_columns(pl.lit(1).alias("Price")))).startswith(
        "the given rows has no column 'price', which the model was trained on. Did you mean 'Price'?"
    )


def test_a_format_without_labels_is_read(tmp_path: Path) -> None:
    rows = criteo_rows(200)
    raw = write(tmp_path / "train.txt", rows, "\t")
    prepare(None, [raw], tmp_path / "out", format="criteo")
    rules = rules_of(tmp_path / "out")
    one = encoded(rules, [raw])
    assert_as_written(one, tmp_path / "out")
    assert_same(encoded(rules, [write(tmp_path / "test.txt", [row[1:] for row in rows], "\t")]), one)
