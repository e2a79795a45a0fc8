"""Vocabularies of bundles that follow each other: tokens that came and went are named and counted."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from embank.pipelines import apply_delta, make_delta
from embank.pipelines.cli.app import app
from embank.pipelines.data.prepare.prepare import prepare
from embank.pipelines.data.preprocessing.rules import Preprocessing
from embank.tables import CheckpointError, Vocabulary, save_bundle
from tests.deltas.bundles import files, moved, network, tables

CONFIG: dict[str, Any] = {
    "label": {"column": "click"},
    "categorical": ["user", "item"],
    "split": {"by": "column", "column": "split"},
}
MONDAY = {"user": ["ann", "ann", "ann", "bob", "bob", "eve"], "item": ["x", "x", "x", "x", "y", "y"]}
TUESDAY = {"user": ["ann", "ann", "ann", "zoe", "zoe", "bob"], "item": ["x", "x", "x", "x", "y", "y"]}


def bundle(folder: Path, name: str, columns: dict[str, list[str]], *, tokens: bool = True, by: float = 0.0) -> Path:
    rows = {key: [*values, values[0], values[0]] for key, values in columns.items()}
    rows |= {"click": [0, 1] * 4, "split": ["train"] * 6 + ["valid", "test"]}
    pl.DataFrame(rows).write_csv(folder / f"{name}.csv")
    prepare(CONFIG, folder / f"{name}.csv", folder / f"{name}_data", format="csv")
    rules = Preprocessing.of_prepared(folder / f"{name}_data")
    assert rules is not None
    made = moved(tables(20, names=("user", "item")), [1], by=by)
    save_bundle(folder / name, made, network=network(by), files=rules.files(tokens=tokens))
    return folder / name


@pytest.mark.parametrize("tokens", [True, False])
def test_tokens_that_came_and_went(tokens: bool, tmp_path: Path) -> None:
    old, new = (bundle(tmp_path, name, rows, tokens=tokens) for name, rows in (("o", MONDAY), ("n", TUESDAY)))
    report = make_delta(old, new, tmp_path / "d")
    user, item = sorted(report.vocabularies, key=lambda change: change.name, reverse=True)
    assert (user.name, user.num_tokens, user.num_added, user.num_evicted, user.num_moved) == ("user", 3, 1, 1, 1)
    assert (item.name, item.num_tokens, item.num_added, item.num_evicted, item.num_moved) == ("item", 2, 0, 0, 0)
    named = pl.read_parquet(tmp_path / "d" / "tokens.parquet").sort("new_id", nulls_last=True)
    ids = {name: Vocabulary.load(tmp_path / f"{name}_data/vocab/user.parquet") for name in ("o", "n")}
    assert named.select("feature", "old_id", "new_id").rows() == [
        ("user", None, int(ids["n"].encode(["zoe"])[0])),
        ("user", int(ids["o"].encode(["eve"])[0]), None),
    ]
    assert named["token"].to_list() == (["zoe", "eve"] if tokens else [None, None])
    found = apply_delta(old, tmp_path / "d", tmp_path / "result")
    assert found.vocabularies == report.vocabularies
    assert files(tmp_path / "result") == files(new)
    assert Preprocessing.load(tmp_path / "result").index.facts == Preprocessing.load(new).index.facts


def test_vocabularies_that_stay_are_not_sent(tmp_path: Path) -> None:
    old, new = (bundle(tmp_path, name, MONDAY, by=by) for name, by in (("o", 0.0), ("n", 0.5)))
    report = make_delta(old, new, tmp_path / "d")
    assert [change.num_moved for change in report.vocabularies] == [0, 0]
    assert sorted(files(tmp_path / "d")) == ["checksums.json", "manifest.json", "rows.safetensors"]
    apply_delta(old, tmp_path / "d", tmp_path / "result")
    assert files(tmp_path / "result") == files(new)


def test_the_command_says_that_tokens_moved(tmp_path: Path) -> None:
    old, new = (bundle(tmp_path, name, rows) for name, rows in (("o", MONDAY), ("n", TUESDAY)))
    done = CliRunner().invoke(app, ["delta", str(old), str(new), "--out", str(tmp_path / "d")])
    assert done.exit_code == 0
    assert "user             3      1        1         1" in done.output
    assert "tokens have other ids than before" in done.output
    assert "prepare new data with --like" in done.output


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    old, new = (bundle(tmp_path, name, rows) for name, rows in (("o", MONDAY), ("n", TUESDAY)))
    content = bytearray((new / "vocabulary.safetensors").read_bytes())
    content[-1] ^= 1
    (new / "vocabulary.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"vocabulary.safetensors' has been altered"):
        make_delta(old, new, tmp_path / "d")
