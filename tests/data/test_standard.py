"""The transform `standard` at its ends: constant columns, and numbers beyond 32 bits."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tests.data import naive_prepare as naive
from tests.data.test_preprocessing import rules_of

from embank.pipelines.data.prepare.moments import Moments
from embank.pipelines.data.prepare.prepare import prepare
from embank.pipelines.data.preprocessing.encode import RowEncoder
from embank.pipelines.data.preprocessing.few import FewRows
from embank.pipelines.data.preprocessing.frames import chunk_of
from embank.pipelines.data.schema import Schema
from embank.tables.errors import DataError


def prepared(tmp_path: Path, values: list[float], *, kind: str = "standard") -> Schema:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"x": values, "y": [number % 2 for number in range(len(values))]}).write_parquet(path)
    config = {"label": "y", "numeric": {"x": kind}, "split": {"by": "ratio", "ratios": [0.8, 0.1, 0.1]}}
    return prepare(config, path, tmp_path / "out", format="parquet")


@pytest.mark.parametrize("value", [0.1, 1 / 3, -1e30, 16_777_217.0, 0.0])
@pytest.mark.parametrize("blocks", [[1000], [1, 999], [7] * 100, [3, 0, 64, 1]])
def test_the_moments_of_one_value_are_exact(value: float, blocks: list[int]) -> None:
    moments = Moments()
    for size in blocks:
        moments.add(np.array([np.nan, *[value] * size]))
    assert (moments.mean, moments.std) == (value, 1.0)
    moments.add(np.array([value + 1.0, value + 3.0]))
    whole = np.array([value] * sum(blocks) + [value + 1.0, value + 3.0])
    assert moments.mean == pytest.approx(whole.mean(), rel=1e-12)
    if abs(value) < 1e9:
        assert moments.std == pytest.approx(whole.std(), rel=1e-9)


def test_a_column_that_is_constant_in_training_keeps_its_distances(tmp_path: Path) -> None:
    field = prepared(tmp_path, [0.1] * 800 + [0.1, 0.2] * 100).numeric[0]
    assert (field.mean, field.std) == (0.1, 1.0)
    assert {row["x"] for row in naive.read_rows(tmp_path / "out", "train")} == {0.0}
    assert {row["x"] for row in naive.read_rows(tmp_path / "out", "test")} == {0.0, float(np.float32(0.1))}


@pytest.mark.parametrize(("row", "value"), [(190, 1e300), (3, 1e200), (3, -1e39)])
def test_numbers_beyond_32_bits_are_refused_with_their_row(tmp_path: Path, row: int, value: float) -> None:
    values = [float(number) for number in range(200)]
    values[row] = value
    for kind in ("none", "standard"):
        with pytest.raises(
            DataError,
            match=rf"log\.parquet, row {row + 1}: column 'x' is {re.escape(str(value))}, beyond 32-bit floats",
        ):
            prepared(tmp_path, values, kind=kind)
        assert not (tmp_path / "out").exists()


def test_numbers_that_scaling_makes_too_large_are_refused(tmp_path: Path) -> None:
    tiny = [1e-30 * number for number in range(200)]
    with pytest.raises(DataError, match=r"column 'x' is 1e\+20, beyond 32-bit floats after `standard` \(the mean"):
        prepared(tmp_path, [*tiny[:195], 1e20, *tiny[196:]])
    prepared(tmp_path, tiny)
    assert served(tmp_path, [{"x": 1.0}, {"x": 1e20}]).startswith("rows[1]: column 'x' is 1e+20, beyond 32-bit floats")


def served(tmp_path: Path, rows: list[dict[str, Any]]) -> str:
    """The error about rows; the shorter way leaves it to `RowEncoder`."""
    rules = rules_of(tmp_path / "out")
    assert FewRows(rules).encode(rows) is None
    with pytest.raises(DataError) as caught:
        RowEncoder(rules, remembers=False).encode(chunk_of(rows, rules.columns, numeric=["x"]))
    assert (caught.value.field, caught.value.row, caught.value.value) == ("x", 1, rows[1]["x"])
    return str(caught.value)


@pytest.mark.parametrize("kind", ["standard", "none"])
def test_served_numbers_beyond_32_bits_are_refused(tmp_path: Path, kind: str) -> None:
    prepared(tmp_path, [float(number) for number in range(200)], kind=kind)
    assert served(tmp_path, [{"x": 1.0}, {"x": 1e300}]).startswith(
        "rows[1]: column 'x' is 1e+300, beyond 32-bit floats"
    )
