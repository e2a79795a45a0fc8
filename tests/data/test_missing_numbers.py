"""What is written where a number is missing, and which spellings are missing."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from tests.data import naive_prepare as naive

from embank.pipelines.config.columns import parse_config
from embank.pipelines.data.prepare.numeric_fields import finished
from embank.pipelines.data.prepare.prepare import prepare
from embank.pipelines.data.schema import NumericField, Schema
from embank.tables.errors import ConfigError, DataError

CELLS = ["3", None, "8.5", "-2", None, "0", "40", None, "7", "1"] * 2
TRAIN = CELLS[:12]


def prepared(tmp_path: Path, cells: list[str | None], numeric: Any, **more: Any) -> Schema:
    path = tmp_path / "log.csv"
    path.write_text("y,c,x\n" + "".join(f"{i % 2},c{i % 3},{cell or ''}\n" for i, cell in enumerate(cells)))
    config = {"label": {"column": "y"}, "categorical": ["c"], "numeric": numeric, **more}
    return prepare(
        {**config, "split": {"by": "ratio", "ratios": [0.6, 0.2, 0.2]}}, [path], tmp_path / "out", overwrite=True
    )


def column(tmp_path: Path, name: str) -> list[float]:
    return [row[name] for split in naive.SPLITS for row in naive.read_rows(tmp_path / "out", split)]


@pytest.mark.parametrize("missing", ["zero", "mean", "indicator", None])
@pytest.mark.parametrize("kind", ["none", "log1p", "standard", "log_squared"])
def test_missing_numbers_equal_the_slow_way(tmp_path: Path, kind: str, missing: str | None) -> None:
    numeric = {"x": kind if missing is None else {"transform": kind, "missing": missing}}
    schema = prepared(tmp_path, CELLS, numeric)
    want = naive.numbers(CELLS, TRAIN, kind, missing or "mean")
    assert column(tmp_path, "x") == pytest.approx(want, rel=1e-6, abs=1e-6)
    field = schema.numeric[0]
    assert (field.missing, field.fill) == (missing or "mean", pytest.approx(want[1], abs=1e-6))
    if missing == "indicator":
        assert tuple(field.name for field in schema.numeric) == ("x", "x_missing")
        assert column(tmp_path, "x_missing") == [float(cell is None) for cell in CELLS]
    else:
        assert tuple(field.name for field in schema.numeric) == ("x",)
    assert Schema.load(tmp_path / "out") == schema


def test_the_schema_says_how_other_rows_are_written(tmp_path: Path) -> None:
    field = prepared(tmp_path, CELLS, {"x": "standard"}).numeric[0]
    values_N = np.array([float("nan") if cell is None else float(cell) for cell in CELLS])
    assert finished(values_N, field).tolist() == column(tmp_path, "x")
    old = NumericField(name="x", transform="none", mean=None, std=None)
    assert finished(np.array([float("nan"), 2.0]), old).tolist() == [0.0, 2.0]


def test_the_saved_configuration_and_the_published_rule(tmp_path: Path) -> None:
    prepared(tmp_path, CELLS, {"x": {"transform": "log1p", "missing": "indicator"}})
    assert "missing: indicator" in (tmp_path / "out" / "config.yaml").read_text()
    row = "\t".join(["1", *[""] * 13, *["a"] * 26]) + "\n" + "\t".join(["0", *["5"] * 13, *["b"] * 26]) + "\n"
    (tmp_path / "train.txt").write_text(row * 10)
    schema = prepare(None, [tmp_path / "train.txt"], tmp_path / "criteo", format="criteo")
    assert {(field.missing, field.fill) for field in schema.numeric} == {("zero", 0.0)}
    assert naive.read_rows(tmp_path / "criteo", "train")[0]["I1"] == 0.0


def test_an_indicator_needs_a_name_of_its_own() -> None:
    config = {"label": {"column": "y"}, "categorical": ["x_missing"], "numeric": {"x": {"missing": "indicator"}}}
    with pytest.raises(ConfigError, match=r"makes a feature 'x_missing', but there is one of that name; rename"):
        parse_config(config, origin="columns.yaml")


def test_spellings_that_no_number_can_be_are_missing(tmp_path: Path) -> None:
    spellings = ["NULL", "null", "\\N", "None", "NA", "N/A", "<NA>", "-"]
    cells = [str(number) for number in range(12)] + spellings
    prepared(tmp_path, cells, {"x": {"transform": "none", "missing": "indicator"}})
    assert column(tmp_path, "x_missing") == [0.0] * 12 + [1.0] * len(spellings)
    for odd in ("nan", "?", "--", "NULL 1"):
        with pytest.raises(DataError, match=r"line 14: column 'x' is .*null_values"):
            prepared(tmp_path, [*cells[:12], odd, "1"], ["x"])
    prepared(
        tmp_path,
        [*cells[:12], "nan", "?", "", "-1", "-1.0", "7"],
        {"x": {"missing": "indicator"}},
        null_values=["nan", "?", -1],
    )
    assert column(tmp_path, "x_missing")[12:] == [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]


TOKENS = ["a", "NULL", "NULL|b", "None", "-", "null", "", " - "]


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_categories_are_missing_only_where_it_is_stated(tmp_path: Path, format: str) -> None:
    frame = pl.DataFrame({"y": [0, 1] * 8, "c": TOKENS * 2, "d": TOKENS * 2, "n": [-1, 5] * 8})
    path = tmp_path / f"log.{format}"
    frame.write_csv(path) if format == "csv" else frame.write_parquet(path)
    config = {
        "label": "y",
        "categorical": ["c", "n"],
        "multivalued": {"d": "|"},
        "split": {"by": "ratio", "ratios": [0.5, 0.3, 0.2]},
    }

    def read(name: str, null_values: list[Any]) -> dict[str, list[Any]]:
        prepare({**config, "null_values": null_values}, [path], tmp_path / name, format=format)
        rows = naive.read_rows(tmp_path / name, "train")
        return {column: [naive.decode(tmp_path / name, column, row[column]) for row in rows] for column in "cdn"}

    plain = read("plain", [])
    assert plain["c"] == ["a", "NULL", "NULL|b", "None", "-", "null", None, "-"]
    assert plain["d"] == [["a"], ["NULL"], ["NULL", "b"], ["None"], ["-"], ["null"], [], ["-"]]
    assert plain["n"] == ["-1", "5"] * 4
    stated = read("stated", [None, "None", "-", -1])  # YAML reads an unquoted NULL as None
    assert stated["c"] == ["a", None, "NULL|b", None, None, None, None, None]
    assert stated["d"] == [["a"], [], ["b"], [], [], [], [], []]
    assert stated["n"] == [None, "5"] * 4
    assert read("again", naive_config(tmp_path / "stated")["null_values"]) == stated


def naive_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text())
    return config
