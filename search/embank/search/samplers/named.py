"""Samplers by name."""

import warnings
from collections.abc import Callable

import optuna
from optuna.samplers import BaseSampler

from embank.compression.parts.evolution import ATTEMPTS
from embank.search.samplers.evolution import EvolutionSampler
from embank.search.samplers.fitted import FittedSampler
from embank.search.samplers.profile import ProfileSampler
from embank.search.spaces import Space
from embank.tables import ConfigError
from embank.tables.wording import nearest_or_all

_SMALL_POPULATION = 20


def _nsga2(seed: int) -> BaseSampler:
    return optuna.samplers.NSGAIISampler(population_size=_SMALL_POPULATION, seed=seed)


def _tpe(seed: int) -> BaseSampler:
    return optuna.samplers.TPESampler(multivariate=True, seed=seed)


def _gp(seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.GPSampler(seed=seed)


def _random(seed: int) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


_OF_OPTUNA: dict[str, Callable[[int], BaseSampler]] = {"nsga2": _nsga2, "tpe": _tpe, "gp": _gp, "random": _random}
_ATTEMPTS = {"tpe": 5, "gp": 2}

SAMPLERS = ("ea", "profile", *_OF_OPTUNA)
"""`ea`: OptEmbed's evolution, corrected. `profile`: one table at a time, then an exact knapsack, then `ea` from there.
`nsga2`: Optuna's, with a population of 20. `tpe`: multivariate. `gp`: a Gaussian process, for few trials. `random`."""


def make_sampler(name: str, *, space: Space, nbytes: int | None = None, seed: int = 0) -> BaseSampler:
    """A sampler by name, fitted to a space and a budget.

    Args:
        name: one of `SAMPLERS`.
        space: what is searched.
        nbytes: serving bytes that every candidate keeps; None for no limit.
        seed: of all that is drawn.

    Raises:
        ConfigError: there is no such sampler.

    >>> specs = [TableSpec(name=n, num_embeddings=200, embedding_dim=16, feature_names=[n]) for n in ("a", "b")]
    >>> space = DimensionSpace(specs)
    >>> study = optuna.create_study(sampler=make_sampler("random", space=space, nbytes=10_000), direction="maximize")
    >>> study.optimize(lambda trial: float(sum(space.suggest(trial).values())), n_trials=5)
    >>> all(space.nbytes_of(space.genes(trial.params)) <= 10_000 for trial in study.trials)
    True
    """
    if name == "ea":
        return EvolutionSampler(space, nbytes=nbytes, seed=seed)
    if name == "profile":
        return ProfileSampler(space, nbytes=nbytes, seed=seed)
    if name not in _OF_OPTUNA:
        raise ConfigError(f"there is no sampler '{name}'; {nearest_or_all(name, SAMPLERS, label='there are')}")
    attempts = _ATTEMPTS.get(name, ATTEMPTS)
    return FittedSampler(_OF_OPTUNA[name], space, nbytes=nbytes, seed=seed, attempts=attempts)
