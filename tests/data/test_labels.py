"""Which cells of the label column are of which class."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from embank.pipelines.config.columns import LabelConfig, merge, parse_config
from embank.pipelines.data.prepare.labels import LabelRule
from embank.pipelines.data.prepare.prepare import prepare
from embank.pipelines.data.sources.formats.base import Chunk
from embank.pipelines.reporting import Reporter
from embank.tables.errors import ConfigError, DataError


def labels(cells: Any, **rules: str) -> list[int]:
    frame = pl.DataFrame({"y": cells})
    chunk = Chunk(frame=frame, where=lambda row: f"log.csv, line {row + 2}", num_bytes=0, path=Path("log.csv"))
    return LabelRule.build(LabelConfig(column="y", **rules)).apply(chunk).tolist()


@pytest.mark.parametrize(
    ("cells", "rules", "expected"),
    [
        (["1", "0", "1.0", "0.0"], {}, [1, 0, 1, 0]),
        (["True", "False", "TRUE", "false"], {}, [1, 0, 1, 0]),
        (["yes", "No"], {}, [1, 0]),
        (["n", "Y"], {}, [0, 1]),
        (["t", "F"], {}, [1, 0]),
        ([True, False], {}, [1, 0]),
        (pl.Series(["yes", "no"], dtype=pl.Categorical), {}, [1, 0]),
        (["True", "False"], {"positive": "== True"}, [1, 0]),
        (["click", "view", "click it", "Click"], {"positive": "==click"}, [1, 0, 0, 0]),
        (["click", "view", "buy"], {"positive": "== buy", "negative": "== view"}, [-1, 0, 1]),
        (["click", "view", "buy"], {"negative": "!= buy"}, [0, 0, 1]),
        (["not now", "now"], {"positive": "== not now"}, [1, 0]),
        ([True, False], {"positive": "== True"}, [1, 0]),
        ([True, False], {"positive": "!= true"}, [0, 1]),
        (pl.Series(["like", "skip"], dtype=pl.Enum(["skip", "like"])), {"positive": "== like"}, [1, 0]),
        (["1", "3", "5"], {"positive": ">= 4", "negative": "<= 2"}, [0, -1, 1]),
        ([1, 3, 5], {"positive": "== 5.0"}, [0, 0, 1]),
        ([True, False], {"positive": "== 1"}, [1, 0]),
    ],
)
def test_classes(cells: Any, rules: Mapping[str, str], expected: list[int]) -> None:
    assert labels(cells, **rules) == expected


@pytest.mark.parametrize(
    ("cells", "rules", "expected"),
    [
        (
            ["1", "2"],
            {},
            "label 'y' is '2': expected 0 or 1; mend the line, or give a rule such as `positive: \">= 4\"`.",
        ),
        (["1", "click"], {}, "label 'y' is 'click': expected 0 or 1; mend .* rule such as `positive: \"== click\"`."),
        (["yes", "1"], {}, r"label 'y' is '1': expected no or yes; mend the line\.$"),
        (["yes", "Y"], {}, r"label 'y' is 'Y': expected no or yes; mend the line\.$"),
        (["1", "yes"], {}, r"label 'y' is 'yes': expected 0 or 1; mend the line\.$"),
        (
            ["1", "-1"],
            {},
            "label 'y' is '-1': expected 0 or 1; mend the line, or give a rule such as `positive: \"> 0\"`.",
        ),
        (["yes", None], {}, r"label 'y' is missing: expected no or yes; mend the line or delete it\.$"),
        (["1", None], {}, r"label 'y' is missing: expected 0 or 1; mend the line or delete it\.$"),
        (["yes", None], {"positive": "== yes"}, "label 'y' is missing: expected a word, which the label rules need"),
        (
            [1, 0],
            {"positive": "== yes"},
            "label 'y' has type Int64, but the label rule compares it with the word 'yes'. Compare it with a number.",
        ),
        (["1", "x"], {"positive": "== 1"}, "label 'y' is 'x': expected a number, which the label rules need"),
        (["a", "b"], {"positive": "!= a", "negative": "!= c"}, "label 'y' is 'b': it matches both label rules"),
    ],
)
def test_cells_of_no_class(cells: Any, rules: Mapping[str, str], expected: str) -> None:
    with pytest.raises(DataError, match=rf"^log\.csv, line \d: {expected}"):
        labels(cells, **rules)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"positive": "> yes"}, "label.positive is '> yes'; > compares numbers. Words are compared with == or !=."),
        (
            {"positive": ">= 1" + "0" * 5000},
            f"label.positive is '>= 1{'0' * 112}...; the number is too large for any cell.",
        ),
        ({"positive": "=="}, "label.positive is '=='; a rule is an operator"),
        ({"negative": "yes"}, "label.negative is 'yes'; a rule is an operator"),
        (
            {"positive": "== yes", "negative": "== 0"},
            "label.positive is '== yes' and label.negative '== 0'; one compares words",
        ),
    ],
)
def test_rules_that_are_none(rules: dict[str, str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        labels(["1"], **rules)
    assert str(caught.value).startswith(expected)


def test_a_label_in_short() -> None:
    assert parse_config({"label": "click", "categorical": ["c"]}, origin="x").label == LabelConfig(column="click")
    default = {"label": {"column": "rating", "positive": ">= 4"}}
    assert merge(default, {"label": "rating"})["label"] == default["label"]
    assert np.array_equal(labels(["yes"]), [1])


@pytest.mark.parametrize("label", ["stars", {"column": "stars"}, {"column": "stars", "negative": "<= 1"}])
def test_a_label_of_another_column_begins_without_rules(label: Any) -> None:
    default = {"label": {"column": "rating", "positive": ">= 4", "negative": "<= 2"}}
    assert merge(default, {"label": label})["label"] == ({"column": "stars"} if label == "stars" else label)
    for same in ({"positive": ">= 5"}, {"column": "rating", "positive": ">= 5"}):
        assert merge(default, {"label": same})["label"] == {**default["label"], "positive": ">= 5"}


class Notes(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_rows_that_match_no_rule_are_counted_aloud(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("rating,item\n" + "".join(f"{row % 5 + 1},i{row % 3}\n" for row in range(2000)))
    config = {
        "label": {"column": "rating", "positive": ">= 4", "negative": "<= 2"},
        "categorical": ["item"],
        "split": {"by": "ratio"},
    }
    notes = Notes()
    prepare(config, log, tmp_path / "out", reporter=notes)
    assert notes.notes == [
        f"{log}: 400 of 2,000 rows are left out, as they match neither label.positive nor label.negative"
    ]
    quiet = Notes()
    prepare({**config, "label": {"column": "rating", "positive": ">= 4"}}, log, tmp_path / "all", reporter=quiet)
    assert quiet.notes == []
