"""What the pictures of a search are drawn from."""

import random

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

from embank.pipelines.search.pictures import _importances

WHOLE = FloatDistribution(0.0, 1.0)


def test_importance_is_that_among_trials_that_keep_the_budget() -> None:
    """`size` makes a trial good, and takes it over the budget; of those within it `rate` decides."""
    draw, study = random.Random(0), optuna.create_study(direction="maximize")
    for _ in range(400):
        size, rate = draw.random(), draw.random()
        score = 10 + size if size > 0.5 else rate
        constraints = {"bytes": size - 0.5}
        params, kinds = {"size": size, "rate": rate}, {"size": WHOLE, "rate": WHOLE}
        study.add_trial(create_trial(params=params, distributions=kinds, value=score, constraints=constraints))
    found = _importances(study)
    assert found["rate"] > 0.8, found


def test_few_trials_within_the_budget_say_nothing() -> None:
    study = optuna.create_study(direction="maximize")
    for size in (0.1, 0.2, 0.3, *[0.9] * 20):
        params, kinds = {"size": size}, {"size": WHOLE}
        study.add_trial(create_trial(params=params, distributions=kinds, value=size, constraints={"bytes": size - 0.5}))
    assert _importances(study) == {}
