"""Training through a codec that can't hold the rows: which is a rate's fault, and which a codec's."""

from pathlib import Path

import pytest
import torch

from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import build
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
