"""What a run tells while it goes on: lines, its log, TensorBoard."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from embank.pipelines.reporting import Lines, Reporter
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.train.interrupt import InterruptedRunError
from embank.pipelines.train.trainer import Trainer
from tests.training.runs import config, train


def lines_of(num_steps: int, *, seconds_a_step: float) -> list[str]:
    said: list[str] = []
    now = [0.0]
    lines = Lines(said.append, clock=lambda: now[0])
    lines.start("training", total=num_steps, unit="steps", speed="samples")
    for step in range(1, num_steps + 1):
        now[0] += seconds_a_step
        lines.advance(step, loss=0.5, per_s=1234.5)
    return said


def test_progress_is_told_each_minute_or_twentieth() -> None:
    slow = lines_of(100, seconds_a_step=30)
    assert slow[0] == "training: 100 steps"
    assert slow[1] == "step 2 of 100 (2%)  loss 0.5000  1,234 samples/s  0:49:00 left"
    assert len(slow) == 1 + 50, "a line a minute"
    quick = lines_of(1000, seconds_a_step=0.1)
    assert [line.split()[1] for line in quick[1:4]] == ["50", "100", "150"], "a line per twentieth"
    assert len(lines_of(100, seconds_a_step=0.001)) == 1, "and none within a second"


class Kills(Reporter):
    """Stops a run with a signal."""

    def advance(self, done: int, *, per_s: float, loss: float | None = None) -> None:
        if done == 13:
            os.kill(os.getpid(), signal.SIGTERM)


def interrupted(data: Path, run: Path, **sections: Any) -> None:
    with pytest.raises(InterruptedRunError):
        Trainer(config(data, **sections), run, reporter=Kills()).train()


def test_the_log_tells_what_happened(data: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    interrupted(data, run.path)
    log = run.log.read_text()
    assert ", 1 rank\n" in log
    assert "training: 30 steps" in log
    assert "stopped: SIGTERM: stopped after step 13 of 30" in log.splitlines()[-1]
    result = train(data, run.path, resume=True)
    resumed = run.log.read_text().removeprefix(log)
    assert "resuming after step 13 of 30" in resumed
    assert resumed.count("  valid  step") == 2
    assert f" test  step {result['best_step']:>7,}  AUC {result['auc']:.4f}" in resumed
    assert resumed.splitlines()[-1].endswith("  done")


@pytest.mark.slow
def test_tensorboard_has_every_step_and_every_evaluation(data: Path, tmp_path: Path) -> None:
    """Also those of a run that was interrupted, once each."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"train": {"tensorboard": True, "lr": 0.01, "table_lr": 0.04, "decay": "linear"}}
    interrupted(data, tmp_path / "run", **settings)
    result = train(data, tmp_path / "run", resume=True, **settings)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()

    def scalars(tag: str) -> dict[int, float]:
        found = events.Scalars(tag)
        assert len({event.step for event in found}) == len(found)
        return {event.step: event.value for event in found}

    assert {"train/loss", "train/samples_per_s", "valid/logloss", "test/logloss"} <= set(events.Tags()["scalars"])
    assert list(scalars("train/loss")) == list(range(1, 31))
    assert list(scalars("train/samples_per_s")) == list(range(1, 31))
    assert [scalars("train/lr")[step] for step in (1, 16)] == pytest.approx([0.01, 0.005])
    assert scalars("train/table_lr")[16] == pytest.approx(0.02)
    records = RunFolder(tmp_path / "run").read_metrics()
    expected = {record["step"]: record["logloss"] for record in records if record["split"] == "valid"}
    assert scalars("valid/logloss") == pytest.approx(expected)
    assert scalars("test/auc") == pytest.approx({result["best_step"]: result["auc"]})
    means = [sum(scalars("train/loss")[s] for s in range(first, first + 10)) / 10 for first in (1, 11, 21)]
    told = [record["train_logloss"] for record in records if record["split"] == "valid"]
    assert means == pytest.approx(told, rel=0.02), "the last batch of an epoch is shorter"
