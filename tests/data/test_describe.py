"""What `embank data describe` and `embank prepare` say of values that training never sees."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from embank.pipelines.cli import show
from embank.pipelines.data.describe import describe, untrained_unknown
from embank.pipelines.data.prepare.prepare import prepare

COLUMNS: dict[str, Any] = {
    "label": {"column": "click"},
    "categorical": ["user", "shop", "query"],
    "hashed": ["query"],
    "split": {"by": "ratio", "ratios": [0.6, 0.2, 0.2]},
}


def prepared(folder: Path, **changes: Any) -> Path:
    """100 rows: shops are all in training, each user of the last 40 rows is new, and half of the others occur once."""
    users = [*(f"u{i // 2}" for i in range(30)), *(f"once{i}" for i in range(30)), *(f"new{i}" for i in range(40))]
    columns = {"click": [i % 2 for i in range(100)], "user": users, "shop": [f"s{i % 5}" for i in range(100)]}
    pl.DataFrame({**columns, "query": users}).write_csv(folder / "log.csv")
    prepare({**COLUMNS, **changes}, [folder / "log.csv"], folder / "data")
    return folder / "data"


SAID = (
    "training never sees the unknown value in 1 feature with new values in valid or test (user): new values read a "
    "row as it was initialised. min_count: 2"
)


@pytest.mark.parametrize(("min_count", "is_trained"), [(1, False), (2, True), ({"user": 2}, True), ({"user": 3}, True)])
def test_an_unknown_value_that_training_never_sees_is_named(tmp_path: Path, min_count: Any, is_trained: bool) -> None:
    described = describe(prepared(tmp_path, min_count=min_count))
    assert {f.name: f.trains_unknown for f in described.features if f.name != "shop"} == {
        "user": is_trained,
        "query": None,
    }
    text = " ".join(described.render().split())
    assert (SAID in text) == (not is_trained)
    assert "shop)" not in text, "it has no new values"


def test_prepare_says_so_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = prepared(tmp_path)
    show.prepared(data, describe(data).schema)
    said = " ".join(capsys.readouterr().out.split())
    assert "training never sees the unknown value in 2 features (user, shop): new values" in said


def test_many_features_are_counted() -> None:
    assert "in 26 features (C1, C2, C3, C4, C5, C6, C7, C8 and 18 more)" in untrained_unknown(
        [f"C{i}" for i in range(1, 27)]
    )
