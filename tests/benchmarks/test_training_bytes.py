"""The benchmark of training memory, in this process at a size that takes a second."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tests.scripts import ROOT, script

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
    report = json.loads((tmp_path / "training_bytes.json").read_text())
    by_method = {entry["method"]: entry for entry in report["methods"]}
    assert list(by_method) == methods
    # 1,000 rows of 16 floats with one float of row-wise Adagrad each, and less than 1 KB that FBGEMM holds
    assert 0 <= report["plain_bytes"] - 1000 * (16 + 1) * 4 < 1024
    assert by_method["full"]["stages"] == {"train": report["plain_bytes"]}
    assert by_method["hash"]["budget"] == 0.1
    assert by_method["low_precision"]["budget"] is None, "its floor is above a tenth"
    assert list(by_method["autodim"]["stages"]) == ["search", "retrain"]
    assert "| `autodim` | 0.1 | " in (tmp_path / "training_bytes.md").read_text()


def test_the_docs_have_the_published_figures() -> None:
    """The column of training memory in the table of docs/methods.md."""
    report = json.loads(RESULTS.read_text())
    text = (ROOT / "docs/methods.md").read_text()
    (table,) = re.findall(r"\| method \|[^\n]*\| training memory \|\n(.*?)\n\n", text, flags=re.DOTALL)
    shown = {cells[0].strip("`"): cells[-1] for cells in _cells(table)[1:]}
    wanted = {
        entry["method"]: f"{max(entry['stages'].values()) / report['plain_bytes']:.2f}" for entry in report["methods"]
    }
    assert shown == wanted


def _cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_the_published_table_has_every_method() -> None:
    published = [entry["method"] for entry in json.loads(RESULTS.read_text())["methods"]]
    assert published == sorted(METHODS), "python benchmarks/training_bytes.py"
