"""The form of result files: what it refuses, what the published ones hold, and that every benchmark writes it."""

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.scripts import BENCHMARKS, ROOT, records, script

FILES = sorted((BENCHMARKS / "results").glob("*.json"))
SCRIPTS = sorted(path for path in BENCHMARKS.rglob("*.py") if "__pycache__" not in path.parts)


def example(**fields: Any) -> dict[str, Any]:
    return {"metric": "step", "unit": "ms", "value": 2.0, **fields}


def test_a_floor_is_amount_over_rate() -> None:
    """10 MB at 5 GB/s take 2 ms; 1,000 bytes a row at 5 GB/s are 5 M rows/s."""
    work = records.Work(counts="rows", amount=1e7, unit="bytes", rate=5e9, rate_of="a copy")
    (floor,) = records.record("step", "ms", value=6.0, works=[work, None]).floors
    assert (floor.least, floor.times) == (pytest.approx(2.0), pytest.approx(3.0))
    work = records.Work(counts="rows", amount=1000, unit="bytes", rate=5e9)
    (floor,) = records.record("speed", "rows/s", value=1e6, works=[work]).floors
    assert (floor.least, floor.times) == (pytest.approx(5e6), pytest.approx(5.0))
    (floor,) = records.record(
        "moved", "bytes", value=3000, works=[records.Work(counts="", amount=1000, unit="bytes")]
    ).floors
    assert (floor.least, floor.times) == (1000, 3)


def test_figures_of_rounds() -> None:
    found = records.figures([3.0, 1.0, 2.0], scale=10)
    assert (found["value"], found["low"], found["high"], found["rounds"]) == (20, 10, 30, 3)
    found = records.figures([1.0, 3.0], statistic="mean")
    assert (found["value"], found["low"], found["high"]) == (2, pytest.approx(2 - 2**0.5), pytest.approx(2 + 2**0.5))
    assert records.figures([3.0, 1.0], statistic="best")["value"] == 1
    assert records.peer("x", [0.5, 1.0, 4.0]).model_dump() == {
        "name": "x", "kind": "ratio", "value": 1.0, "low": 0.5, "high": 4.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"low": 3.0, "high": 4.0, "spread": "range"}, "2 is not between 3 and 4"),
        ({"low": 1.0, "spread": "range"}, "give both or none"),
        ({"low": 1.0, "high": 4.0}, "a spread needs its kind"),
        ({"value": float("nan")}, "finite"),
        ({"rounds": 0}, "greater than or equal to 1"),
        ({"speed": 1.0}, "Extra inputs are not permitted"),
        ({"peers": [{"name": "x", "value": 2.0, "low": 3.0, "high": 4.0}]}, "peer 'x'"),
    ],
)
def test_what_does_not_fit_together_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        records.Record(**example(**fields))


def test_a_floor_that_lies_is_refused() -> None:
    floor = {"counts": "rows", "amount": 1e7, "unit": "bytes", "rate": 5e9, "least": 1.0, "times": 2.0}
    with pytest.raises(ValueError, match="its floor is 2, 1 times; not 1, 2"):
        records.Record(**example(floors=[floor]))
    with pytest.raises(ValueError, match="'AUC' has no floor"):
        records.record("quality", "AUC", value=0.7, works=[records.Work(counts="", amount=1, unit="bytes", rate=1)])


def test_a_run_is_saved_whole_and_others_stay_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / "ranks.py"), "--rows", "5", "--out", str(tmp_path), "--x=a b"])
    words = {"title": "t", "about": "a", "out": tmp_path}

    def run(value: float) -> records.Run:
        made = records.begin(settings={"path": tmp_path})
        made.records.append(records.record("step", "ms", value=value))
        return made

    records.save("ranks", run(1.0), **words)
    path = records.save("ranks", run(2.0), keep=lambda earlier: earlier, **words)
    found = records.load(path)
    assert [one.records[0].value for one in found.runs] == [1, 2]
    assert found.script == "benchmarks/ranks.py"
    assert found.runs[0].command == "python benchmarks/ranks.py --rows 5 '--x=a b'"
    assert found.runs[0].machine.cores
    assert found.runs[0].date is not None
    records.save("ranks", run(3.0), **words)
    assert [one.records[0].value for one in records.load(path).runs] == [3]
    bad = run(4.0)
    bad.records[0].rounds = -1
    with pytest.raises(ValueError, match="rounds"):
        records.save("ranks", bad, **words)
    assert [one.records[0].value for one in records.load(path).runs] == [3]
    assert [p.name for p in tmp_path.iterdir()] == ["ranks.json"]
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"ranks\.json' is no result file"):
        records.load(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_published_files_have_the_form(path: Path) -> None:
    found = records.load(path)
    assert found.benchmark == path.stem
    assert (ROOT / found.script).is_file()
    for run in found.runs:
        assert run.records
        assert run.command is None or run.command.startswith(f"python {found.script}")
        cases = [(json.dumps(record.case), record.metric) for record in run.records]
        assert len(set(cases)) == len(cases), "two records of one metric and case"


def test_the_page_shows_the_published_files() -> None:
    page = script("page")
    text = (BENCHMARKS / "results/README.md").read_text()
    assert text == page.page([records.load(path) for path in FILES]), "python benchmarks/page.py"
    assert not [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")]


def names_in(path: Path) -> set[str]:
    """Texts of a script that are not docstrings."""
    tree = ast.parse(path.read_text())
    told = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and node.body and ast.get_docstring(node)
        if isinstance(node.body[0], ast.Expr)
    }
    return {
        n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str) and n not in told
    }


def test_every_benchmark_writes_through_the_module() -> None:
    """No other script knows the folder, and each that says it writes a result file saves one."""
    saved = set()
    for path in SCRIPTS:
        text, name = path.read_text(), path.relative_to(ROOT).as_posix()
        if path.name != "records.py":
            folders = {word for word in names_in(path) if re.fullmatch(r"([./]*|.*benchmarks/)results(/.*)?", word)}
            assert not folders, name
        says = re.search(r"(?:[Ww]rites|Adds the model to)\s+benchmarks/results/", text)
        assert bool(says) == ("records.save(" in text and path.name != "records.py"), name
        saved |= {name} if says else set()
    assert {records.load(path).script for path in FILES} <= saved
    assert len(saved) > 20
