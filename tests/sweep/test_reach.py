"""Points of a grid that can't reach their line's budget."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from embank.pipelines.sweep.edges import edges
from embank.pipelines.sweep.feasible import Feasibility, Reach
from embank.pipelines.sweep.plan import Case, Job, Plan
from embank.pipelines.sweep.tuning import Tuning, left_out_text
from embank.tables import ConfigError
from tests.training.runs import raw_config, write_data

FLOORS = {256: 0.625, 64: 0.228, 16: 0.111}
"""Of dpq by its number of codes."""


@pytest.fixture(scope="module")
def feasibility(tmp_path_factory: pytest.TempPathFactory) -> Feasibility:
    return Feasibility(write_data(tmp_path_factory.mktemp("reach") / "data", single={"user": 500, "item": 7}))


def plan_of(feasibility: Feasibility, num_codes: Sequence[Any], *budgets: float, **changes: Any) -> Plan:
    settings: dict[str, Any] = {"models": ["fm"], "methods": ["dpq"], "seeds": [0], **changes}
    grid = {"tables.num_codes": num_codes}
    config = raw_config(feasibility.data, tables={"dim": 4, "method": "dpq"})
    return Plan(config=config, budgets=budgets, grid=grid, **settings)


def at(budget: float, num_codes: int) -> Job:
    case = Case(model="fm", method="dpq", budget=budget)
    return Job(case=case, seed=0, point=f"tables.num_codes={num_codes}")


def tuning_of(plan: Plan, reach: Reach, results: Mapping[Job, Mapping[str, Any]], *, widens: bool = False) -> Tuning:
    feasible = [case for case in plan.cases() if reach.infeasible(case) is None]
    return Tuning(plan, feasible, reach=reach, widens=widens, results=results, failures={})


def valid(auc: float) -> dict[str, Any]:
    return {"monitor": "auc", "valid_auc": auc}


@pytest.mark.parametrize("num_codes", [(256, 64, 16), (16, 64, 256)])
def test_a_line_is_infeasible_only_if_no_point_reaches_its_budget(
    feasibility: Feasibility, num_codes: tuple[int, ...]
) -> None:
    plan = plan_of(feasibility, num_codes, 0.7, 0.5, 0.2, 0.1)
    reach = Reach(plan, feasibility)
    for case in plan.cases():
        assert case.budget is not None
        reached = [job.point for job in reach.points(case)]
        assert reached == [f"tables.num_codes={num}" for num in num_codes if FLOORS[num] <= case.budget]
        assert (reach.infeasible(case) is None) == bool(reached)
    infeasible = reach.infeasible(plan.cases()[-1])
    assert infeasible is not None
    assert infeasible.floor == min(FLOORS.values())
    assert "their floor is" in infeasible.refusal


def test_points_out_of_reach_are_not_run_and_said(feasibility: Feasibility) -> None:
    plan = plan_of(feasibility, (256, 64, 16), 0.5)
    reach, results = Reach(plan, feasibility), {at(0.5, 64): valid(0.6)}
    tuning = tuning_of(plan, reach, results)
    assert tuning.wanted() == [at(0.5, 64), at(0.5, 16)]
    assert tuning.num_jobs() == 2
    assert tuning.chosen(at(0.5, 64).case) is None
    results[at(0.5, 16)] = valid(0.7)
    assert tuning.chosen(at(0.5, 64).case) == "tables.num_codes=16"
    told = "left out of fm/dpq/0.5, whose budget they can't reach: tables.num_codes=256"
    assert left_out_text(at(0.5, 64).case, reach) == told
    assert tuning.facts()[1] == f"Points {told}."
    whole = plan_of(feasibility, (64, 16), 0.5)
    assert len(tuning_of(whole, Reach(whole, feasibility), {}).facts()) == 1


def test_a_page_tells_of_some_lines_whose_points_were_left_out(feasibility: Feasibility) -> None:
    plan = plan_of(feasibility, (256, 128, 512, 1024, 4), 0.3, 0.29, 0.28, 0.27, 0.26)
    _, told = tuning_of(plan, Reach(plan, feasibility), {}).facts()
    some = "tables.num_codes=256 and tables.num_codes=128 and tables.num_codes=512 and 1 more"
    assert told.count(f"whose budget they can't reach: {some}") == 3
    assert told.endswith("; and of 2 more lines.")


def test_a_grid_is_not_widened_beyond_the_budget(feasibility: Feasibility) -> None:
    plan = plan_of(feasibility, (256, 64), 0.5, widen=True, seeds=[0, 1])
    reach, results = Reach(plan, feasibility), dict[Job, Any]()
    tuning = tuning_of(plan, reach, results, widens=True)
    assert tuning.wanted() == [at(0.5, 64)], "the only point of the grid, before what lies beyond it is known"
    results[at(0.5, 64)] = valid(0.6)
    assert tuning.wanted() == [at(0.5, 64), at(0.5, 16)], "not 256"
    results[at(0.5, 16)] = valid(0.5)
    assert tuning.chosen(at(0.5, 64).case) == "tables.num_codes=64"
    assert tuning.wanted() == [at(0.5, 64), at(0.5, 16), replace(at(0.5, 64), seed=1)]
    assert tuning.num_jobs() == 3

    up = plan_of(feasibility, (16, 64), 0.5, widen=True)
    results = {at(0.5, 16): valid(0.5), at(0.5, 64): valid(0.6)}
    reach = Reach(up, feasibility)
    tuning = tuning_of(up, reach, results, widens=True)
    assert tuning.wanted() == [at(0.5, 16), at(0.5, 64)], "256 lies beyond the budget"
    assert len(edges(up, *tuning.choices())) == 1
    assert edges(up, *tuning.choices(), reaches=tuning.reaches) == [], "nor is it advised"


def test_choices_tell_which_points_failed(feasibility: Feasibility) -> None:
    plan = plan_of(feasibility, (64, 32, 16), 0.5)
    tuning = Tuning(
        plan,
        plan.cases(),
        reach=Reach(plan, feasibility),
        widens=False,
        results={at(0.5, 64): valid(0.6), at(0.5, 32): valid(0.7)},
        failures={at(0.5, 16): "no memory"},
    )
    line, points = at(0.5, 64).case.name, [f"tables.num_codes={num}" for num in (64, 32, 16)]
    assert tuning.choices() == ({line: points[1]}, {line: points}, {line: points[2:]})
    (edge,) = edges(plan, *tuning.choices(), reaches=tuning.reaches)
    assert str(edge).endswith("try tables.num_codes=23 as well; 16 failed")


def test_a_grid_is_widened_up_to_what_failed(feasibility: Feasibility) -> None:
    """A point that failed was taken for the end of the way."""
    plan = plan_of(feasibility, (64, 32, 16), 0.5, widen=True)
    results, failures = {at(0.5, 64): valid(0.5), at(0.5, 32): valid(0.7)}, {at(0.5, 16): "no memory"}
    tuning = Tuning(plan, plan.cases(), reach=Reach(plan, feasibility), widens=True, results=results, failures=failures)
    case = at(0.5, 64).case
    assert tuning.wanted() == [at(0.5, 64), at(0.5, 32), at(0.5, 16), at(0.5, 23)]
    results[at(0.5, 23)] = valid(0.6)
    assert (tuning.chosen(case), tuning.unsettled()) == ("tables.num_codes=32", [])
    del results[at(0.5, 23)]
    failures[at(0.5, 23)] = "no memory"
    assert tuning.wanted()[-1] == at(0.5, 27)
    for num in (27, 29, 30, 31):
        failures[at(0.5, num)] = "no memory"
    assert tuning.chosen(case) == "tables.num_codes=32"
    assert tuning.unsettled() == [
        "fm/dpq/0.5: tables.num_codes=31, next to the chosen tables.num_codes=32, failed: whether better values lie "
        "there is not settled; --resume tries again what failed"
    ]


def test_a_line_takes_the_best_point_that_reaches_its_own_budget(feasibility: Feasibility) -> None:
    plan = plan_of(feasibility, (256, 64, 16), 0.7, 0.5, 0.2, grid_budget=0.7)
    results = {at(0.7, num): valid(auc) for num, auc in ((256, 0.9), (64, 0.8), (16, 0.7))}
    tuning = tuning_of(plan, Reach(plan, feasibility), results)
    assert [tuning.chosen(case) for case in plan.cases()] == [f"tables.num_codes={num}" for num in (256, 64, 16)]
    assert tuning.wanted() == [*results, at(0.5, 64), at(0.2, 16)]
    assert tuning.num_jobs() == 5
    del results[at(0.7, 256)]
    assert tuning.chosen(at(0.5, 64).case) is None, "before the whole grid is run"


def test_a_fault_of_one_point_is_left_to_its_run(feasibility: Feasibility) -> None:
    """Where no point can be built the sweep ends before its first run."""
    case = at(0.2, 16).case
    codebooks: dict[str, Any] = {"models": ["fm"], "methods": ["dpq"], "seeds": [0], "budgets": [0.2]}
    raw = raw_config(feasibility.data, tables={"dim": 4})

    def reach(grid: dict[str, list[Any]]) -> Reach:
        return Reach(Plan(config=raw, grid=grid, **codebooks), feasibility)

    one = reach({"tables.num_codebooks": [3, 1]})
    assert [job.point for job in one.points(case)] == ["tables.num_codebooks=3", "tables.num_codebooks=1"]
    assert one.infeasible(case) is None
    with pytest.raises(ConfigError, match="3"):
        reach({"tables.num_codebooks": [3]}).infeasible(case)


def test_rates_are_no_part_of_what_tables_are(feasibility: Feasibility, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid of rates costs no more looks than one run."""
    fresh, looks = Feasibility(feasibility.data), 0
    built = fresh._built

    def counted(config: Any) -> Any:
        nonlocal looks
        looks += 1
        return built(config)

    monkeypatch.setattr(fresh, "_built", counted)
    grid: dict[str, Any] = {"train.table_lr": [0.1, 0.2], "train.lr": [0.1, 0.2], "train.embedding_l2": [0.0, 0.1]}
    config = raw_config(fresh.data)
    plan = Plan(config=config, models=["fm"], methods=["dpq"], budgets=[0.7], seeds=[0], grid=grid)
    assert len(Reach(plan, fresh).points(plan.cases()[0])) == 8
    assert looks == 2
