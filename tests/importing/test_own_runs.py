"""Runs of ours, made small without a training."""

from pathlib import Path

import pytest

from embank.pipelines import import_source, load_config
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.train.trainer import Trainer
from embank.tables import ConfigError
from tests.training.runs import config, train, write_data

MODEL = {"model": {"name": "deepfm", "hidden_units": [8]}, "tables": {"dim": 8}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    write_data(folder / "data", single={"user": 300, "item": 120})
    train(folder / "data", folder / "run", **MODEL, train={"epochs": 1})
    return folder


@pytest.mark.slow
def test_a_run_scores_as_it_did_and_small_ones_fit_their_budget(place: Path, tmp_path: Path) -> None:
    before = RunFolder(place / "run").read_result()
    same = import_source(place / "run", tmp_path / "same", kind="embank", config=load_config(place / "run/config.yaml"))
    assert same.result is not None
    assert (same.result["auc"], same.result["logloss"]) == (before["auc"], before["logloss"])
    for method in ("hash", "optembed"):  # one stage, and a search before it
        chosen = load_config(
            place / "run/config.yaml", overrides=[f"tables.method={method}", "tables.budget=0.5", "tables.codec=fp16"]
        )
        done = import_source(place / "run", tmp_path / method, kind="embank", config=chosen)
        assert done.result is not None
        assert done.result["serving_ratio"] <= 0.5
        assert 0 < max(table.error for table in done.tables) < 1.1
        assert sum(table.nbytes for table in done.tables) == done.result["serving_bytes"]
        if method == "hash":
            continue
        second = {**MODEL, "tables": {"dim": 8, "method": method, "budget": 0.5, "codec": "fp16"}}
        tuned = Trainer(config(place / "data", **second, train={"epochs": 1}), tmp_path / f"{method}-tuned")
        tuned.train(begin_with=tmp_path / method)
        begun, left = (RunFolder(tmp_path / name).read_metrics()[0] for name in (f"{method}-tuned", method))
        assert (begun["step"], begun["auc"], begun["logloss"]) == (0, left["auc"], left["logloss"])


def test_another_model_is_refused(place: Path, tmp_path: Path) -> None:
    chosen = config(place / "data", **{**MODEL, "model": {"name": "deepfm", "hidden_units": [7]}})
    with pytest.raises(ConfigError, match="of another model than the configuration's: its 'deep.0.weight' differs"):
        import_source(place / "run", tmp_path / "run", kind="embank", config=chosen)
    done = import_source(place / "run", tmp_path / "run", kind="embank", config=chosen, tables_only=True)
    assert (done.network, done.initial, done.result) == (0, [], None)
