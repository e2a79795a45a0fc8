"""The benchmark of methods at a size that takes seconds: it runs, measures every stage, and names what it could not
measure."""

import subprocess
from pathlib import Path

import pytest
from tests.processes import script
from tests.scripts import by_case, run_of

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
    found = run_of(tmp_path / "methods.json")
    assert found.detail["missing"] == []
    ratios, steps = by_case(found, "steps of plain tables that a step takes"), by_case(found, "step")
    wanted = [(name, stage.name) for name in METHODS for stage in method_class(name).traits.schedule.stages]
    assert [case[:2] for case in steps] == [case[:2] for case in ratios] == wanted
    for (method, _, budget), record in steps.items():
        products, rows = record.floors
        assert (products.unit, rows.unit) == ("FLOP", "bytes")
        least = 0.999e9 * found.detail["plain step"]["gflop"]
        assert products.amount >= least, "every method scores with the same network"
        assert budget == ("its own" if method == "low_precision" else 0.1), "its floor is a quarter"
    validated = by_case(found, "steps of plain tables that a validation step takes")
    assert {case[1] for case in validated} == {"search"}
    packed = by_case(found, "4,096 at once")
    assert [case[0] for case in packed] == METHODS
    assert all(record.peers[0].name == "FBGEMM's int8" for record in packed.values())
    assert by_case(found, "rows, packed")["hash", 0.1].value <= 0.1 * 4 * 16 * SIZES["packed-rows"]


def test_a_method_that_fails_is_named_at_the_end(tmp_path: Path) -> None:
    """A budget outside (0, 1] fails in every method; what was asked for is still written."""
    done = run(tmp_path, "--methods", "hash", "--part", "packed", "--budget", "-1")
    assert done.returncode == 1
    assert "not measured: hash (packed)" in done.stderr
    assert run_of(tmp_path / "methods.json").detail["missing"] == ["hash (packed)"]
