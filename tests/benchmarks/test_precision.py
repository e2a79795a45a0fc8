"""The comparison of precisions: paired by seed, from trainings that really differ in what they are compared for."""

import argparse
from pathlib import Path

import pytest
import yaml
from tests.scripts import script
from tests.training.runs import write_data

precision = script("precision")


def test_differences_are_paired_by_seed() -> None:
    own = {"auc": {0: 0.8, 1: 0.7}, "logloss": {0: 0.5, 1: 0.6}}
    more = {"auc": {0: 0.001, 1: 0.003}, "logloss": {0: -0.01, 1: 0.01}}
    found = {
        ("movielens", way, seed): {name: own[name][seed] + (way != "fp32") * more[name][seed] for name in own}
        for way in ("fp32", "bf16")
        for seed in (0, 1)
    }
    plain, _, auc, loss = precision.recorded(found, seeds=[0, 1])
    assert (plain.metric, plain.value, plain.peers) == ("AUC", pytest.approx(0.75), [])
    (difference,) = auc.peers
    assert (difference.kind, difference.value) == ("difference", pytest.approx(0.002))
    assert difference.high - difference.low == pytest.approx(2 * 0.002 / 2**0.5)
    assert loss.peers[0].value == pytest.approx(0)


@pytest.mark.slow
def test_runs_differ_in_precision_alone_and_are_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path / "data")
    args = argparse.Namespace(work=tmp_path, set=["train.epochs=1", "data.batch_size=64"])
    first = [precision.train("movielens", way, 0, data=data, args=args) for way in ("fp32", "bf16")]
    assert first[0]["logloss"] != first[1]["logloss"]
    assert first[0]["logloss"] == pytest.approx(first[1]["logloss"], abs=0.05)
    assert capsys.readouterr().out.count("done") == 2
    assert precision.train("movielens", "bf16", 0, data=data, args=args) == first[1]
    assert not capsys.readouterr().out
    configs = [
        yaml.safe_load((tmp_path / f"movielens-{way}-seed0/config.yaml").read_text()) for way in ("fp32", "bf16")
    ]
    assert [config["train"].pop("precision") for config in configs] == ["fp32", "bf16"]
    assert configs[0] == configs[1]
