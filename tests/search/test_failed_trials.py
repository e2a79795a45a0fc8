"""Trials that can't be trained: the search goes on without them, until several trainings in a row have failed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from tests.search.supernets import plan_of
from tests.told import Told
from tests.training.runs import write_data

from embank.pipelines.search.clashes import Clashes
from embank.pipelines.search.configspace import config_space
from embank.pipelines.search.job import Job
from embank.pipelines.search.plan import SearchPlan
from embank.pipelines.search.search import Search
from embank.pipelines.search.training import TrainingObjective
from embank.pipelines.search.trials import FailedTrialError
from embank.pipelines.search.unreached import CLASH, INFEASIBLE, is_unreached, unreached
from embank.pipelines.train.interrupt import StopRequest
from embank.tables import BudgetError, ConfigError, WorkError

CLASHING: dict[str, Any] = {
    "tables.method": ["deeplight"],
    "tables.codec": ["fp32"],
    "tables.dim": [8],
    "train.lr": [0.01],
    "train.table_lr": [0.05],
    "tables.begin": [0.1, 0.6],
    "tables.end": [0.4, 0.9],
}
"""Pruning that begins after its end: each value is good with others of the space."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "prepared")


def clashing_plan(data: Path, out: Path, **settings: Any) -> SearchPlan:
    plan = plan_of(data, out, space="full", sampler="random", budgets=[0.9], **settings)
    return replace(plan, options=CLASHING)


def objective_of(plan: SearchPlan, out: Path) -> TrainingObjective:
    space = config_space(plan, budget=0.9, shapes=out / "none")
    job = Job(plan=plan, budget=0.9, out=out, supernet=None, num_threads=1)
    return TrainingObjective(job, space, stop=StopRequest(), prunes=False)


def test_values_that_can_not_be_together_prune_a_trial_and_no_number_of_them_ends_the_search(
    data: Path, tmp_path: Path
) -> None:
    objective = objective_of(clashing_plan(data, tmp_path / "s"), tmp_path / "s")
    candidate = {**objective.space.first_candidates()[0], "tables.begin": 0.6, "tables.end": 0.4}
    study = optuna.create_study()
    for _ in range(4):
        with pytest.raises(optuna.TrialPruned):
            objective(candidate, study.ask())
    assert all("pruning begins at 0.6 and ends at 0.4" in trial.user_attrs[CLASH] for trial in study.trials)


def test_three_trainings_in_a_row_that_fail_end_the_search(data: Path, tmp_path: Path) -> None:
    objective, study = objective_of(clashing_plan(data, tmp_path / "s"), tmp_path / "s"), optuna.create_study()
    for _ in range(2):
        with pytest.raises(FailedTrialError, match="no memory"):
            objective._fail("no memory.", study.ask())
    with pytest.raises(WorkError, match="3 trials in a row have failed, the last one: no memory. What") as told:
        objective._fail("no memory.", study.ask())
    assert "a value of the space or the configuration was, which a search keeps" in str(told.value)
    assert "begin another search in another --out" in str(told.value)
    assert all(trial.user_attrs["error"] == "no memory." for trial in study.trials)


@pytest.mark.slow
def test_a_search_goes_on_after_a_clash_that_only_a_trial_finds(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a space too large to be looked at as a whole."""
    monkeypatch.setattr(Clashes, "found", lambda self, given: [])
    out, told = tmp_path / "s", Told()
    (study,) = Search(clashing_plan(data, out, num_trials=8), out, reporter=told).run().values()
    clashes = [trial for trial in study.trials if CLASH in trial.user_attrs]
    assert clashes
    assert {trial.state for trial in clashes} == {TrialState.PRUNED}
    assert {trial.user_attrs["candidate"]["tables.begin"] for trial in clashes} == {0.6}
    said = f"trial {clashes[0].number} is pruned, its values clash: the configuration: pruning begins at 0.6 and ends"
    assert any(said in note for note in told.notes), told.notes
    assert any(trial.state == TrialState.COMPLETE for trial in study.trials)
    assert (out / "best.yaml").is_file()


def test_a_study_of_clashes_alone_says_so(data: Path, tmp_path: Path) -> None:
    """With some that can't keep the budget, it says what budget these would keep."""
    plan = clashing_plan(data, tmp_path / "s")
    space = config_space(plan, budget=0.9, shapes=tmp_path / "none")
    candidate, study = space.first_candidates()[0], optuna.create_study()

    def add(**attributes: str) -> None:
        study.add_trial(
            optuna.trial.create_trial(state=TrialState.PRUNED, user_attrs={"candidate": candidate, **attributes})
        )

    add(**{CLASH: "this and that."})
    assert is_unreached(study)
    said = unreached(study, space, config=plan.parsed, budget=0.9)
    assert isinstance(said, ConfigError)
    assert "none of its 1 candidates has values that can be together; of the first, this and that. Search in" in str(
        said
    )
    add(**{INFEASIBLE: "too large"})
    assert is_unreached(study)
    assert isinstance(unreached(study, space, config=plan.parsed, budget=0.9), BudgetError)
    add()
    assert not is_unreached(study)
