"""The example of docs/streaming.md and the drift benchmark run as they stand."""

import re
from pathlib import Path

import pytest

from embank.tables.streaming import StreamCounts
from tests.processes import script
from tests.scripts import run_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_the_example_does_what_the_page_says(capsys: pytest.CaptureFixture) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/streaming.md").read_text(), flags=re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert len(capsys.readouterr().out.splitlines()) == 4
    totals = names["streaming"].vocabulary("plane").totals
    assert totals == StreamCounts(lookups=6, hits=3, misses=3, admissions=2)


def test_the_drift_benchmark_runs_small(tmp_path: Path) -> None:
    """Three weeks of 60 flights whose flight numbers move on."""
    lines = ["arr_delay,scheduled,carrier,flight,tailnum,origin,dest,hour,weekday,distance"]
    for row in range(180):
        day, late = row * 21 // 180, row * 7 % 40
        plane, flight = row % 9 + row // 60, row % 11 + row // 30
        lines.append(
            f"{late},2013-01-{day + 1:02} 05:15,UA,{flight},N{plane},EWR,IAH,{row % 5},{day % 7 + 1},{500 + row}"
        )
    (tmp_path / "flights.csv").write_text("\n".join(lines) + "\n")
    sizes = ["--weeks", "3", "--fit-weeks", "2", "--seeds", "0", "1", "--batch-size", "16", "--max-tried", "1"]
    places = ["--out", str(tmp_path), "--page", str(tmp_path)]
    for extra in ([], ["--same-rate"]):
        done = script(ROOT / "benchmarks/tasks/drift.py", tmp_path / "flights.csv", *sizes, *places, *extra)
        assert done.returncode == 0, done.stderr
    report = run_of(tmp_path / "drift_flights.json").detail
    assert {(one["arm"], one["seed"]) for one in report["runs"]} == {
        (arm, seed) for arm in ("unified", "vocabulary", "streaming", "all ids") for seed in (0, 1)
    }
    sizes = {one["arm"]: one["bytes"]["tables"] for one in report["runs"]}
    assert sizes["vocabulary"] == sizes["streaming"] < sizes["all ids"]
    assert sizes["vocabulary"] - 64 < sizes["unified"] <= sizes["vocabulary"]
    assert [week["week"] for week in report["unseen"]] == [3]
    assert 0 < report["unseen"][0]["flight"] < 1
    assert (tmp_path / "drift_flights.png").stat().st_size > 10_000
    page = (tmp_path / "drift_flights.md").read_text()
    assert "| streaming minus vocabulary |" in page
    assert "All arms at one rate of rows" in page
