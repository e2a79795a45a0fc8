"""The benchmark of fitted tables, on data that takes a second; and the page that shows what it measured."""

import json
import sys
from pathlib import Path

import pytest
from tests.scripts import ROOT, script
from tests.training.runs import write_data

PAGE = ROOT / "docs/results/fitted.md"
MEASURED = ROOT / "benchmarks/results/fitted.md"


def test_methods_are_fitted_and_a_second_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(tmp_path / "data", single={"user_id": 300, "item_id": 200})
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    benchmark = script("fitted")
    words = ["--data", str(tmp_path / "data"), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["fitted.py", *words, "--budgets", "0.5", "--methods", "uniform_dim"])
    benchmark.main()
    monkeypatch.setattr(sys, "argv", ["fitted.py", *words, "--budgets", "0.5", "--methods", "hash", "uniform_dim"])
    benchmark.main()
    report = json.loads((tmp_path / "out/fitted.json").read_text())
    assert [entry["method"] for entry in report["entries"]] == ["uniform_dim", "hash"]
    for entry in report["entries"]:
        assert 0 < entry["error"] < 1
        assert entry["serving_ratio"] <= 0.5
        assert 0 <= entry["fitted"] <= 1
    assert "| 0.5 | hash | " in (tmp_path / "out/fitted.md").read_text()


def test_the_page_shows_what_was_measured() -> None:
    table = [line for line in MEASURED.read_text().splitlines() if line.startswith("|")]
    assert len(table) > 40
    assert all(line in PAGE.read_text() for line in table)
