"""Sweeps with a grid, and resumed with another plan than they began with."""

import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.records import read_record, write_record
from embank.pipelines.sweep.folder import SweepFolder
from embank.pipelines.sweep.plan import Case, Job, Plan
from embank.pipelines.sweep.sweep import Sweep
from embank.tables import CheckpointError, ConfigError
from tests.told import Told
from tests.training.runs import raw_config, write_data

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """Of runs on a small prepared folder; a test says how they are trained."""
    return raw_config(write_data(tmp_path / "data", single={"user": 500, "item": 7}))


def _unwrapped(page: Path) -> str:
    """A page's words, whatever line they are on."""
    return " ".join(page.read_text().split())


def test_a_grid_is_chosen_on_validation_and_a_failed_point_is_no_failure(
    config: dict[str, Any], tmp_path: Path
) -> None:
    plan = Plan(
        config=config | {"train": {"epochs": 1, "table_optimizer": "sgd"}},
        models=["fm"],
        methods=["hash"],
        budgets=[0.5],
        seeds=[3, 4],
        grid={"train.table_lr": [0.01, 1.0, 1e38]},
    )
    told = Told()
    sweep = Sweep(plan, tmp_path / "out", reporter=told)
    (row,) = sweep.run()
    sweep.refuse_failures([row])
    runs = tmp_path / "out/runs/fm/hash/0.5"
    first = {
        path.parent.parent.name: json.loads(path.read_text())["valid_auc"] for path in runs.glob("*/3/result.json")
    }
    assert set(first) == {"train.table_lr=0.01", "train.table_lr=1"}
    chosen = max(first, key=lambda point: first[point])
    assert (row.point, row.seeds, row.status) == (chosen, "3,4", "complete")
    assert [path.parent.name for path in runs.glob("*/4")] == [chosen]
    both = [json.loads((runs / chosen / seed / "result.json").read_text())["auc"] for seed in ("3", "4")]
    assert row.auc == pytest.approx(statistics.mean(both))
    assert "1e+38/3 failed: " in row.note
    page = _unwrapped(tmp_path / "out/leaderboard.md")
    assert "the grid train.table_lr in 0.01, 1, 1e+38" in page
    at_edge = "train.table_lr=0.01, the smallest value of its grid, was chosen by 1 of 1 lines (fm/hash/0.5): try "
    assert (at_edge in page) == (chosen == "train.table_lr=0.01") == any(at_edge in note for note in told.notes)


def test_a_grid_is_widened_until_no_neighbour_is_better(config: dict[str, Any], tmp_path: Path) -> None:
    """The grid's rates are far too small; a run's rates beyond it are tried up to one that is worse."""
    settings: dict[str, Any] = {
        "config": config | {"train": {"epochs": 1}},
        "models": ["fm"],
        "methods": ["hash"],
        "budgets": [0.5, 0.2],
        "seeds": [0, 1],
        "grid": {"train.table_lr": [0.0001, 0.001]},
        "grid_budget": 0.5,
        "widen": True,
    }
    told = Told()
    rows = Sweep(Plan(**settings), tmp_path / "out", reporter=told).run()
    runs = tmp_path / "out/runs/fm/hash"
    found = {
        float(path.parent.parent.name.partition("=")[2]): json.loads(path.read_text())["valid_auc"]
        for path in runs.glob("0.5/*/0/result.json")
    }
    best = max(found, key=lambda rate: found[rate])
    assert len(found) > 2, "nothing beyond the grid was tried"
    assert min(found) < best < max(found)
    assert {row.point for row in rows} == {f"train.table_lr={best:g}"}
    num_runs = len(list(runs.glob("*/*/*/result.json")))
    assert num_runs == len(found) - 1 + 4, "one run a point, and two seeds at two budgets"
    assert any(line.startswith(f"[{num_runs}/{num_runs}]") for line in told.notes), told.notes
    page = _unwrapped(tmp_path / "out/leaderboard.md")
    assert "then from the neighbours of the best point beyond it, until none was better" in page
    assert "value of its grid, was chosen" not in page
    again = Told()
    assert Sweep(Plan(**settings), tmp_path / "out", reporter=again).run(resume=True)[0].point == rows[0].point
    assert f"{num_runs} runs are complete already" in again.notes
    plain = Sweep(Plan(**{**settings, "widen": False}), tmp_path / "out", reporter=Told()).run(resume=True)
    assert [row.point for row in plain] == [row.point for row in rows], "a resumed sweep goes on widening"
    assert yaml.safe_load((tmp_path / "out/sweep.yaml").read_text())["widen"] is True
    whole = (tmp_path / "out/sweep.yaml").read_text()
    (tmp_path / "out/sweep.yaml").write_text(whole[: whole.rindex("train:")])
    with pytest.raises(CheckpointError, match=r"sweep.yaml' is damaged"):
        Sweep(Plan(**settings), tmp_path / "out").run(resume=True)


def test_a_grid_at_one_budget_decides_for_the_others(config: dict[str, Any], tmp_path: Path) -> None:
    plan = Plan(
        config=config | {"train": {"epochs": 1}},
        models=["fm"],
        methods=["full", "hash", "alpt"],  # the last one reaches none of the budgets
        budgets=[0.2, 0.1, 0.0001],
        seeds=[0, 1],
        grid={"train.table_lr": [0.01, 0.1]},
        grid_budget=0.0001,  # infeasible, so that the next one is tuned
    )
    told = Told()
    rows = Sweep(plan, tmp_path / "out", num_jobs=2, reporter=told).run()
    assert [row.status for row in rows] == ["complete", "complete", "complete", *["infeasible"] * 4]
    runs = tmp_path / "out/runs/fm/hash"
    tuned = {
        path.parent.parent.name: json.loads(path.read_text())["valid_auc"] for path in runs.glob("0.1/*/0/result.json")
    }
    assert set(tuned) == {"train.table_lr=0.01", "train.table_lr=0.1"}
    chosen = max(tuned, key=lambda point: tuned[point])
    assert [row.point for row in rows[1:3]] == [chosen, chosen]
    assert {str(path.relative_to(runs).parent) for path in runs.glob("0.2/*/*/result.json")} == {
        f"0.2/{chosen}/{seed}" for seed in (0, 1)
    }
    assert any(line.startswith("[8/8]") for line in told.notes), told.notes
    assert "each method at budget 0.0001 or the next that it reaches" in _unwrapped(tmp_path / "out/leaderboard.md")

    later = replace(plan, methods=["hash"], budgets=[0.3], seeds=[0])
    rows = Sweep(later, tmp_path / "out", num_jobs=2, reporter=told).run(resume=True)
    assert [row.point for row in rows if row.budget == 0.3] == [chosen], "the grid at 0.1 is complete"
    assert [path.name for path in (runs / "0.3").iterdir()] == [chosen]
    assert any(line.startswith("[3/3]") for line in told.notes), told.notes
    page = _unwrapped(tmp_path / "out/leaderboard.md")
    assert "Lines of earlier commands, chosen on the grids of those: 3 (fm/full/1, fm/hash/0.2, fm/hash/0.1)." in page


def test_points_out_of_reach_are_left_out_of_a_sweep_and_of_its_resume(config: dict[str, Any], tmp_path: Path) -> None:
    """Of dpq 256 codes reach .625 and 64 codes .228: at .5 the first point is out of reach, and the line is trained."""
    settings: dict[str, Any] = {
        "config": config | {"train": {"epochs": 1}},
        "models": ["fm"],
        "methods": ["dpq"],
        "seeds": [0],
        "grid": {"tables.num_codes": [256, 64, 16]},
        "grid_budget": 0.5,
    }
    out, told = tmp_path / "out", Told()
    plan = Plan(budgets=[0.5, 0.2, 0.01], **settings)
    rows = Sweep(plan, out, reporter=told).run()
    assert [row.status for row in rows] == ["complete", "complete", "infeasible"]
    assert rows[1].point == "tables.num_codes=16", "the only one that reaches it, whatever was chosen at .5"
    assert rows[2].note == "infeasible: floor 0.111"
    runs = out / "runs/fm/dpq"
    assert {str(path.relative_to(runs).parent) for path in runs.glob("*/*/*/result.json")} == {
        *(f"0.5/tables.num_codes={num}/0" for num in (64, 16)),
        "0.2/tables.num_codes=16/0",
    }
    assert [line for line in told.notes if "left out" in line] == [
        "left out of fm/dpq/0.5, whose budget they can't reach: tables.num_codes=256",
        "left out of fm/dpq/0.2, whose budget they can't reach: tables.num_codes=256 and tables.num_codes=64",
    ]
    assert "Points left out of fm/dpq/0.5, whose budget" in _unwrapped(out / "leaderboard.md")

    again = Told()
    more = Plan(budgets=[0.4], **settings)  # whose choice the grid at .5 decides: it is complete without 256
    later = Sweep(more, out, reporter=again).run(resume=True)
    assert [(row.budget, row.status) for row in later] == [
        *((0.5, "complete"), (0.2, "complete"), (0.01, "infeasible"), (0.4, "complete")),
    ]
    assert later[3].point == rows[0].point
    assert [path.name for path in (runs / "0.4").iterdir()] == [rows[0].point]


def test_a_resume_with_less_keeps_what_is_finished(config: dict[str, Any], tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "config": config | {"train": {"epochs": 1}, "model": {"name": "fm"}},
        "models": ["fm"],
        "grid": {"train.table_lr": [0.01, 0.1]},
    }
    out = tmp_path / "out"
    first = Plan(methods=["full", "hash", "alpt"], budgets=[0.5, 0.1], seeds=[0, 1], **settings)
    before = Sweep(first, out).run()
    told = Told()
    less = Plan(methods=["hash"], budgets=[0.5], seeds=[0], **settings)
    after = Sweep(less, out, reporter=told).run(resume=True)
    timeless = [replace(row, lookup_us_1=None, lookup_rows_per_s_4096=None) for row in before]
    assert [replace(row, lookup_us_1=None, lookup_rows_per_s_4096=None) for row in after] == timeless
    assert len((out / "leaderboard.csv").read_text().splitlines()) - 1 == len(before) == 5

    files = {path: path.read_bytes() for path in (out / "sweep.yaml", out / "leaderboard.csv")}
    for seeds in ([0], [0, 7]):
        with pytest.raises(ConfigError, match="fm/hash/0.5 was chosen from a grid") as refused:
            Sweep(Plan(methods=["hash"], budgets=[0.5], seeds=seeds, **{**settings, "grid": {}}), out).run(resume=True)
        assert "--grid train.table_lr=0.01,0.1" in str(refused.value)
        assert {path: path.read_bytes() for path in files} == files
    damaged = out / "runs/fm/full/1" / before[0].point / "1/result.json"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-20])
    with pytest.raises(CheckpointError, match=f"delete the folder '{damaged.parent}', and --resume trains that run"):
        Sweep(less, out).run(resume=True)
    damaged.write_bytes(whole)

    run, other = (RunFolder(out / "runs/fm/full/1" / before[0].point / seed) for seed in "10")
    write_record(run.environment, {**read_record(run.environment), "git_commit": "f" * 40})
    assert " (fffffffff), torch " in run.made_by()
    environment = run.environment.read_text()
    run.environment.write_text(environment[:-9])
    job = Job(case=Case(model="fm", method="full", budget=None), seed=1, point=before[0].point)
    assert SweepFolder(out).made_by(job) == "unknown versions (environment.json is damaged)"
    run.environment.write_text(environment)
    assert "several versions" not in (out / "leaderboard.md").read_text()

    shutil.rmtree(out / "runs/fm/hash/0.1")
    shutil.rmtree(out / "runs/fm/full/1" / before[0].point / "0/checkpoints")  # its result stays
    more = Plan(methods=["uniform_dim"], budgets=[0.5], seeds=[0], **settings)
    rows = Sweep(more, out, reporter=told).run(resume=True)
    assert [(row.method, row.budget, row.status, row.seeds) for row in rows] == [
        ("full", None, "complete", "0,1"),
        ("hash", 0.5, "complete", "0,1"),
        ("alpt", 0.5, "infeasible", ""),
        ("alpt", 0.1, "infeasible", ""),
        ("uniform_dim", 0.5, "complete", "0"),
    ]
    assert "fm/hash/0.1: not complete and not asked for now, so it is not in the leaderboard" in told.notes
    assert f"Runs were made by several versions. {other.made_by()}: 4; {run.made_by()}: 1." in " ".join(
        (out / "leaderboard.md").read_text().split()
    )
    assert (rows[0].lookup_us_1, rows[0].auc) == (None, before[0].auc)
    assert any(line.startswith(f"fm/full/1/{rows[0].point}/0: lookups can't be measured: ") for line in told.notes)
    assert not (out / "runs/fm/hash/0.1").exists(), "nothing is trained that wasn't asked for"
