"""Options for rows that one process can't, or need not, follow: refused or said, never passed over."""

import signal
from pathlib import Path
from typing import Any

import pytest

from embank.pipelines.lm.config import parse_lm_config
from embank.pipelines.lm.trainer import LmTrainer
from embank.pipelines.runs.evaluate import evaluate_saved
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.inspect import inspect_run
from embank.pipelines.train.interrupt import InterruptedRunError
from embank.pipelines.train.trainer import Trainer
from embank.tables import ConfigError, Placement, Plan, save_plan
from tests.told import Told
from tests.training.runs import StopAt, config, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "prepared")


def train(data: Path, run: Path, **rows: Any) -> list[str]:
    """What a run of one epoch is told."""
    notes = Told()
    Trainer(config(data, train={"epochs": 1}, rows=rows), run, reporter=notes).train()
    return notes.notes


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"plan": "nope.yaml"}, "the plan 'nope.yaml' can't be read: No such file"),
        ({"memory_per_rank": 1000}, r"the tables don't fit: [\d,]+ bytes on a rank, the limit is 1,000 bytes; the"),
        ({"memory_per_rank": 0}, "rows.memory_per_rank is 0: it must be at least 1"),
        ({"directory": "rows"}, "rows.directory is 'rows', but rows.tier is 'device', which has no files; set"),
    ],
    ids=str,
)
def test_what_one_process_can_not_follow_is_refused(
    data: Path, tmp_path: Path, rows: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(data, tmp_path / "run", **rows)
    assert not (tmp_path / "run").exists()


def test_what_has_no_effect_is_said(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    save_plan(Plan(world_size=2, tables={"user": Placement(kind="row_wise")}), path)
    notes = train(data, tmp_path / "run", plan=str(path), planner="torchrec", memory_per_rank=10**9)
    cure = "has no effect: one process holds all tables. Start several with torchrun"
    said = [f"rows.plan ('{path}', for 2 ranks) {cure}", f"rows.planner (torchrec) {cure}"]
    assert notes[:2] == said
    assert all(line in (tmp_path / "run/log.txt").read_text() for line in said)
    assert not [line for line in train(data, tmp_path / "other") if "no effect" in line]


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, -1])
def test_an_old_runs_limit_of_nothing_was_none(data: Path, tmp_path: Path, limit: int) -> None:
    """As earlier versions wrote it, which took it from one process; a new configuration with it is refused."""
    path = tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        Trainer(config(data, train={"epochs": 1}), path, reporter=StopAt(4, signal.SIGTERM)).train()
    run = RunFolder(path)
    old = run.read_config()
    old["rows"]["memory_per_rank"] = limit
    run.create(old, fingerprint=run.fingerprint, content=run.content)
    assert f"memory_per_rank: {limit}\n" in run.config.read_text()
    assert 0 <= evaluate_saved(path, data=data, split="valid")["auc"] <= 1
    assert inspect_run(path)["total"]["plain_bytes"] > 0
    result = Trainer(config(data, train={"epochs": 1}), path).train(resume=True)
    assert result == run.read_result()
    with pytest.raises(ConfigError, match=f"rows.memory_per_rank is {limit}: it must be at least 1"):
        train(data, path, memory_per_rank=limit)


def test_a_directory_of_a_language_models_rows(tmp_path: Path) -> None:
    held = parse_lm_config({"rows": {"directory": "rows", "tier": "host"}})
    with pytest.raises(ConfigError, match="rows.directory is 'rows', but rows.tier is 'host', which has no files"):
        LmTrainer(held, tmp_path / "run").train()
    assert not (tmp_path / "run").exists()
