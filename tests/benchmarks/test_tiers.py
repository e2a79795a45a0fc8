"""The benchmark of the tiers at a size that takes seconds: it runs, checks what it claims, and leaves no file."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.scripts import by_case, run_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def test_tiers_runs_small(tmp_path: Path) -> None:
    sizes = {"rows": 20_000, "small-rows": 10_000, "batch-size": 64, "scale-steps": 4, "steps": 3, "warm-steps": 3}
    options = [word for key, value in sizes.items() for word in (f"--{key}", str(value))]
    command = [
        sys.executable,
        "benchmarks/tiers.py",
        *options,
        "--repeats",
        "2",
        "--disk-seconds",
        "0.1",
        "--threads",
        "1",
    ]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path / "files"), "--out", str(tmp_path / "results")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    run = run_of(tmp_path / "results" / "tiers.json")
    assert run.detail["prefetch changes nothing"]["equal_to_the_bit"] is True
    assert by_case(run, "peak anonymous memory")[20_000,].value < 4 * 2**30
    cold = by_case(run, "step with prefetch")[20_000, "cold"]
    assert (cold.rounds, cold.peers[0].name, cold.floors[0].unit) == (2, "no prefetch", "reads")
    assert set(by_case(run, "step")) == {(10_000, "warm", tier) for tier in ("memory", "disk", "disk without prefetch")}
    assert not list((tmp_path / "files").iterdir())
