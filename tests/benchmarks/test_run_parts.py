"""The parts of a run: what is timed, and what it is compared with."""

import argparse
from pathlib import Path

import pytest
from tests.scripts import script


def test_figures_are_compared_within_a_round() -> None:
    run_parts = script("run_parts")
    rounds = []
    for extra in (0.0, 1.0):
        one: dict = {"import torch": 2.0 + extra}
        for name in run_parts.SETTINGS:
            one[name] = {"start": 3.0 + extra, "training": 100.0 + 100 * extra, "evaluation": 300.0 + 300 * extra}
            one[run_parts.key(name, 2)] = {"start": 9.0, "training": 60.0 + 60 * extra, "evaluation": 1.0}
        rounds.append(one)
    found = run_parts.recorded(rounds, num_busy=2)
    own = [record for record in found if record.case["settings"] == "compiled, bf16"]
    start, training, evaluation, beside = own
    assert (start.value, start.low, start.high) == (1.0, 1.0, 1.0)
    assert (training.value, training.peers) == (150.0, [])
    assert (evaluation.peers[0].name, evaluation.peers[0].value) == ("training", 3.0)
    assert (beside.case["busy processes beside"], beside.peers[0].value) == (2, pytest.approx(0.6))


@pytest.mark.slow
def test_a_run_is_timed_from_the_start_of_its_process(tmp_path: Path) -> None:
    run_parts = script("run_parts")
    args = argparse.Namespace(rows=2000, steps=2, valid=5000, threads=1, work=tmp_path)
    data = run_parts.prepared(args)
    found = run_parts.trained(data, "eager, fp32", args)
    assert found["start"] > run_parts.import_seconds() / 2 > 0
    assert found["training"] > 0
    assert found["evaluation"] > 0
