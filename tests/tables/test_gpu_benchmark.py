"""benchmarks/gpu/tiers.py runs where there is nothing but torch: its checks on a CPU, with FBGEMM and TorchRec out of
reach."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.scripts import run_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/gpu/tiers.py"
BLOCKED = """
import importlib.abc, runpy, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("fbgemm_gpu", "torchrec"):
            raise ModuleNotFoundError(f"{name} is out of reach")

sys.meta_path.insert(0, Blocked())
for name in ("fbgemm_gpu", "torchrec"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} can be imported")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_it_runs_without_fbgemm_and_torchrec(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BLOCKED, str(SCRIPT), "--device", "cpu", "--small", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = run_of(tmp_path / "gpu_tiers.json")
    result = run.detail
    assert run.machine.device == "cpu"
    assert {(c["optimizer"], c["pooled"]) for c in result["checks"]} == {
        (name, pooled) for name in ("sgd", "adagrad", "rowwise_adagrad", "adam") for pooled in (True, False)
    }
    assert all(check["device"] == 0 for check in result["checks"])  # the same rows on the same device
    (times,) = result["times"]
    assert times["bytes_per_step"]["out"] == pytest.approx(times["distinct_share"] * 16 * 256 * 81 * 4)
    assert times["floor_s"] > 0
    assert min(entry["min"] for entry in times["seconds_per_step"].values()) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_it_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "rows are to be on 'cuda', but this machine has no GPU that torch can use" in done.stderr
    assert not list(tmp_path.iterdir())
