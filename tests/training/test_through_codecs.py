"""Training through a codec that can't hold the rows: which is a rate's fault, and which a codec's."""

from pathlib import Path
from typing import Any

import pytest
import torch

from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import build
from embank.pipelines.runs.export import export_run
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.train import session
from embank.pipelines.train.step import NonFiniteLossError, Stepper
from embank.tables import ConfigError, StraightThrough, TableCollection
from tests.training.runs import config, train


@pytest.mark.parametrize(
    ("number", "fact"),
    [
        (1e30, r"rows reach 1e\+30, more than steps and offsets in fp16 hold"),
        (torch.nan, "rows are not finite, so codec"),
    ],
)
def test_rows_that_grow_beyond_their_codec_are_told_as_diverging(
    data: Path, tmp_path: Path, number: float, fact: str
) -> None:
    """They were told as those of a codec to be changed, without the table and the step."""
    settings = config(data, train={"table_lr": 0.5})
    model = build(settings, Schema.load(data), data=data, rows_folder=tmp_path)
    assert isinstance(model.tables, TableCollection)
    coded = StraightThrough(model.tables, {spec.name: "int2" for spec in model.tables.specs})
    stepper = Stepper(model, config=settings.train, batch_size=64, num_rows=600, num_steps=10, coded=coded)
    batches = Loader(data, "train", batch_size=64, shuffle=False, address=stepper.address).epoch(0)
    stepper(next(batches), step=0)
    name = next(iter(coded.coded))
    with model.tables.writing(), torch.no_grad():
        model.tables.weights()[name][1, 1] = number
    batch = next(batches)
    told = (
        rf"diverges in step 1 \(epoch 0, batch 1\): table '{name}': {fact}[^;]*; lower train.table_lr \(0.5\), or warm"
    )
    with pytest.raises(NonFiniteLossError, match=told) as diverged:
        stepper(batch, step=1)
    assert "use codec" not in str(diverged.value)
    with pytest.raises(ConfigError, match=f"table '{name}': {fact}.*; use "):  # no step has made these
        stepper(batch, step=0)


def test_an_evaluation_of_rows_beyond_their_codec_tells_that_training_diverges(data: Path, tmp_path: Path) -> None:
    """It comes before the next step, which would have told so."""
    settings = {"straight_through": "int2", "table_lr": 1e9, "table_optimizer": "sgd", "eval_every": 1}
    with pytest.raises(
        NonFiniteLossError, match=r"diverges before the evaluation after step 1: .*; lower train.table_lr"
    ):
        train(data, tmp_path / "run", train=settings)


@pytest.mark.parametrize("method", ["pep", "autosrh"])
@pytest.mark.parametrize("table_lr", [0.05, "auto"])
def test_a_method_that_codes_its_rows_in_its_last_stage_is_refused_before_its_first(
    data: Path, tmp_path: Path, method: str, table_lr: float | str
) -> None:
    """It was refused once the stages before had been trained."""
    sections = {"tables": {"method": method}, "train": {"straight_through": "int2", "table_lr": table_lr}}
    with pytest.raises(ConfigError, match=f"the rows of method '{method}' are not what is coded in the end"):
        train(data, tmp_path / "run", **sections)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


COARSE = (
    "table 'user': codec 'pq': 13 columns can't be cut into 6 parts of one width, so there is one codebook, and 16 "
    "centroids stand for 13 columns at a time: little of a vector is kept. {} rows of 14 columns, or take another "
    "codec, such as int4"
)


@pytest.mark.parametrize(
    "sections",
    [
        {"tables": {"dim": 13}, "train": {"straight_through": "pq"}},
        {"tables": {"dim": 13}, "train": {"straight_through": "pq", "table_lr": "auto"}},
        {"tables": {"dim": 13, "codec": "pq"}},
        {"tables": {"dim": 8, "overrides": {"user": {"dim": 13, "codec": "pq"}}}},
    ],
    ids=["through", "measured", "codec", "override"],
)
def test_rows_that_codes_can_not_cut_are_refused_before_they_are_trained(
    data: Path, tmp_path: Path, sections: dict[str, Any]
) -> None:
    """They were trained and served with 16 centroids for whole rows, without a word."""
    with pytest.raises(ConfigError) as refused:
        train(data, tmp_path / "run", **sections)
    assert str(refused.value) == COARSE.format("Give it")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert not RunFolder(tmp_path / "run").is_run, "the same --out may be given again"


def test_rows_that_are_cut_as_asked_are_trained(data: Path, tmp_path: Path) -> None:
    """And few rows, of which none is lost, and what methods code themselves."""
    overrides = {"item": {"dim": 13}, "genre": {"method": "dpq", "dim": 13}}
    result = train(
        data, tmp_path / "run", tables={"dim": 14, "codec": "pq", "overrides": overrides}, train={"epochs": 1}
    )
    assert result["auc"] is not None


def test_a_run_is_not_exported_under_codes_that_can_not_cut_its_rows(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "run", tables={"dim": 13}, train={"epochs": 1})
    with pytest.raises(ConfigError) as refused:
        export_run(tmp_path / "run", out=tmp_path / "out", codec="pq")
    assert str(refused.value) == COARSE.format("Train it with")
    assert not (tmp_path / "out").exists()
    export_run(tmp_path / "run", out=tmp_path / "out", codec="pca12+pq")


def test_widths_that_a_search_has_found_are_told(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was trained until then stays of use."""
    tables = {"dim": 13, "method": "autodim", "codec": "pq"}
    monkeypatch.setattr(session, "coarse_codes", lambda *_, **__: [COARSE])
    with caplog.at_level("WARNING"):
        train(data, tmp_path / "run", tables=tables, train={"epochs": 1})
    assert COARSE in caplog.messages
