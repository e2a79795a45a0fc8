"""Runs with rows elsewhere than in fp32 beside a CPU: on a GPU, as far as a CPU can tell, and in two bytes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from embank.pipelines.runs.build import row_tier
from embank.pipelines.runs.evaluate import evaluate_saved
from embank.pipelines.train.launch import backends
from embank.tables import ConfigError
from embank.tables.sharding.processes import Processes
from tests.training.runs import config, train, write_data

pytestmark = pytest.mark.slow

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@pytest.mark.parametrize("method", ["autodim", "optembed", "mgqe"])
def test_a_run_beside_the_host_comes_to_the_same_and_is_read_without_a_gpu(tmp_path: Path, method: str) -> None:
    data = write_data(tmp_path / "data")
    command = [sys.executable, "-m", "tests.training.beside_the_host", str(data), str(tmp_path), method]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    here, there = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("here", "there"))
    for key in ("auc", "logloss", "valid_auc"):
        assert there[key] == pytest.approx(here[key], abs=1e-4)
    for key in ("serving_bytes", "best_step"):
        assert there[key] == here[key]
    assert evaluate_saved(tmp_path / "there", data=data, split="test")["auc"] == pytest.approx(there["auc"], abs=1e-6)
    bundle = evaluate_saved(tmp_path / "there" / "bundle", data=data, split="test")
    assert bundle["auc"] == pytest.approx(there["auc"], abs=1e-4)


@without_gpu
def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    with pytest.raises(ConfigError, match="rows are to be on 'cuda', but this machine has no GPU that torch can use"):
        train(data, tmp_path / "run", rows={"device": "cuda"})


class _Second(Processes):
    def __init__(self) -> None:
        self.group, self.rank, self.count = None, 1, 2


def test_every_process_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = config(tmp_path, rows={"device": "cuda", "tier": "host"})
    assert row_tier(on_gpu, directory=tmp_path, processes=None).device == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    made = row_tier(on_gpu, directory=tmp_path, processes=_Second())
    assert (made.device, made.name, made.directory) == ("cuda:3", "host", None)
    assert row_tier(config(tmp_path), directory=tmp_path, processes=_Second()).device == "cpu"


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_rows_have_the_type_of_the_configuration(dtype: str, tmp_path: Path) -> None:
    given = {"backend": "torch", "dtype": dtype}
    made = config(tmp_path, rows=given)
    assert row_tier(made, directory=tmp_path, processes=None).dtype == dtype


def test_gpus_talk_over_nccl_and_hosts_over_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: True)
    assert backends() == "cpu:gloo,cuda:nccl"
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: False)
    assert backends() == "gloo"


def test_a_run_with_rows_of_two_bytes_serves_what_it_scored(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    for dtype in ("fp32", "bf16"):
        train(data, tmp_path / dtype, rows={"backend": "torch", "dtype": dtype})
    full, half = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("fp32", "bf16"))
    assert half["serving_bytes"] == full["serving_bytes"]
    assert half["training_bytes"] < full["training_bytes"]
    assert half["auc"] == pytest.approx(full["auc"], abs=0.02)
    for scored in (
        evaluate_saved(tmp_path / "bf16", data=data, split="test"),
        evaluate_saved(tmp_path / "bf16" / "bundle", data=data, split="test"),
    ):
        assert scored["auc"] == pytest.approx(half["auc"], abs=1e-6)
