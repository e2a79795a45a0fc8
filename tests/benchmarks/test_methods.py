"""The benchmark of methods at a size that takes seconds: it runs, measures every stage, and names what it could not
measure."""

import json
import subprocess
from pathlib import Path

import pytest
from tests.processes import script

from embank.tables import method_class

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
METHODS = ["hash", "low_precision", "autosrh", "tt_rec"]
SIZES = {"rows": 3000, "packed-rows": 4000, "batch-size": 64, "batches": 2, "rounds": 2, "steps": 1, "threads": 1}


def run(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    sizes = [word for key, value in SIZES.items() for word in (f"--{key}", str(value))]
    short = ["--schedule-steps", "40", "--seconds", "0.5"]
    return script(ROOT / "benchmarks/methods.py", *sizes, *short, "--out", out, *options, cwd=ROOT)


def test_every_stage_and_pack_is_measured(tmp_path: Path) -> None:
    done = run(tmp_path, "--methods", *METHODS)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "methods.json").read_text())
    assert report["missing"] == []
    stages = [(entry["method"], entry["stage"]) for entry in report["train"]["stages"]]
    assert stages == [(name, stage.name) for name in METHODS for stage in method_class(name).traits.schedule.stages]
    assert [entry["method"] for entry in report["packed"]] == METHODS
    for entry in report["train"]["stages"]:
        assert 0 < entry["ratio"]["min"] <= entry["ratio"]["median"] <= entry["ratio"]["max"]
        assert entry["gflop"] >= 0.999 * report["train"]["full"]["gflop"], "every method scores with the same network"
        assert (entry["search_ratio"] is not None) == (entry["stage"] == "search")
        assert entry["budget"] == (None if entry["method"] == "low_precision" else 0.1), "its floor is a quarter"
    hashed = next(entry for entry in report["packed"] if entry["method"] == "hash")
    assert hashed["serving_bytes"] <= 0.1 * 4 * 16 * SIZES["packed-rows"]
    table = (tmp_path / "methods.md").read_text()
    assert "FBGEMM int8" in table
    assert "`autosrh` | search" in table


def test_a_method_that_fails_is_named_at_the_end(tmp_path: Path) -> None:
    """A budget outside (0, 1] fails in every method; what was asked for is still written."""
    done = run(tmp_path, "--methods", "hash", "--part", "packed", "--budget", "-1")
    assert done.returncode == 1
    assert "not measured: hash (packed)" in done.stderr
    assert json.loads((tmp_path / "methods.json").read_text())["missing"] == ["hash (packed)"]
