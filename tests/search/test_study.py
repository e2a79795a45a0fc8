"""`search`: budgets, fronts, resuming, and what a study says about itself."""

import json

import optuna
import pytest

from embank.search import SAMPLERS, DimensionSpace, EvolutionSampler, search
from embank.search.known import KnownCandidates
from embank.tables import BudgetError, CheckpointError, ConfigError, TableSpec


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def plain(name: str, num: int, dim: int = 16) -> TableSpec:
    return TableSpec(name=name, num_embeddings=num, embedding_dim=dim, feature_names=[name])


SPACE = DimensionSpace([plain("a", 400), plain("b", 90), plain("c", 11, dim=10), plain("d", 60)], row_levels=3)
"""Its profile takes 30 trials."""


def score(candidate: dict, trial: optuna.Trial) -> float:
    return sum(
        weight * float(value) ** 0.3
        for weight, value in zip((1, 3, 2, 5, 1, 4, 2, 3), candidate.values(), strict=False)
    )


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "gp"])
def test_every_trial_keeps_the_budget_and_no_candidate_comes_twice(sampler: str) -> None:
    num = 20 if sampler == "tpe" else 60  # it takes long per trial
    study = search(score, space=SPACE, sampler=sampler, budget=0.3, num_trials=num)
    assert len(study.trials) == num
    seen = [json.dumps(trial.user_attrs["candidate"]) for trial in study.trials if "profile" not in trial.user_attrs]
    assert len(set(seen)) == len(seen)
    for trial in study.trials:
        candidate = trial.user_attrs["candidate"]
        assert trial.user_attrs["nbytes"] == SPACE.nbytes(candidate)
        assert trial.constraints == {"nbytes": SPACE.nbytes(candidate) / SPACE.allowed_nbytes(0.3) - 1}
    best = study.best_trial
    assert best.user_attrs["nbytes"] <= 0.3 * SPACE.plain_nbytes
    assert best.value == score(best.user_attrs["candidate"], best)


def test_a_search_ends_when_every_candidate_is_known() -> None:
    space = DimensionSpace([plain("a", 5), plain("b", 3, dim=8)])
    study = search(score, space=space, num_trials=100)
    scored = [trial for trial in study.trials if "same_as" not in trial.user_attrs]
    assert len(scored) == space.size == 8
    assert len(study.trials) == 9


def test_candidates_are_scored_first_and_a_known_one_is_not_scored_again() -> None:
    asked: list[dict] = []

    def objective(candidate: dict, trial: optuna.Trial) -> float:
        asked.append(candidate)
        return score(candidate, trial)

    uniform = SPACE.uniform(SPACE.allowed_nbytes(0.5))
    study = search(objective, space=SPACE, budget=0.5, num_trials=1, candidates=[uniform])
    study.enqueue_trial(study.trials[0].params)
    search_again = {"space": SPACE, "budget": 0.5, "num_trials": 2, "resume": True, "study_name": study.study_name}
    study = search(objective, storage=study._storage, **search_again)
    assert asked == [uniform]
    assert [trial.value for trial in study.trials] == [study.trials[0].value] * 2
    assert study.trials[1].user_attrs["same_as"] == 0


def test_bytes_as_a_second_objective_give_a_front() -> None:
    study = search(score, space=SPACE, front=True, num_trials=120)
    points = sorted((trial.values[1], trial.values[0]) for trial in study.best_trials)
    assert len(points) > 5
    assert [value for _, value in points] == sorted(value for _, value in points)
    for trial in study.best_trials:
        assert trial.values[1] == SPACE.nbytes(trial.user_attrs["candidate"])
    with pytest.raises(ConfigError, match="a search for a front can't prune"):
        search(score, space=SPACE, front=True, num_trials=1, pruner=optuna.pruners.MedianPruner())


@pytest.mark.parametrize("sampler", ["ea", "nsga2", "random"])
def test_a_resumed_study_is_the_one_that_never_stopped(sampler: str) -> None:
    whole = search(score, space=SPACE, sampler=sampler, budget=0.4, num_trials=50)
    storage = optuna.storages.InMemoryStorage()
    for num in (7, 31, 50):
        parts = search(
            score,
            space=SPACE,
            sampler=sampler,
            budget=0.4,
            num_trials=num,
            storage=storage,
            study_name="s",
            resume=True,
        )
    assert [trial.params for trial in parts.trials] == [trial.params for trial in whole.trials]


def test_a_study_of_another_search_is_refused_by_name() -> None:
    storage = optuna.storages.InMemoryStorage()
    same = {
        "storage": storage,
        "study_name": "s",
        "space": SPACE,
        "budget": 0.4,
        "num_trials": 2,
        "identity": {"supernet": "ab12"},
    }
    search(score, **same)
    with pytest.raises(ConfigError, match="study 's' exists in that storage, with 2 trials; resume it"):
        search(score, **same)
    other_space = DimensionSpace([plain("a", 400), plain("b", 91)])
    for change, message in (
        ({"space": other_space}, "was made with space '"),
        ({"sampler": "tpe"}, "was made with sampler 'ea'; this search has sampler 'tpe'"),
        ({"sampler": optuna.samplers.RandomSampler()}, "this search has sampler 'RandomSampler'"),
        ({"sampler": EvolutionSampler(SPACE, num_elites=3, seed=0)}, r"has sampler 'EvolutionSampler\(num_mutants=5, "),
        ({"seed": 1}, "was made with seed 0; this search has seed 1"),
        ({"budget": 0.5}, "was made with budget 0.4"),
        ({"identity": {"supernet": "cd34"}}, "was made with supernet 'ab12'; this search has supernet 'cd34'"),
        ({"identity": None}, "this search has supernet None"),
    ):
        with pytest.raises(CheckpointError, match=message):
            search(score, **{**same, **change, "resume": True, "num_trials": 3})
    assert len(search(score, **same | {"resume": True, "num_trials": 3}).trials) == 3


def test_a_study_that_others_made_is_refused() -> None:
    study = optuna.create_study(study_name="s")
    study.add_trial(optuna.create_trial(value=1.0))
    with pytest.raises(CheckpointError, match="was not made by embank's search"):
        search(score, space=SPACE, storage=study._storage, study_name="s", resume=True, num_trials=2)


def test_floors_and_names() -> None:
    with pytest.raises(BudgetError, match=r"the smallest candidate of this space has [\d,]+ bytes, budget 0\.0"):
        search(score, space=SPACE, budget=0.001)
    with pytest.raises(ConfigError, match="there is no sampler 'tpee'; did you mean 'tpe'"):
        search(score, space=SPACE, sampler="tpee")


def test_a_pruned_trial_counts_and_a_failed_one_does_not() -> None:
    def objective(candidate: dict, trial: optuna.Trial) -> float:
        if trial.number == 1:
            raise optuna.TrialPruned
        if trial.number == 2:
            raise RuntimeError("no")
        return score(candidate, trial)

    study = search(objective, space=SPACE, num_trials=5, catch=(RuntimeError,))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "FAIL", *["COMPLETE"] * 3]


@pytest.mark.parametrize("sampler", ["ea", "random", "profile"])
def test_a_trial_costs_no_more_after_many(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished trials are read once, however many come after them."""
    num_read, read = 0, KnownCandidates.genes_of

    def counted(*args: object) -> object:
        nonlocal num_read
        num_read += 1
        return read(*args)

    monkeypatch.setattr(KnownCandidates, "genes_of", counted)
    search(score, space=SPACE, sampler=sampler, budget=0.3, num_trials=40)
    first, num_read = num_read, 0
    search(score, space=SPACE, sampler=sampler, budget=0.3, num_trials=160)
    assert num_read < 6 * first


@pytest.mark.parametrize("sampler", ["ea", "random", "tpe"])
def test_samplers_know_the_trials_of_every_bracket(sampler: str) -> None:
    """Hyperband shows samplers those of one bracket alone."""
    space = DimensionSpace([plain("a", 400), plain("b", 90)])

    def objective(candidate: dict, trial: optuna.Trial) -> float:
        trial.report(score(candidate, trial), 1)
        if trial.should_prune():
            raise optuna.TrialPruned
        return score(candidate, trial)

    pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9)
    study = search(objective, space=space, sampler=sampler, num_trials=14, pruner=pruner)
    seen = [json.dumps(trial.user_attrs["candidate"]) for trial in study.trials]
    assert len(set(seen)) == len(seen) == 14
