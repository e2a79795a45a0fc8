"""Runs that begin with another run's model."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from embank.pipelines.reporting import Reporter
from embank.pipelines.runs.evaluate import evaluate_saved
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.state import SavedRun
from embank.pipelines.train import trainer
from embank.pipelines.train.interrupt import InterruptedRunError
from embank.pipelines.train.trainer import Trainer
from embank.tables import CheckpointError, ConfigError
from tests.training.runs import config, timeless, train, write_data
from tests.training.test_resume import StopAt

PLAIN = {"name": "deepfm", "hidden_units": [8]}


@pytest.fixture(scope="module")
def first(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "first"
    train(data, path, model=PLAIN, train={"epochs": 1})
    return path


class Notes(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def begin(data: Path, run: Path, start: Path, *, resume: bool = False, **sections: Any) -> dict[str, Any]:
    sections = {"model": PLAIN, "train": {"epochs": 1}, **sections}
    return Trainer(config(data, **sections), run).train(begin_with=start, resume=resume)


def last_state(run: Path) -> dict[str, torch.Tensor]:
    """Rows, their optimizer state, network and methods of the last checkpoint of a run."""
    folder = RunFolder(run).saved()[-1]
    saved = SavedRun(folder)
    state = {f"{part}.{name}": value for part in ("network", "methods") for name, value in saved.dense[part].items()}
    files = {path.name: path.read_bytes() for path in sorted((folder / "rows").glob("*.distcp"))}
    assert files
    return {**state, **{name: torch.frombuffer(bytearray(text), dtype=torch.uint8) for name, text in files.items()}}


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "optimizer"), [("fbgemm", "rowwise_adagrad"), ("torch", "adam")])
def test_it_goes_on_as_if_the_other_run_had(data: Path, tmp_path: Path, backend: str, optimizer: str) -> None:
    def run(name: str, *, epochs: int, begin_with: Path | None = None) -> None:
        chosen = config(
            data,
            model=PLAIN,
            rows={"backend": backend},
            train={"epochs": epochs, "optimizer": "sgd", "table_optimizer": optimizer},  # a network without state
        )
        chosen = replace(chosen, data=replace(chosen.data, shuffle=False))
        Trainer(chosen, tmp_path / name).train(begin_with=begin_with)

    run("whole", epochs=2)
    run("first", epochs=1)
    run("second", epochs=1, begin_with=tmp_path / "first")
    whole, second = last_state(tmp_path / "whole"), last_state(tmp_path / "second")
    assert whole.keys() == second.keys()
    for name, value in whole.items():
        assert torch.equal(value, second[name]), name
    records = {name: RunFolder(tmp_path / name).read_metrics() for name in ("whole", "first", "second")}
    same = ("auc", "logloss", "gauc", "calibration")
    valid = {name: [r for r in records[name] if r["split"] == "valid"] for name in records}
    assert [r["step"] for r in valid["second"]] == [0, 10]  # evaluated as it begins
    for ours, theirs in zip(valid["second"], valid["whole"], strict=True):
        assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    assert valid["second"][1]["train_logloss"] == valid["whole"][1]["train_logloss"]


def test_what_it_began_with_is_recorded(data: Path, first: Path, tmp_path: Path) -> None:
    notes = Notes()
    result = Trainer(config(data, model=PLAIN, train={"epochs": 1, "seed": 3}), tmp_path / "run", reporter=notes).train(
        begin_with=first / "bundle"
    )
    step = RunFolder(first).read_result()["best_step"]
    begun = result["from"]
    assert (begun["run"], begun["checkpoint"], begun["step"]) == (str(first), f"step-{step:09d}-evaluated", step)
    assert RunFolder(tmp_path / "run").start == begun
    assert notes.notes[0] == (
        f"begins with step {step} of run '{first}': tables and network; the rows' optimizer state (rowwise_adagrad) "
        "too; the network's optimizer is fresh"
    )
    assert "from" not in RunFolder(first).read_result()


def test_another_row_optimizer_begins_afresh(data: Path, first: Path, tmp_path: Path) -> None:
    notes = Notes()
    sections: dict[str, Any] = {"model": PLAIN, "train": {"epochs": 1, "table_optimizer": "sgd"}}
    Trainer(config(data, **sections), tmp_path / "run", reporter=notes).train(begin_with=first)
    assert "state is fresh: sgd here, rowwise_adagrad there" in notes.notes[0]


def test_what_training_makes_worse_is_not_served(data: Path, first: Path, tmp_path: Path) -> None:
    notes = Notes()
    sections: dict[str, Any] = {"model": PLAIN, "train": {"epochs": 1, "lr": 0.5, "table_lr": 5.0}}
    result = Trainer(config(data, **sections), tmp_path / "run", reporter=notes).train(begin_with=first)
    assert any(f"so the run serves what run '{first}' had" in note for note in notes.notes)
    assert (result["best_step"], result["best_epoch"]) == (0, 0)
    assert result["auc"] == RunFolder(first).read_result()["auc"]
    assert evaluate_saved(tmp_path / "run/bundle", data=data, split="test")["step"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("step", [None, 4])
def test_a_stopped_run_ends_the_same(
    data: Path, first: Path, tmp_path: Path, step: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(first, tmp_path / "first")
    whole = begin(data, tmp_path / "whole", tmp_path / "first")
    sections: dict[str, Any] = {"model": PLAIN, "train": {"epochs": 1}}
    if step is None:  # killed before there was a checkpoint
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "evaluate_and_save", lambda session: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                begin(data, tmp_path / "run", tmp_path / "first")
        assert not RunFolder(tmp_path / "run").saved()
    else:
        stopper = StopAt(step, signal.SIGTERM)
        with pytest.raises(InterruptedRunError):
            Trainer(config(data, **sections), tmp_path / "run", reporter=stopper).train(begin_with=tmp_path / "first")
        shutil.rmtree(tmp_path / "first")  # its own checkpoints are enough
    assert timeless(train(data, tmp_path / "run", resume=True, **sections)) == timeless(whole)
    assert RunFolder(tmp_path / "run").read_metrics() == RunFolder(tmp_path / "whole").read_metrics()


def test_a_changed_beginning_is_refused(
    data: Path, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(first, tmp_path / "first")
    monkeypatch.setattr(trainer, "evaluate_and_save", lambda session: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        begin(data, tmp_path / "run", tmp_path / "first")
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "first/checkpoints")
    with pytest.raises(CheckpointError, match="which the run begins with, is gone or has changed"):
        train(data, tmp_path / "run", resume=True, model=PLAIN, train={"epochs": 1})


@pytest.mark.slow
def test_methods_of_several_stages_begin_in_the_last(data: Path, tmp_path: Path) -> None:
    tables = {"dim": 4, "method": "dedup", "budget": 0.5, "plain_below": 0}
    sections: dict[str, Any] = {"model": PLAIN, "tables": tables, "train": {"epochs": 1}}
    whole = train(data, tmp_path / "first", **sections)
    result = begin(data, tmp_path / "second", tmp_path / "first", **sections)
    assert [stage["steps"] for stage in result["stages"]] == [0, whole["stages"][1]["steps"]]
    assert result["serving_bytes"] == whole["serving_bytes"]
    with pytest.raises(InterruptedRunError):
        Trainer(config(data, **sections), tmp_path / "half", reporter=StopAt(3, signal.SIGTERM)).train()
    with pytest.raises(ConfigError, match=r"is in stage 1 of 2, .*, of its tables' method: .* Finish the run"):
        begin(data, tmp_path / "third", tmp_path / "half", **sections)
    assert not (tmp_path / "third").exists()


def test_what_does_not_fit_is_refused(data: Path, first: Path, tmp_path: Path) -> None:
    def refused(start: Path = first, place: Path = data, **sections: Any) -> str:
        with pytest.raises((ConfigError, CheckpointError)) as caught:
            begin(place, tmp_path / "run", start, **sections)
        assert not (tmp_path / "run").exists()
        return str(caught.value)

    assert refused(model={"name": "deepfm", "hidden_units": [16]}) == (
        f"run '{first}' has model.hidden_units = [8], the configuration says [16]: its weights do not fit. With "
        "--from, model and tables must be those of that run"
    )
    assert "has tables.dim = 4, the configuration says 8" in refused(tables={"dim": 8})
    assert "holds no run" in refused(tmp_path / "nothing")
    shutil.copytree(first / "bundle", tmp_path / "bundle")
    assert "is a bundle, whose packed rows can't be trained on" in refused(tmp_path / "bundle")
    other = write_data(tmp_path / "other", seed=1)
    assert "embank prepare --like" in refused(place=other)


def test_resuming_with_another_beginning_is_refused(data: Path, first: Path, tmp_path: Path) -> None:
    result = begin(data, tmp_path / "run", first)
    assert begin(data, tmp_path / "run", first, resume=True) == result
    with pytest.raises(ConfigError, match=r"began with the run '.*first', not with '.*run'; resume it without --from"):
        begin(data, tmp_path / "run", tmp_path / "run", resume=True)
    with pytest.raises(ConfigError, match="began anew, not with"):
        begin(data, first, tmp_path / "run", resume=True)
    assert json.loads((tmp_path / "run/environment.json").read_text())["from"]["run"] == str(first)
