"""The benchmark of the tiers at a size that takes seconds: it runs, checks what it claims, and leaves no file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
        [*command, "--folder", str(tmp_path / "files"), "--results", str(tmp_path / "results")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "results" / "tiers.json").read_text())
    assert result["prefetch_changes_nothing"]["equal_to_the_bit"] is True
    assert result["scale"]["peak_anonymous_bytes"] < 4 * 2**30
    assert result["cold"]["speedup"]["repeats"] == 2
    assert "cold, prefetch over none" in (tmp_path / "results" / "tiers.md").read_text()
    assert not list((tmp_path / "files").iterdir())
