"""Trials that can't be trained: the search goes on without them, until several in a row have failed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from tests.search.supernets import plan_of
from tests.training.runs import write_data

from embank.pipelines.search.configspace import config_space
from embank.pipelines.search.job import Job
from embank.pipelines.search.training import TrainingObjective
from embank.pipelines.search.trials import FailedTrialError
from embank.pipelines.train.interrupt import StopRequest
from embank.tables import WorkError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "prepared")


def test_values_that_can_not_be_together_fail_a_trial_and_three_in_a_row_the_search(data: Path, tmp_path: Path) -> None:
    """Pruning that begins after its end: each value is good with others of the space."""
    plan = plan_of(data, tmp_path / "s", space="full", sampler="random", budgets=[0.9])
    shares = {"tables.begin": [0.1, 0.6], "tables.end": [0.4, 0.9]}
    options: dict[str, Any] = {"tables.method": ["deeplight"], "tables.codec": ["fp32"], **shares}
    plan = replace(plan, options=options)
    space = config_space(plan, budget=0.9, shapes=tmp_path / "none")
    job = Job(plan=plan, budget=0.9, out=tmp_path / "s", supernet=None, num_threads=1)
    objective = TrainingObjective(job, space, stop=StopRequest(), prunes=False)
    candidate = {**space.first_candidates()[0], "tables.begin": 0.6, "tables.end": 0.4}
    study = optuna.create_study()
    for _ in range(2):
        with pytest.raises(FailedTrialError, match="pruning begins at 0.6 and ends at 0.4"):
            objective(candidate, study.ask())
    with pytest.raises(WorkError, match="3 trials in a row have failed, the last one: .*ends at 0.4") as told:
        objective(candidate, study.ask())
    assert "a value of the space or the configuration was, which a search keeps" in str(told.value)
    assert "begin another search in another --out" in str(told.value)
    assert all("ends at 0.4" in trial.user_attrs["error"] for trial in study.trials)
