"""Samplers: Optuna's own contract suite on ours, and what OptEmbed's release gets wrong."""

import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)
from optuna.trial import TrialState, create_trial

from embank.search import DimensionSpace, EvolutionSampler, MethodSpace, make_sampler, search
from embank.search.known import another
from embank.search.samplers.draws import draw_value, near_value
from embank.search.samplers.ranking import best_trials, crowding
from embank.tables import ConfigError, TableSpec

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def plain(name: str, num: int, dim: int = 16) -> TableSpec:
    return TableSpec(name=name, num_embeddings=num, embedding_dim=dim, feature_names=[name])


SPACE = DimensionSpace([plain(f"t{k}", 10 * (k + 1) ** 2) for k in range(8)], widths=1)
WANTED = (3, 16, 7, 1, 12, 9, 5, 2)


def score(candidate: dict, trial: object = None) -> float:
    """Largest at the wanted widths."""
    return -sum(abs(int(width) - wanted) for width, wanted in zip(candidate.values(), WANTED, strict=True))


class TestEvolutionKeepsOptunasContract(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    """Without a space: floats, logarithms, categories, ranges that change, several threads."""

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: EvolutionSampler(seed=0)


@pytest.mark.parametrize("name", ["profile", "random"])
class TestOthersKeepOptunasContract(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    """Of a space, asked for parameters that are not the space's; those of its own are proposed together."""

    @pytest.fixture
    def sampler(self, name: str) -> Callable[[], BaseSampler]:
        return lambda: make_sampler(name, space=SPACE, seed=0)


@pytest.mark.slow
def test_it_beats_random_search_by_far() -> None:
    def regret(name: str, seed: int) -> float:
        return -search(score, space=SPACE, sampler=name, num_trials=300, seed=seed).best_value

    ours, theirs = (sum(regret(name, seed) for seed in range(2)) for name in ("ea", "random"))
    assert ours < theirs / 2


def test_the_best_so_far_is_always_a_parent_and_is_what_was_scored() -> None:
    study = search(score, space=SPACE, num_trials=150, budget=0.5)
    sampler = EvolutionSampler(SPACE)
    for generation in range(1, 14):
        before = [t for t in study.trials if t.system_attrs["EvolutionSampler:generation"] < generation]
        parents = sampler.get_parent_population(study, generation)
        assert max(t.value for t in before) == max(parent.value for parent in parents)
        assert len(parents) == 10
    for trial in study.trials:
        assert score(SPACE.decode(SPACE.genes(trial.params))) == trial.value


def test_mutants_and_children_take_their_genes_from_parents() -> None:
    """At most a few genes of a mutant come from elsewhere, none of a child, and neither is one of its parents."""
    sampler = EvolutionSampler(SPACE, num_mutants=10, num_crossovers=10, child_mutation=0.0, seed=0)
    study = search(score, space=SPACE, sampler=sampler, num_trials=200)
    fresh: list[int] = []
    for trial in study.trials[20:]:
        generation = trial.system_attrs["EvolutionSampler:generation"]
        parents = [SPACE.genes(p.params) for p in sampler.get_parent_population(study, generation)]
        genes = SPACE.genes(trial.params)
        assert genes not in parents
        if trial.number % 20 < 10:
            fresh.append(min(sum(a != b for a, b in zip(genes, parent, strict=True)) for parent in parents))
        else:
            assert sum(any(parent[k] == gene for parent in parents) for k, gene in enumerate(genes)) >= 7, "or a walk"
    assert 1 <= sum(fresh) / len(fresh) < 3


def test_steps_are_near_and_draws_anywhere() -> None:
    rng, group = random.Random(0), SPACE.groups[0]
    assert {group.step((7,), rng)[0] - 7 for _ in range(200)} == {-2, -1, 1, 2}
    assert {group.step((0,), rng)[0] for _ in range(200)} == {0, 1, 2}
    methods = MethodSpace([plain("a", 1000)], methods=["full", "hash", "uniform_dim"], shares=[0.1, 0.2, 0.5]).groups[0]
    assert {methods.step((1, 0), rng) for _ in range(300)} == {(0, 0), (1, 0), (2, 0), (1, 1)}


@pytest.mark.parametrize(
    "distribution",
    [
        IntDistribution(1, 64),
        IntDistribution(0, 1),
        IntDistribution(1, 1000, log=True),
        FloatDistribution(0.0, 1.0, step=0.1),
        FloatDistribution(1e-5, 1.0, log=True),
        FloatDistribution(-1.0, 1.0),
    ],
)
def test_near_values_are_within_an_eighth_of_the_range(distribution: object) -> None:
    rng = random.Random(0)
    for _ in range(300):
        value = draw_value(distribution, rng)
        near = near_value(distribution, value, rng)
        assert distribution._contains(distribution.to_internal_repr(near))
        if distribution.log:
            octaves = math.log(distribution.high / distribution.low) / 8
            assert abs(math.log(near / value)) <= octaves + (math.log(1.5 / 0.5) if near < 4 else 0.2)
        else:
            slack = distribution.step or 0
            assert abs(near - value) <= (distribution.high - distribution.low) / 8 + slack + 1e-9
    moved = {near_value(distribution, distribution.high, rng) for _ in range(100)}
    assert len(moved) > 1


def test_parents_are_left_as_they_were() -> None:
    storage = optuna.storages.InMemoryStorage()
    same = {"space": SPACE, "storage": storage, "study_name": "s", "resume": True}
    before = [(t.params, t.value) for t in search(score, num_trials=40, **same).trials]
    after = search(score, num_trials=120, **same)
    assert [(t.params, t.value) for t in after.trials[:40]] == before


def test_one_seed_is_one_search_and_another_another() -> None:
    first, again, other = (search(score, space=SPACE, num_trials=60, seed=seed) for seed in (3, 3, 4))
    assert [t.params for t in first.trials] == [t.params for t in again.trials]
    assert [t.params for t in first.trials] != [t.params for t in other.trials]


@pytest.mark.parametrize("sampler", ["ea", "nsga2", "random"])
def test_enqueued_candidates_come_first_unchanged_and_become_parents(sampler: str) -> None:
    wanted = {f"width.t{k}": width for k, width in enumerate(WANTED)}
    second = {**wanted, "width.t0": 16}
    study = search(score, space=SPACE, sampler=sampler, num_trials=60, candidates=[wanted, second], budget=0.2)
    assert [t.user_attrs["candidate"] for t in study.trials[:2]] == [wanted, second]
    assert study.trials[0].value == 0
    if sampler == "ea":
        assert 0 not in {t.number for t in best_trials(study.trials, study.directions, 1)}, "it is above the budget"
        unlimited = search(score, space=SPACE, num_trials=60, candidates=[wanted])
        parents = EvolutionSampler(SPACE).get_parent_population(unlimited, 2)
        assert parents[0].number == 0


def test_failed_and_pruned_trials_are_no_parents_but_a_pruned_one_is_not_made_again() -> None:
    def objective(candidate: dict, trial: optuna.Trial) -> float:
        if trial.number % 3 == 1:
            raise optuna.TrialPruned
        return score(candidate)

    study = search(objective, space=SPACE, num_trials=100)
    assert len({SPACE.genes(t.params) for t in study.trials}) == 100
    parents = EvolutionSampler(SPACE).get_parent_population(study, 2)
    assert all(parent.state == TrialState.COMPLETE for parent in parents)


def test_without_a_space_no_candidate_comes_twice_either() -> None:
    study = optuna.create_study(sampler=EvolutionSampler(seed=0))
    study.optimize(lambda t: t.suggest_int("x", 0, 15) + t.suggest_categorical("y", [3, 1]), n_trials=31)
    seen = [tuple(t.params.values()) for t in study.trials]
    assert len(set(seen[1:])) == len(seen[1:]) == 30


def test_a_walk_finds_the_last_candidate_that_is_new() -> None:
    space = DimensionSpace([plain("a", 10), plain("b", 10)])
    every = [(a, b) for a in space.groups[0].genes for b in space.groups[1].genes]
    last = every[-1]
    assert another(space, every[0], {*every} - {last}, nbytes=None, rng=random.Random(0)) == last
    assert another(space, every[0], set(every), nbytes=None, rng=random.Random(0)) == every[0]


def test_constraints_come_before_scores_among_parents() -> None:
    def trial(value: float, excess: float) -> optuna.trial.FrozenTrial:
        made = create_trial(value=value)
        made.system_attrs["constraints:nbytes"] = excess
        return made

    trials = [trial(9.0, 0.5), trial(1.0, -1.0), trial(2.0, 0.0), trial(8.0, 0.1)]
    for number, each in enumerate(trials):
        each.number = number
    ranked = best_trials(trials, [StudyDirection.MAXIMIZE], 4)
    assert [each.value for each in ranked] == [2.0, 1.0, 8.0, 9.0]


def test_of_several_objectives_the_fronts_come_in_order_and_the_lonely_first() -> None:
    points = [(0, 10), (10, 0), (5, 5), (5.1, 4.9), (2, 8), (11, 11), (6, 6), (5, 5)]
    trials = [create_trial(values=list(map(float, values))) for values in points]
    for number, trial in enumerate(trials):
        trial.number = number
    ranked = [trial.number for trial in best_trials(trials, [StudyDirection.MINIMIZE] * 2, 8)]
    assert set(ranked[:2]) == {0, 1}
    assert set(ranked[2:6]) == {2, 3, 4, 7}
    assert ranked[6:] == [6, 5]
    assert crowding([(0.0, 3.0), (1.0, 2.0), (3.0, 0.0)]) == [math.inf, 2.0, math.inf]
    assert crowding([]) == []


@pytest.mark.parametrize(
    "distribution",
    [
        IntDistribution(1, 64),
        IntDistribution(4, 64, step=4),
        IntDistribution(1, 1000, log=True),
        FloatDistribution(-1.0, 1.0),
        FloatDistribution(0.0, 1.0, step=0.1),
        FloatDistribution(1e-5, 1.0, log=True),
        CategoricalDistribution(("a", "b", "c")),
    ],
)
def test_random_values_are_spread_over_their_distribution(distribution: object) -> None:
    rng = random.Random(0)
    drawn = [draw_value(distribution, rng) for _ in range(2000)]
    assert all(distribution._contains(distribution.to_internal_repr(value)) for value in drawn)
    if isinstance(distribution, CategoricalDistribution):
        assert all(600 < drawn.count(choice) < 740 for choice in "abc")
        return
    low, high = distribution.low, distribution.high
    middle = math.sqrt(low * high) if distribution.log else (low + high) / 2
    below = sum(value < middle for value in drawn) + sum(value == middle for value in drawn) / 2
    assert 900 < below < 1100


def test_a_distribution_that_is_not_known() -> None:
    with pytest.raises(ConfigError, match="object is no distribution that is known"):
        draw_value(object(), random.Random(0))


def test_every_name_makes_a_sampler_that_names_itself() -> None:
    for name in ("ea", "profile", "nsga2", "tpe", "gp", "random"):
        assert isinstance(make_sampler(name, space=SPACE), BaseSampler)


def test_gp_proposes_within_the_budget() -> None:
    space = DimensionSpace([plain("a", 40), plain("b", 90)])
    study = search(lambda c, t: float(sum(c.values())), space=space, sampler="gp", num_trials=12, budget=0.6)
    assert all(t.user_attrs["nbytes"] <= space.allowed_nbytes(0.6) for t in study.trials)


_WORKER = """
import sys, optuna
sys.path.insert(0, {folder!r})
from test_samplers import SPACE, score
from embank.search import search
optuna.logging.set_verbosity(optuna.logging.ERROR)
backend = optuna.storages.journal.JournalFileBackend({journal!r})
search(score, space=SPACE, num_trials=40, budget=0.5, storage=optuna.storages.JournalStorage(backend),
       study_name="s", resume=True)
"""


@pytest.mark.slow
def test_two_workers_share_a_journal(tmp_path: Path) -> None:
    """Unique numbers, no trial lost, and next to none made twice, though the two have one seed."""
    journal = str(tmp_path / "journal.log")
    code = _WORKER.format(folder=str(Path(__file__).parent), journal=journal)
    workers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(journal))
    trials = optuna.load_study(study_name="s", storage=storage).trials
    assert [t.number for t in trials] == list(range(len(trials)))
    assert 40 <= len(trials) <= 41
    assert all(t.state == TrialState.COMPLETE for t in trials)
    assert len({json.dumps(t.user_attrs["candidate"]) for t in trials}) >= len(trials) - 2
    assert all(t.value == score(t.user_attrs["candidate"]) for t in trials)
