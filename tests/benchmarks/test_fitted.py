"""The benchmark of fitted tables, on data that takes a second; and the page that shows what it measured."""

import sys
from pathlib import Path

import pytest
from tests.scripts import ROOT, by_case, run_of, script
from tests.training.runs import write_data

PAGE = ROOT / "docs/results/fitted.md"
MEASURED = ROOT / "benchmarks/results/fitted.json"


@pytest.mark.slow
def test_methods_are_fitted_and_a_second_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(tmp_path / "data", single={"user_id": 300, "item_id": 200})
    benchmark = script("fitted")
    words = ["--data", str(tmp_path / "data"), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["fitted.py", *words, "--budgets", "0.5", "--methods", "uniform_dim"])
    benchmark.main()
    monkeypatch.setattr(sys, "argv", ["fitted.py", *words, "--budgets", "0.5", "--methods", "hash", "uniform_dim"])
    benchmark.main()
    run = run_of(tmp_path / "out/fitted.json")
    assert [entry["method"] for entry in run.detail["entries"]] == ["uniform_dim", "hash"]
    for entry in run.detail["entries"]:
        assert 0 < entry["error"] < 1
        assert entry["serving_ratio"] <= 0.5
        assert 0 <= entry["fitted"] <= 1
    assert set(by_case(run, "fitted")) == {(0.5, "hash"), (0.5, "uniform_dim")}


def test_the_page_shows_what_was_measured() -> None:
    table = script("fitted").table(run_of(MEASURED).records)
    assert len(table) > 40
    assert all(line in PAGE.read_text() for line in table)
