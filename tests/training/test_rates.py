"""Rates of rows that are found by trials."""

import json
import os
import signal
from math import log
from pathlib import Path

import pytest
import yaml

from embank.pipelines.config.run import parse_config
from embank.pipelines.reporting import Reporter
from embank.pipelines.train.interrupt import InterruptedRunError
from embank.pipelines.train.rates import climb
from embank.pipelines.train.step import NonFiniteLossError
from embank.pipelines.train.trainer import Trainer
from embank.tables import ConfigError
from tests.training.runs import config, timeless, write_data

pytestmark = pytest.mark.slow


class Notes(Reporter):
    """Keeps what it is told in words."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("rates") / "prepared")


@pytest.mark.parametrize("peak", [0.0005, 0.003, 0.02, 0.06, 0.1, 0.9])
def test_climbing_ends_at_a_rate_whose_neighbours_are_worse(peak: float) -> None:
    asked: list[float] = []

    def score(rate: float) -> float:
        asked.append(rate)
        return -abs(log(rate / peak))

    tried = climb(score)
    assert list(tried) == asked
    assert len(asked) == len(set(asked))
    best = max(tried, key=tried.__getitem__)
    assert 1 / 1.3 < best / peak < 1.3, "half a step on either side is a factor of 1.26"
    assert any(1.4 < rate / best < 2.7 for rate in tried)
    assert any(1.4 < best / rate < 2.7 for rate in tried)


def test_climbing_stays_within_its_bounds() -> None:
    assert max(climb(lambda rate: rate)) == 2.0
    assert min(climb(lambda rate: -rate)) == pytest.approx(0.00013)
    assert len(climb(lambda _: float("-inf"))) == 5, "the first rate, and its neighbours"


def test_a_run_with_the_rate_that_was_found_is_the_run_with_that_rate(data: Path, tmp_path: Path) -> None:
    notes = Notes()
    settings = {"epochs": 2, "table_lr": "auto"}
    found = Trainer(config(data, train=settings), tmp_path / "found", reporter=notes).train()
    own = yaml.safe_load((tmp_path / "found" / "config.yaml").read_text())["train"]["table_lr"]
    tried = [line for line in notes.said if line.startswith("trial ")]
    assert len(tried) >= 4
    assert any(f"train.table_lr {own:g}: " in line for line in tried)
    assert f"train.table_lr {own:g}: the best of {len(tried)} on validation" in notes.said
    given = Trainer(config(data, train={**settings, "table_lr": own}), tmp_path / "given").train()
    assert timeless(found) == timeless(given)
    assert not list((tmp_path / "found").glob("rows/*")), "trials leave nothing"
    lines = (tmp_path / "found" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3, "two epochs and the test split; trials write none"
    assert Trainer(config(data, train=settings), tmp_path / "found").train(resume=True) == found
    scores = {float(line.split()[3].rstrip(":")): float(line.split()[4]) for line in tried}
    assert max(scores, key=scores.__getitem__) == own
    assert json.loads(lines[-2])["auc"] == pytest.approx(scores[own], abs=2e-4) or found["best_epoch"] != 2


def test_a_method_of_several_stages_is_tried_in_its_first(data: Path, tmp_path: Path) -> None:
    settings = {"epochs": 1, "table_lr": "auto"}
    tables = {"dim": 4, "method": "dedup", "budget": 0.5}
    result = Trainer(config(data, train=settings, tables=tables), tmp_path / "run").train()
    assert [stage["name"] for stage in result["stages"]] == ["full", "fine-tune"]


def test_a_signal_in_a_trial_leaves_nothing_behind(data: Path, tmp_path: Path) -> None:
    class Stops(Reporter):
        def note(self, message: str) -> None:
            if message.startswith("trial 2"):
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(InterruptedRunError, match=r"SIGINT: stopped while learning rates were tried .*same command"):
        Trainer(config(data, train={"table_lr": "auto"}), tmp_path / "run", reporter=Stops()).train()
    assert not (tmp_path / "run").exists()
    result = Trainer(config(data, train={"table_lr": "auto", "epochs": 1}), tmp_path / "run").train()
    assert result["auc"] is not None


def test_a_network_that_diverges_at_every_rate_is_said_to(data: Path, tmp_path: Path) -> None:
    notes = Notes()
    settings = {"table_lr": "auto", "lr": 1e30}
    with pytest.raises(NonFiniteLossError, match=r"training diverges at every rate of rows .* lower train\.lr"):
        Trainer(config(data, train=settings), tmp_path / "run", reporter=notes).train()
    assert "trial 1: train.table_lr 0.02: diverges" in notes.said
    assert not (tmp_path / "run").exists()


def test_other_words_are_refused(data: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.table_lr is 'fast': it must be a number or 'auto'"):
        config(data, train={"table_lr": "fast"})
    with pytest.raises(ConfigError, match=r"train\.table_lr is -1"):
        config(data, train={"table_lr": -1})


def test_the_example_for_data_of_ones_own_is_what_the_page_says() -> None:
    root = Path(__file__).parents[2]
    example = yaml.safe_load((root / "examples/own_data.yaml").read_text())
    parse_config(example)
    page = (root / "docs/training.md").read_text().split("## Settings to begin with")[1]
    assert yaml.safe_load(page.split("```yaml\n")[1].split("```")[0]) == {"train": example["train"]}
