"""Folders that are prepared like a run or its bundle: what evaluation and training make of them."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from embank.pipelines.data.prepare.prepare import prepare
from embank.pipelines.data.preprocessing.rules import Preprocessing
from embank.pipelines.runs.evaluate import evaluate_saved
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.train.trainer import Trainer
from embank.tables.errors import ConfigError, DataError
from embank.tables.storage.checksums import CHECKSUMS, write_checksums
from tests.data.test_preprocessing import CONFIG, csv_of, rows_of
from tests.training.runs import config, train

SECTIONS: dict[str, Any] = {
    "train": {"epochs": 1},
    "tables": {"overrides": {"page": {"method": "hash", "num_rows": 20, "budget": None}}},
}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw log, the folder that was prepared from it, and a run on that; the folder is gone from its place."""
    folder = tmp_path_factory.mktemp("first")
    raw = csv_of(folder / "log.csv", rows_of(500))
    prepare({**CONFIG, "hashed": ["page"], "group": "user"}, raw, folder / "data", format="csv")
    train(folder / "data", folder / "run", **SECTIONS)
    (folder / "data").rename(folder / "kept")
    return folder


def test_evaluation_is_that_of_the_original_folder(first: Path, tmp_path: Path) -> None:
    result = RunFolder(first / "run").read_result()
    prepare(None, first / "log.csv", tmp_path / "like", like=first / "run")
    values = evaluate_saved(first / "run/bundle", data=tmp_path / "like", split="test")  # as result.json was made
    same = ["auc", "logloss", "gauc", "calibration", "serving_bytes"]
    assert {name: values[name] for name in same} == {name: result[name] for name in same}
    assert values["step"] == result["best_step"]
    like = evaluate_saved(first / "run", data=tmp_path / "like", split="test")
    kept = evaluate_saved(first / "run", data=first / "kept", split="test")
    assert {**like, "data": ""} == {**kept, "data": ""}
    assert like["auc"] == result["auc"]


def test_a_new_day_is_one_split(first: Path, tmp_path: Path) -> None:
    raw = csv_of(tmp_path / "monday.csv", rows_of(60, seed=8))
    prepare(None, raw, tmp_path / "monday", like=first / "run", split="test")
    assert evaluate_saved(first / "run", data=tmp_path / "monday", split="test")["auc"] is not None
    with pytest.raises(DataError, match=r"monday' has no rows in its valid split; those with rows: test"):
        evaluate_saved(first / "run", data=tmp_path / "monday", split="valid")
    with pytest.raises(DataError, match="has no rows in its train split; training needs train, valid and test"):
        train(tmp_path / "monday", tmp_path / "run", **SECTIONS)


def test_rows_without_labels_are_neither_measured_nor_trained_on(first: Path, tmp_path: Path) -> None:
    rows = [{name: cell for name, cell in row.items() if name != "click"} for row in rows_of(60)]
    raw = csv_of(tmp_path / "new.csv", rows)
    prepare(None, raw, tmp_path / "new", like=first / "run", labelled=False)
    for saved in ("run", "run/bundle"):
        with pytest.raises(DataError, match=r"have no labels .*`embank predict` scores those without"):
            evaluate_saved(first / saved, data=tmp_path / "new", split="test")
    with pytest.raises(DataError, match="have no labels"):
        train(tmp_path / "new", tmp_path / "run", **SECTIONS)


def test_without_tokens_bundles_can_be_evaluated_and_runs_can_not(first: Path, tmp_path: Path) -> None:
    shutil.copytree(first / "run/bundle", tmp_path / "index")
    shutil.rmtree(tmp_path / "index/tokens")
    (tmp_path / "index" / CHECKSUMS).unlink()
    write_checksums(tmp_path / "index")
    prepare(None, first / "log.csv", tmp_path / "like", like=tmp_path / "index")
    values = evaluate_saved(tmp_path / "index", data=tmp_path / "like", split="test")
    assert values["auc"] == RunFolder(first / "run").read_result()["auc"]
    refusal = "has no vocabularies .* Bundles can be evaluated on it"
    with pytest.raises(DataError, match=refusal):
        evaluate_saved(first / "run", data=tmp_path / "like", split="test")
    with pytest.raises(DataError, match=refusal):
        train(tmp_path / "like", tmp_path / "run", **SECTIONS)


def test_other_vocabularies_are_refused_with_the_command_that_helps(first: Path, tmp_path: Path) -> None:
    raw = csv_of(tmp_path / "monday.csv", rows_of(60, seed=8))
    prepare({**CONFIG, "hashed": ["page"], "group": "user"}, raw, tmp_path / "anew")
    with pytest.raises(ConfigError) as caught:
        evaluate_saved(first / "run", data=tmp_path / "anew", split="test")
    assert str(caught.value).endswith(
        f"Prepare it with the training data's vocabularies: embank prepare --like {first / 'run'} --input FILE "
        "--out DIR"
    )


def test_training_goes_on_a_folder_that_was_prepared_like_another(first: Path, tmp_path: Path) -> None:
    prepare(None, first / "log.csv", tmp_path / "like", like=first / "run")
    result = train(tmp_path / "like", tmp_path / "run", **SECTIONS)
    assert result["auc"] == RunFolder(first / "run").read_result()["auc"]


def test_a_run_goes_on_with_the_rows_of_a_new_day(first: Path, tmp_path: Path) -> None:
    raw = csv_of(tmp_path / "monday.csv", rows_of(200, seed=8))
    prepare(None, raw, tmp_path / "monday", like=first / "run")
    chosen = config(tmp_path / "monday", **{**SECTIONS, "train": {"epochs": 1, "seed": 7}})
    result = Trainer(chosen, tmp_path / "next").train(begin_with=first / "run")
    assert result["from"]["run"] == str(first / "run")
    begun = RunFolder(tmp_path / "next").read_metrics()[0]
    before = evaluate_saved(first / "run", data=tmp_path / "monday", split="valid")
    assert (begun["step"], begun["auc"], begun["logloss"]) == (0, before["auc"], before["logloss"])
    rules = Preprocessing.load(tmp_path / "next/bundle")  # raw rows go on as they did
    assert rules.index.arrays().keys() == Preprocessing.load(first / "run/bundle").index.arrays().keys()
    assert rules.schema.fingerprint == RunFolder(first / "run").fingerprint
