"""The knapsack against enumeration, and the profile against an objective that is a sum over tables."""

import random
from itertools import product

import optuna
import pytest
from optuna.trial import TrialState

from embank.search import DimensionSpace, profile_knapsack, profile_plan, read_profile, search
from embank.search.profile import measured_genes
from embank.search.spaces import Group, Parameter
from embank.tables import BudgetError, ConfigError, TableSpec, WorkError


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def plain(name: str, num: int, dim: int = 16) -> TableSpec:
    return TableSpec(name=name, num_embeddings=num, embedding_dim=dim, feature_names=[name])


@pytest.mark.parametrize("seed", range(12))
def test_the_knapsack_is_that_of_enumeration_at_every_budget(seed: int) -> None:
    """Scores that tie, options that nothing would choose, zero bytes: for every budget the best that there is."""
    rng = random.Random(seed)
    options = {
        f"t{k}": [(rng.randrange(0, 12), rng.choice([rng.random(), 0.5])) for _ in range(rng.randrange(1, 6))]
        for k in range(5)
    }
    best = [max(score for _, score in own) for own in options.values()]
    every = [
        (sum(cost for cost, _ in chosen), sum(score - top for (_, score), top in zip(chosen, best, strict=True)))
        for chosen in product(*options.values())
    ]
    front = profile_knapsack(options)
    limit = rng.randrange(25, 40)
    cut = profile_knapsack(options, nbytes=limit)
    for budget in range(70):
        within = [score for cost, score in every if cost <= budget]
        if not within:
            with pytest.raises(BudgetError, match="do not hold the smallest option of every table"):
                front.at(budget)
            continue
        for solved in (front, cut) if budget <= limit else (front,):
            chosen = solved.at(budget)
            picked = [options[name][index] for name, index in chosen.items()]
            assert sum(cost for cost, _ in picked) <= budget
            gained = sum(score - top for (_, score), top in zip(picked, best, strict=True))
            assert gained == pytest.approx(max(within), abs=1e-12)
    assert (front.nbytes_n[1:] > front.nbytes_n[:-1]).all()
    assert (front.scores_n[1:] > front.scores_n[:-1]).all()


def test_what_a_knapsack_refuses() -> None:
    with pytest.raises(ConfigError, match="at least one table"):
        profile_knapsack({})
    with pytest.raises(ConfigError, match="table 'b' has no option"):
        profile_knapsack({"a": [(1, 0.5)], "b": []})
    with pytest.raises(BudgetError, match="5 bytes do not hold the smallest option of every table, 8 bytes"):
        profile_knapsack({"a": [(8, 0.5)]}, nbytes=5)


def test_the_plan_is_the_whole_and_one_table_at_a_time() -> None:
    space = DimensionSpace([plain("a", 400, 64), plain("b", 90, 10)], widths=1)
    plan = [space.decode(genes) for genes in profile_plan(space)]
    assert plan[0] == {"width.a": 64, "width.b": 10}
    assert [c["width.a"] for c in plan if c["width.b"] == 10] == [64, 1, 2, 4, 8, 16, 32]
    assert sorted(c["width.b"] for c in plan[1:] if c["width.a"] == 64) == [1, 2, 5]


def test_ladders_take_every_value_of_what_has_no_order_and_halves_of_what_has() -> None:
    method = Parameter(name="method.a", values=("x", "y"), is_ordered=False)
    rows = Parameter(name="rows.a", values=tuple(range(1, 101)), when=("method.a", ("y",)))
    group = Group(name="a", parameters=(method, rows))
    assert [gene[1] + 1 for gene in measured_genes(group, (0, 0)) if gene[0] == 1] == [1, 2, 3, 6, 12, 25, 50, 100]
    assert (0, 0) in measured_genes(group, (0, 0))


def test_a_profile_finds_the_best_of_its_options_for_every_budget_of_a_separable_score() -> None:
    space = DimensionSpace([plain("a", 400), plain("b", 90), plain("c", 300, 10), plain("d", 20)], widths=2)
    worth = {"a": 0.4, "b": 3.0, "c": 1.0, "d": 0.2}
    asked: list[dict] = []

    def score(candidate: dict, trial: object = None) -> float:
        return 0.5 + sum(worth[name[-1]] * (1 - 0.8 ** int(width)) for name, width in candidate.items())

    def objective(candidate: dict, trial: optuna.Trial) -> float:
        asked.append(candidate)
        return score(candidate)

    plan = profile_plan(space)
    study = search(objective, space=space, sampler="profile", budget=0.3, num_trials=len(plan) + 1)
    assert [space.encode(candidate) for candidate in asked[:-1]] == plan
    assert all("profile" in trial.user_attrs for trial in study.trials[:-1])
    measured = [measured_genes(group, group.genes[-1]) for group in space.groups]
    every = [(space.nbytes_of(genes), score(space.decode(genes))) for genes in product(*measured)]
    assert score(asked[-1]) == pytest.approx(max(s for nbytes, s in every if nbytes <= space.allowed_nbytes(0.3)))
    profile = read_profile(study, space)
    for budget in (0.25, 0.35, 0.5, 0.7, 1.0):
        allowed = space.allowed_nbytes(budget)
        chosen = profile.candidate(allowed)
        assert space.nbytes(chosen) <= allowed
        assert score(chosen) == pytest.approx(max(s for nbytes, s in every if nbytes <= allowed))


def test_a_front_begins_with_the_choices_from_the_smallest_to_the_largest() -> None:
    space = DimensionSpace([plain("a", 400), plain("b", 90)], widths=1)
    num = len(profile_plan(space))

    def score(candidate: dict, trial: object = None) -> float:
        return sum(float(width) ** 0.5 for width in candidate.values())

    study = search(score, space=space, sampler="profile", front=True, num_trials=num + 4)
    after = [trial.user_attrs["nbytes"] for trial in study.trials[num:]]
    assert after == sorted(after)
    assert after[0] == space.nbytes_of(space.floor())


def test_a_profile_without_the_whole_is_refused() -> None:
    space = DimensionSpace([plain("a", 400), plain("b", 90)])
    study = search(lambda candidate, trial: 0.5, space=space, num_trials=3)
    with pytest.raises(WorkError, match="has no score of the whole tables yet"):
        read_profile(study, space)


def test_bytes_of_tables_that_are_not_searched_count() -> None:
    class Fixed(DimensionSpace):
        """A space beside which other tables stand."""

        def nbytes_of(self, genes: tuple) -> int:
            return super().nbytes_of(genes) + 5000

    space = Fixed([plain("a", 400), plain("b", 90), plain("c", 350)], widths=1)

    def score(candidate: dict, trial: object = None) -> float:
        return sum(float(width) ** 0.5 for width in candidate.values())

    num = len(profile_plan(space)) + 1
    study = search(score, space=space, sampler="profile", budget=0.5, num_trials=num)
    profile = read_profile(study, space)
    chosen = study.trials[-1].user_attrs
    assert chosen["candidate"] == profile.candidate(space.allowed_nbytes(0.5))
    assert 5000 < chosen["nbytes"] <= space.allowed_nbytes(0.5)
    front = search(score, space=space, sampler="profile", front=True, num_trials=num + 3)
    assert front.trials[num - 1].user_attrs["nbytes"] == space.nbytes_of(space.floor())


def test_fewer_trials_than_a_profile_takes_are_refused() -> None:
    space = DimensionSpace([plain("a", 400), plain("b", 90)])
    num = len(profile_plan(space))
    for budget in (None, 0.5):
        with pytest.raises(ConfigError, match=f"takes {num} trials and at least 1 more .* {num} trials are too few"):
            search(lambda candidate, trial: 0.5, space=space, sampler="profile", budget=budget, num_trials=num)
    assert not search(lambda candidate, trial: 0.5, space=space, sampler="profile", num_trials=0).get_trials(
        states=(TrialState.COMPLETE,)
    )


def test_candidates_that_are_in_the_plan_are_scored_once() -> None:
    space = DimensionSpace([plain("a", 400), plain("b", 90), plain("c", 30)])
    whole = space.decode(space.ceiling())
    num = len(profile_plan(space)) + 1
    study = search(lambda c, t: 0.5, space=space, sampler="profile", num_trials=num, candidates=[whole])
    assert len({space.genes(trial.params) for trial in study.trials}) == num
    assert read_profile(study, space).at(space.plain_nbytes)
