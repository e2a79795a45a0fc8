"""Values of a space that can't be together are told before the first trial."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.search.supernets import plan_of
from tests.told import Told
from tests.training.runs import write_data

from embank.pipelines.search.clashes import Clashes
from embank.pipelines.search.configspace import ConfigSpace, config_space
from embank.pipelines.search.search import Search
from embank.pipelines.search.unreached import CLASH
from embank.tables import ConfigError

PRUNED: dict[str, Any] = {
    "tables.method": ["deeplight"],
    "tables.codec": ["fp32"],
    "tables.dim": [8],
    "tables.begin": [0.1, 0.6],
    "tables.end": [0.4, 0.9],
}
SAID = "the space: 'tables.begin' 0.6 and 'tables.end' 0.4 can't be together: pruning begins at 0.6 and ends at"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "prepared")


def space_of(data: Path, out: Path, options: dict[str, Any]) -> ConfigSpace:
    plan = plan_of(data, out, space="full", sampler="tpe", budgets=[0.9])
    space = config_space(replace(plan, options=options), budget=0.9, shapes=out / "none")
    assert isinstance(space, ConfigSpace)
    return space


@pytest.mark.slow
def test_a_clash_is_told_before_the_first_trial_and_its_trials_are_pruned(data: Path, tmp_path: Path) -> None:
    out, told = tmp_path / "s", Told()
    options = {**PRUNED, "train.lr": [0.01], "train.table_lr": [0.05]}
    plan = plan_of(data, out, space="full", sampler="random", budgets=[0.9], num_trials=6)
    (study,) = Search(replace(plan, options=options), out, reporter=told).run().values()
    (line,) = [note for note in told.notes if "can't be together" in note]
    assert line.startswith(SAID)
    assert line.endswith("Trials that draw both are pruned")
    assert any(CLASH in trial.user_attrs for trial in study.trials)
    assert any(trial.value is not None for trial in study.trials)
    Search(replace(plan, options=options, num_trials=7), out, reporter=told).run(resume=True)
    assert len([note for note in told.notes if note == line]) == 1


@pytest.mark.slow
def test_of_a_large_space_pairs_are_looked_at(data: Path, tmp_path: Path) -> None:
    """No more candidates than are asked for: what is left is the trials'."""
    space = space_of(data, tmp_path, {**PRUNED, "train.lr": [0.01 * n for n in range(1, 20)]})
    assert [line.startswith(SAID) for line in Clashes(space, told="the space", most=space.size - 1).found(PRUNED)] == [
        True
    ]
    few = Clashes(space, told="the space", most=2)
    assert not few.found(PRUNED)
    assert len(few.refusals) == 4, "two configurations, and their tables"


@pytest.mark.slow
def test_methods_of_a_large_space_have_pairs_of_their_own(data: Path, tmp_path: Path) -> None:
    """Lookups must divide the dim of `unified`, which is found as its tables are built; `hash` has none."""
    options = {"tables.method": ["hash", "unified"], "tables.codec": ["fp32"], "tables.dim": [8, 10]}
    space = space_of(data, tmp_path, options)
    for most in (space.size, space.size - 1):
        assert not Clashes(space, told="the space", most=most).found(options)
    clashing = {**options, "tables.method": ["unified"], "tables.lookups": [2, 4]}
    space = space_of(data, tmp_path, clashing)
    for most in (space.size, space.size - 1):
        (line,) = Clashes(space, told="the space", most=most).found(clashing)
        assert line.startswith("the space: 'tables.dim' 10 and 'tables.lookups' 4 can't be together: table")


def test_what_a_search_tries_by_default_is_left_to_its_trials(data: Path, tmp_path: Path) -> None:
    clashes = Clashes(space_of(data, tmp_path, PRUNED), told="the space")
    assert not clashes.found({})
    assert not clashes.refusals
    assert not clashes.found({"train.lr": [0.01]})
    assert any(clashes.refusals.values())


def test_a_first_candidate_that_is_refused_is_named(data: Path, tmp_path: Path) -> None:
    alone = {**PRUNED, "tables.begin": [0.6], "tables.end": [0.4]}
    with pytest.raises(ConfigError, match="the space, whose first candidate is .*'tables.end': 0.4.*: pruning begins"):
        space_of(data, tmp_path, alone)


@pytest.mark.slow
def test_shapes_that_are_not_there_yet_are_tried_as_plain_tables(data: Path, tmp_path: Path) -> None:
    options = {"tables.method": ["searched", "hash"], "train.lr": [0.01, 0.1]}
    clashes = Clashes(space_of(data, tmp_path, options), told="the space")
    assert not clashes.found(options)
    assert len(clashes.refusals) == 2 * clashes.space.size
