"""Search of table shapes with Optuna: spaces, samplers, studies.

    from embank.search import DimensionSpace, EvolutionSampler, profile_knapsack, search

    space = DimensionSpace(specs, widths=4)                    # see embank.search.spaces
    study = search(objective, space=space, sampler="ea", budget=0.2, num_trials=600)
    study.best_trial.user_attrs["candidate"]                   # {"width.user": 8, ...}
    space.specs(study.best_trial.user_attrs["candidate"])      # tables for a TableCollection

`objective(candidate, trial)` returns the score of a candidate, the higher the better. Names are imported when they are
first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embank.search.knapsack import KnapsackFront, profile_knapsack
    from embank.search.profile import Profile, profile_plan, read_profile
    from embank.search.samplers import SAMPLERS, EvolutionSampler, FittedSampler, make_sampler
    from embank.search.spaces import (
        Candidate,
        DimensionSpace,
        MethodSpace,
        Parameter,
        Shape,
        Space,
        TableSpace,
        UnifiedSpace,
    )
    from embank.search.study import enqueue, search

__all__ = [
    "SAMPLERS",
    "Candidate",
    "DimensionSpace",
    "EvolutionSampler",
    "FittedSampler",
    "KnapsackFront",
    "MethodSpace",
    "Parameter",
    "Profile",
    "Shape",
    "Space",
    "TableSpace",
    "UnifiedSpace",
    "enqueue",
    "make_sampler",
    "profile_knapsack",
    "profile_plan",
    "read_profile",
    "search",
]

_HOME = {
    "SAMPLERS": "samplers",
    "Candidate": "spaces",
    "DimensionSpace": "spaces",
    "EvolutionSampler": "samplers",
    "FittedSampler": "samplers",
    "MethodSpace": "spaces",
    "Parameter": "spaces",
    "Shape": "spaces",
    "Space": "spaces",
    "TableSpace": "spaces",
    "UnifiedSpace": "spaces",
    "enqueue": "study",
    "KnapsackFront": "knapsack",
    "Profile": "profile",
    "make_sampler": "samplers",
    "profile_knapsack": "knapsack",
    "profile_plan": "profile",
    "read_profile": "profile",
    "search": "study",
}
"""The module of each name."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'embank.search' has no attribute '{name}'")
    found = getattr(import_module(f"embank.search.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
