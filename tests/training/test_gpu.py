"""Runs with rows elsewhere than in fp32 beside a CPU: on a GPU, as far as a CPU can tell, and in two bytes."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from embank.pipelines.config.sections import TrainConfig
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import build, row_tier
from embank.pipelines.runs.evaluate import evaluate_saved
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.train.execution import choose
from embank.pipelines.train.interrupt import InterruptedRunError
from embank.pipelines.train.launch import backends
from embank.pipelines.train.trainer import Trainer
from embank.tables import ConfigError
from embank.tables.sharding.processes import Processes
from tests.contracts.host_draws import HostDraws
from tests.training.runs import StopAt, config, train, write_data

pytestmark = pytest.mark.slow

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
with_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")


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


@with_gpu
@pytest.mark.parametrize("tier", ["device", "host"])
@pytest.mark.parametrize("method", ["full", "autodim", "optembed", "mgqe"])
def test_a_run_on_a_gpu_comes_to_the_same_and_is_read_on_the_host(tmp_path: Path, method: str, tier: str) -> None:
    data = write_data(tmp_path / "data")
    options: dict[str, Any] = {
        "model": {"name": "deepfm", "hidden_units": [8]},  # units would be dropped out by another generator
        "tables": {"method": method, "plain_below": 0} | ({} if method == "full" else {"budget": 0.5}),
        "train": {"embedding_l2": 1e-5},
    }
    on_host, on_gpu = ({"backend": "torch", "tier": tier, "device": device} for device in ("cpu", "cuda"))
    with HostDraws():
        here = train(data, tmp_path / "here", rows=on_host, **options)
        there = train(data, tmp_path / "there", rows=on_gpu, **options)
    of_host, of_gpu = (RunFolder(tmp_path / name).read_metrics() for name in ("here", "there"))
    first_stage = of_host[0]["stage"]
    for mine, theirs in zip(of_gpu, of_host, strict=True):
        # Initial rows that differ by 2e-7 move autodim's search by 1e-3 on a CPU, too. Of two shapes that score the
        # same on a hundred rows, rounding decides which one optembed's search takes.
        is_loose = method == "autodim" and mine["stage"] == first_stage
        if method != "optembed" or mine["stage"] == first_stage:
            assert mine["logloss"] == pytest.approx(theirs["logloss"], abs=5e-3 if is_loose else 1e-4)
            assert mine["auc"] == pytest.approx(theirs["auc"], abs=2e-2 if is_loose else 1e-3)
    if method != "optembed":
        assert there["serving_bytes"] == here["serving_bytes"]
    for saved in ("there", "there/bundle"):
        assert evaluate_saved(tmp_path / saved, data=data, split="test")["auc"] == pytest.approx(there["auc"], abs=1e-4)


@with_gpu
def test_a_run_on_a_gpu_in_bf16_and_compiled_learns_as_much(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    options = {"model": {"name": "deepfm", "hidden_units": [8]}, "rows": {"backend": "torch", "device": "cuda"}}
    plain = train(data, tmp_path / "plain", **options)
    faster = train(data, tmp_path / "faster", train={"precision": "bf16", "compile": True}, **options)
    assert faster["auc"] == pytest.approx(plain["auc"], abs=0.02)


@with_gpu
def test_choosing_how_to_run_leaves_the_gpus_generator_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_data(tmp_path / "data")
    made = config(data, rows={"backend": "torch", "device": "cuda"})  # units are dropped out
    model = build(made, Schema.load(data), data=data, rows_folder=tmp_path / "rows")
    monkeypatch.setattr("embank.pipelines.train.execution.LONG_SECONDS", 0.0)
    state = torch.cuda.get_rng_state()
    _, said = choose(model, TrainConfig(), batch_rows=64, num_steps=10)
    assert said is not None
    assert torch.equal(torch.cuda.get_rng_state(), state)


@with_gpu
@pytest.mark.parametrize("first", ["cpu", "cuda"])
@pytest.mark.parametrize("tier", ["device", "host"])
def test_a_run_is_resumed_on_the_other_device(tmp_path: Path, tier: str, first: str) -> None:
    """Stopped in its second epoch and resumed there, it ends as one that was on the host throughout."""
    data = write_data(tmp_path / "data")
    model = {"name": "deepfm", "hidden_units": [8]}
    on = {device: {"backend": "torch", "tier": tier, "device": device} for device in ("cpu", "cuda")}
    whole = train(data, tmp_path / "whole", rows=on["cpu"], model=model)
    with pytest.raises(InterruptedRunError):
        Trainer(
            config(data, rows=on[first], model=model), tmp_path / "moved", reporter=StopAt(14, signal.SIGINT)
        ).train()
    moved = train(data, tmp_path / "moved", rows=on["cuda" if first == "cpu" else "cpu"], model=model, resume=True)
    assert moved["auc"] == pytest.approx(whole["auc"], abs=1e-3)
    assert moved["best_step"] == whole["best_step"]


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
