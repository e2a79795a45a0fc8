"""Columns without a vocabulary: `prepare` writes the token hash of the raw text, and keeps nothing else of a value."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data import naive_prepare as naive
from tests.data.test_formats_published import criteo_rows, write
from tests.data.test_prepare import CONFIG, make_rows, write_csv

from embank.pipelines.data.describe import describe, describe_folder
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.prepare.distinct import KEPT, DistinctCount
from embank.pipelines.data.prepare.prepare import prepare, prepare_from_cli
from embank.pipelines.data.schema import Schema
from embank.pipelines.data.sources.formats import text
from embank.tables.errors import ConfigError, DataError
from embank.tables.ids.token_hash import token_id, token_ids
from embank.tables.ids.token_space import MISSING_ID, NUM_TOKEN_IDS

HASHED: dict[str, Any] = {**CONFIG, "hashed": ["item", "tags"]}
MEGABYTE = "0123456789é" * 90_000


@pytest.fixture(name="rows", scope="module")
def _rows() -> list[dict[str, str | None]]:
    """Those that the label rules keep."""
    return [row for row in make_rows(700) if row["rating"] != "3"]


@pytest.fixture(name="csv", scope="module")
def _csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("raw") / "log.csv", make_rows(700))


@pytest.fixture(name="folder", scope="module")
def _folder(csv: Path) -> Path:
    config = {key: value for key, value in HASHED.items() if key != "min_count"}
    prepare(config, [csv], csv.with_name("out"))
    return csv.with_name("out")


def prepared_rows(folder: Path) -> dict[int, dict[str, Any]]:
    """Prepared rows of all splits by the raw row's number, which the column `raw` holds."""
    return {int(row["raw"]): row for split in naive.SPLITS for row in naive.read_rows(folder, split)}


def one_column(tmp_path: Path, cells: pl.Series, *, format: str = "parquet", **config: Any) -> list[Any]:
    """What `prepare` makes of a hashed column called x, in the order of its cells."""
    more = 6 - len(cells) % 2
    padded = pl.concat([cells.alias("x"), cells[:1].sample(more, with_replacement=True).alias("x")])
    frame = pl.DataFrame(padded).with_columns(
        click=pl.int_range(pl.len()).mod(2).cast(pl.String), row=pl.int_range(pl.len())
    )
    splits = ["train"] * (len(padded) - 4) + ["valid", "valid", "test", "test"]
    frame = frame.with_columns(split=pl.Series(splits))
    path = tmp_path / f"log.{format}"
    (frame.write_parquet if format == "parquet" else frame.write_csv)(path)
    columns = {
        "label": {"column": "click"},
        "hashed": ["x"],
        "numeric": ["row"],
        "split": {"by": "column", "column": "split"},
    }
    prepare({**columns, **config}, [path], tmp_path / "out", format=format)
    rows = [row for split in naive.SPLITS for row in naive.read_rows(tmp_path / "out", split)]
    return [row["x"] for row in rows][: len(cells)]


def test_ids_are_hashes_of_the_text(folder: Path, rows: list[dict[str, str | None]]) -> None:
    """Against the definition in plain integers, single values and bags."""
    prepared = prepared_rows(folder)
    assert len(prepared) == len(rows)
    for row in rows:
        got = prepared[int(row["raw"] or 0)]
        assert got["item"] == token_id(row["item"])
        assert got["tags"] == [token_id(tag) for tag in (row["tags"] or "").split("|") if tag]


def test_columns_with_a_vocabulary_are_as_without_the_others(csv: Path, folder: Path, tmp_path: Path) -> None:
    plain = {key: value for key, value in CONFIG.items() if key != "min_count"}
    prepare(plain, [csv], tmp_path / "plain")
    assert naive.read_vocabulary(folder, "user") == naive.read_vocabulary(tmp_path / "plain", "user")
    ours, theirs = prepared_rows(folder), prepared_rows(tmp_path / "plain")
    for number in theirs:
        for key in ("label", "user", "price", "age", "size", "group"):
            assert ours[number][key] == theirs[number][key]


def test_what_is_written(folder: Path, rows: list[dict[str, str | None]]) -> None:
    assert [file.name for file in (folder / "vocab").iterdir()] == ["user.parquet"]
    schema = Schema.load(folder)
    assert schema.token_hash_version == 1
    fields = {field.name: field for field in schema.categorical}
    trained = naive.read_rows(folder, "train")
    for name, values in (
        ("item", {row["item"] for row in trained}),
        ("tags", {t for row in trained for t in row["tags"]}),
    ):
        assert fields[name].num_embeddings == NUM_TOKEN_IDS == 2**63
        assert not fields[name].has_vocabulary
        assert fields[name].num_values == len(values) > 3
        assert fields[name].multivalued == (name == "tags")
    assert fields["user"].has_vocabulary
    assert fields["user"].num_values is None
    parts = pl.read_parquet(folder / "train")
    assert parts.schema["item"] == pl.Int64
    assert parts.schema["tags"] == pl.List(pl.Int64)
    assert parts.schema["user"] == pl.Int32


def test_description(folder: Path) -> None:
    shown = describe_folder(folder)
    assert re.search(r"^item +no vocabulary +one$", shown, re.MULTILINE)
    assert re.search(r"^tags +no vocabulary +many$", shown, re.MULTILINE)
    description = describe(folder)
    by_name = {feature.name: feature for feature in description.features}
    assert (
        f"different values in training: item {by_name['item'].num_values}, tags {by_name['tags'].num_values}" in shown
    )
    assert by_name["item"].bytes_at_dim_16 is None
    assert description.bytes_at_dim_16 == by_name["user"].bytes_at_dim_16


def test_the_loader_passes_ids_through(folder: Path) -> None:
    rows = naive.read_rows(folder, "train")
    for shuffle in (False, True):
        seen: dict[int, tuple[int, list[int]]] = {}
        for batch in Loader(folder, "train", batch_size=32, shuffle=shuffle, buffer_rows=100).epoch(0):
            column = [field.name for field in Schema.load(folder).numeric].index("raw")
            bags = [bag.tolist() for bag in batch.sparse["tags"].to_dense()]
            assert batch.sparse.values().dtype == torch.int64
            for number, item, tags in zip(batch.dense[:, column], batch.sparse["item"].values(), bags, strict=True):
                seen[int(number)] = (int(item), tags)
        assert seen == {int(row["raw"]): (row["item"], row["tags"]) for row in rows}


@pytest.mark.parametrize("block_bytes", [300, 5_000])
def test_output_does_not_depend_on_chunks(
    csv: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", block_bytes)
    prepare(yaml.safe_load((folder / "config.yaml").read_text()), [csv], tmp_path / "out")
    assert naive.folder_bytes(tmp_path / "out") == naive.folder_bytes(folder)


def test_ids_depend_on_nothing_but_the_text(
    csv: Path, folder: Path, rows: list[dict[str, str | None]], tmp_path: Path
) -> None:
    """Not on other columns, their order, other rows, the minimum count, or the format."""
    frame = pl.DataFrame(rows, schema=dict.fromkeys(rows[0], pl.String))
    other = {
        "label": CONFIG["label"],
        "hashed": ["tags", "when", "item"],
        "multivalued": {"tags": "|"},
        "numeric": ["raw"],
    }
    frame.sample(fraction=0.7, seed=1).write_parquet(tmp_path / "log.parquet")
    prepare({**other, "min_count": 5}, [tmp_path / "log.parquet"], tmp_path / "other", format="parquet")
    expected, got = prepared_rows(folder), prepared_rows(tmp_path / "other")
    assert len(got) > 300
    for number, row in got.items():
        assert (row["item"], row["tags"]) == (expected[number]["item"], expected[number]["tags"])


def test_the_fingerprint_is_that_of_the_ids(
    csv: Path, folder: Path, rows: list[dict[str, str | None]], tmp_path: Path
) -> None:
    """Other rows with hashed columns alone can be scored by the same model; another hash, or a vocabulary, can't."""
    first, second = write_csv(tmp_path / "a.csv", rows[:300]), write_csv(tmp_path / "b.csv", rows[300:])
    config = {"label": CONFIG["label"], "hashed": ["item"]}
    schemas = [prepare(config, [path], tmp_path / path.stem) for path in (first, second)]
    assert schemas[0].fingerprint == schemas[1].fingerprint
    assert schemas[0].categorical[0].num_values != schemas[1].categorical[0].num_values
    assert prepare({**config, "hashed": ["user"]}, [first], tmp_path / "user").fingerprint != schemas[0].fingerprint
    plain = {"label": CONFIG["label"], "categorical": ["item"]}
    assert prepare(plain, [first], tmp_path / "plain").fingerprint != schemas[0].fingerprint


MEANINGS: list[tuple[str, pl.Series, list[str | bytes | None]]] = [
    ("null, and text that is empty", pl.Series(["a", None, "", " "]), ["a", None, None, None]),
    ("white space around text", pl.Series([" a", "a\t", "b c\u00a0"]), ["a", "a", "b c"]),
    ("negative integers", pl.Series([5, -5, -(2**63), None]), ["5", "-5", "-9223372036854775808", None]),
    ("above 2**63", pl.Series([2**63, 2**64 - 1], dtype=pl.UInt64), ["9223372036854775808", "18446744073709551615"]),
    ("floats", pl.Series([3.0, 2.5, float("nan")]), ["3", "2.5", None]),
    ("true and false", pl.Series([True, False]), ["true", "false"]),
    ("bytes", pl.Series([b"\xff\xfe", b"ab", b"", None]), [b"\xff\xfe", "ab", None, None]),
    ("a category", pl.Series(["b", "a", None], dtype=pl.Categorical), ["b", "a", None]),
    ("a megabyte", pl.Series([MEGABYTE, MEGABYTE[:-1] + "e"]), [MEGABYTE, MEGABYTE[:-1] + "e"]),
]


@pytest.mark.parametrize(("cells", "tokens"), [case[1:] for case in MEANINGS], ids=[case[0] for case in MEANINGS])
def test_what_values_of_parquet_mean(tmp_path: Path, cells: pl.Series, tokens: list[str | bytes | None]) -> None:
    """Whatever has a spelling is hashed as that text, so one log in two formats has the same ids; bytes as they are."""
    assert one_column(tmp_path, cells) == [token_id(token) for token in tokens]


def test_what_cells_of_text_mean(tmp_path: Path) -> None:
    """The same, and nothing is read as a number."""
    cells = ["5", "-5", "05", "5.0", "18446744073709551621", "", " ", "é", "e\u0301", "\ufffd", MEGABYTE, 'a "b", c']
    expected = [token_id(cell) if cell.strip() else MISSING_ID for cell in cells]
    assert one_column(tmp_path, pl.Series(cells), format="csv") == expected
    assert len(set(expected)) == len(cells) - 1  # white space alone is missing, as an empty cell is


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0")), min_size=4, max_size=20)
)
def test_any_text_by_every_path(tmp_path_factory: pytest.TempPathFactory, cells: list[str]) -> None:
    """The definition, the column, and what is prepared from CSV and from Parquet agree."""
    expected = [token_id(naive.cell(cell)) for cell in ["first", *cells]]
    series = pl.Series(["first", *cells])
    assert token_ids(pl.Series(map(naive.cell, series))).tolist() == expected
    for format in ("csv", "parquet"):
        assert one_column(tmp_path_factory.mktemp("any"), series, format=format) == expected


def test_members_of_bags(tmp_path: Path) -> None:
    """Missing and empty ones are left out; an empty bag has no id."""
    for name, cells in (
        ("text", pl.Series([["a", None, "", "b"], [], None, ["c"]])),
        ("bytes", pl.Series([[b"a", None, b"", b"b"], [], None, [b"c"]])),
    ):
        (tmp_path / name).mkdir()
        got = one_column(tmp_path / name, cells, multivalued={"x": None})
        assert got == [[token_id("a"), token_id("b")], [], [], [token_id("c")]]
    (tmp_path / "integers").mkdir()
    cells = pl.Series([[1, -2], [3]])
    expected = [[token_id("1"), token_id("-2")], [token_id("3")]]
    assert one_column(tmp_path / "integers", cells, multivalued={"x": None}) == expected


def test_bytes_that_are_no_text_are_refused_in_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"click,x\n0,a\n1,b\xff\n" + b"0,a\n1,b\n" * 9)
    with pytest.raises(
        DataError, match=r"log\.csv, line 3: byte 0xFF at offset \d+ of the file is not UTF-8\. Convert the file"
    ):
        prepare({"label": {"column": "click"}, "hashed": ["x"]}, [path], tmp_path / "out")


def test_a_published_layout(tmp_path: Path) -> None:
    rows = criteo_rows(200)
    raw = write(tmp_path / "train.txt", rows, "\t")
    (tmp_path / "hashed.yaml").write_text("hashed: [C3, C26]\n")
    schema = prepare_from_cli("criteo", [raw], tmp_path / "out", tmp_path / "hashed.yaml")
    assert schema.feature_names == tuple(f"C{i}" for i in range(1, 27))
    assert [field.name for field in schema.categorical if not field.has_vocabulary] == ["C3", "C26"]
    prepared = [row for split in naive.SPLITS for row in naive.read_rows(tmp_path / "out", split)]
    assert [row["C3"] for row in prepared] == [token_id(row[16]) for row in rows]  # type: ignore[arg-type]
    prepare({"hashed": [f"C{i}" for i in range(1, 27)]}, [raw], tmp_path / "all", format="criteo")
    assert list((tmp_path / "all" / "vocab").iterdir()) == []
    assert "total" in describe_folder(tmp_path / "all")


PROBLEMS: list[tuple[dict[str, Any], str]] = [
    ({"hashed": ["itme"]}, r"has no column 'itme', which the configuration names under hashed\. Did you mean 'item'\?"),
    ({"hashed": ["item", "item"]}, r"column 'item' is named twice under hashed; name it once"),
    ({"hashed": ["price"]}, r"column 'price' is named twice among the features; name it once"),
    ({"hashed": ["rating"]}, r"the label column 'rating' is also a feature, which leaks the answer"),
    ({"hashed": ["item"]}, r"min_count names 'item', which is hashed: .* Remove it from min_count or from hashed"),
    ({"hashed": "item"}, r"hashed is 'item': it must be a list, such as \[item\]"),
    ({"hashed": [3]}, r"hashed\.0 is 3: it must be text; write it in quotes"),
    ({"hashd": ["item"]}, r"unknown key 'hashd'\. Did you mean 'hashed'\?"),
]


@pytest.mark.parametrize(("changes", "message"), PROBLEMS, ids=[json.dumps(case[0]) for case in PROBLEMS])
def test_problems_are_named(csv: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        prepare({**CONFIG, **changes}, [csv], tmp_path / "out")


def test_a_column_without_any_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"column 'x' has no value in any training row \(all cells are empty\)"):
        one_column(tmp_path, pl.Series([None] * 8, dtype=pl.String))


def test_another_version_of_the_hash_is_refused(folder: Path, tmp_path: Path) -> None:
    values = json.loads((folder / "schema.json").read_text())
    (tmp_path / "schema.json").write_text(json.dumps({**values, "token_hash_version": 2}))
    message = (
        r"schema\.json has ids of tokens by version 2 of the token hash; this embank has version 1, which gives "
        r"tokens other ids"
    )
    with pytest.raises(DataError, match=message):
        Schema.load(tmp_path)


def test_ids_that_are_no_hashes_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir(parents=True)
    (tmp_path / "schema.json").write_text((folder / "schema.json").read_text())
    part = pl.read_parquet(folder / "train")
    negative = part.with_columns(
        item=pl.when(pl.col("raw") == part["raw"][4]).then(-7).otherwise("item").cast(pl.Int64)
    )
    narrow = part.with_columns(pl.col("item").mod(7).cast(pl.Int32))
    for frame, message in (
        (negative, r"row 4: feature 'item' has id -7, but hashes of tokens are 0 or more\. Prepare the data again"),
        (narrow, r"column 'item' has type int32, expected int64\. Prepare the data again"),
    ):
        frame.with_columns(pl.col("user").cast(pl.Int32)).write_parquet(tmp_path / "train" / "part-00000.parquet")
        with pytest.raises(DataError, match=message):
            list(Loader(tmp_path, "train", batch_size=64, shuffle=False).epoch(0))


class TestDistinct:
    def test_few_are_counted_exactly_whatever_the_parts(self) -> None:
        ids = token_ids(np.arange(KEPT - 1))
        whole, parts = DistinctCount(), DistinctCount()
        whole.add(ids)
        for part in np.array_split(np.random.default_rng(0).permutation(np.concatenate([ids, ids])), 40):
            parts.add(part)
        assert whole.count == parts.count == KEPT - 1
        assert whole.is_exact
        assert DistinctCount().count == 0

    @pytest.mark.parametrize("count", [KEPT, 40_000, 1_000_000])
    def test_many_are_estimated(self, count: int) -> None:
        """Within four standard deviations of 1 / sqrt(k - 2); the values are one draw of a fixed hash."""
        ids = token_ids(np.arange(count))
        whole, parts = DistinctCount(), DistinctCount()
        whole.add(ids)
        for part in np.array_split(ids[::-1], 17):
            parts.add(part)
        assert whole.count == parts.count
        assert not whole.is_exact
        assert abs(whole.count / count - 1) < 4 / (KEPT - 2) ** 0.5

    def test_the_estimate_is_unbiased(self) -> None:
        errors = []
        for seed in range(30):
            counter = DistinctCount()
            counter.add(np.random.default_rng(seed).integers(0, 2**63 - 1, 50_000))
            errors.append(counter.count / 50_000 - 1)
        assert abs(np.mean(errors)) < 4 * (1 / (KEPT - 2) / 30) ** 0.5
