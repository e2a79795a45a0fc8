"""The benchmark of training memory, in this process at a size that takes a second."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tests.scripts import ROOT, by_case, run_of, script

from embank.compression import METHODS

RESULTS = ROOT / "benchmarks/results/training_bytes.json"


@pytest.fixture(name="benchmark", scope="module")
def _benchmark() -> ModuleType:
    return script("training_bytes")


def test_every_stage_is_measured(benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = ["full", "hash", "low_precision", "autodim"]
    words = ["--rows", "1000", "--dim", "16", "--methods", *methods, "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["training_bytes.py", *words])
    benchmark.main()
    held = by_case(run_of(tmp_path / "training_bytes.json"), "training memory")
    assert {case[0] for case in held} == set(methods)
    plain = held["full", "its own", "train"]
    # 1,000 rows of 16 floats with one float of row-wise Adagrad each, and less than 1 KB that FBGEMM holds
    assert 0 <= plain.value - 1000 * (16 + 1) * 4 < 1024
    assert plain.peers[0].value == 1
    assert ("hash", 0.1, "train") in held
    assert ("low_precision", "its own", "train") in held, "its floor is above a tenth"
    assert {case[2] for case in held if case[0] == "autodim"} == {"search", "retrain"}


def test_the_docs_have_the_published_figures() -> None:
    """The column of training memory in the table of docs/methods.md."""
    text = (ROOT / "docs/methods.md").read_text()
    (table,) = re.findall(r"\| method \|[^\n]*\| training memory \|\n(.*?)\n\n", text, flags=re.DOTALL)
    shown = {cells[0].strip("`"): cells[-1] for cells in _cells(table)[1:]}
    most = _largest()
    wanted = {method: f"{most[method]:.2f}" for method in sorted(most)}
    assert shown == wanted


def _largest() -> dict[str, float]:
    """The published memory of each method's largest stage, of the plain table's."""
    found: dict[str, float] = {}
    for case, record in by_case(run_of(RESULTS), "training memory").items():
        found[str(case[0])] = max(found.get(str(case[0]), 0.0), record.peers[0].value)
    return found


def _cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_the_published_table_has_every_method() -> None:
    assert set(_largest()) == METHODS, "python benchmarks/training_bytes.py"
