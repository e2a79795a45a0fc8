"""The profile as a sampler: one table at a time, then what a knapsack makes of it, then an evolution from there."""

import random
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from embank.search.known import enqueue_new
from embank.search.profile import Profile, planned_scores, profile_plan
from embank.search.samplers.evolution import EvolutionSampler
from embank.search.spaces import Genes, Space, TableSpace

_FRONT_POINTS = 20


class ProfileSampler(EvolutionSampler):
    """Measures each table's choices with all others whole, and combines them by an exact knapsack.

    The plan's trials are enqueued (`enqueue`), so that they show in a dashboard and workers share them. They are above
    any budget, all but one table being whole. After them comes the knapsack's choice for the budget (for a study of
    several objectives 20 choices from the smallest to the largest), and after that the evolution, whose best parent
    that choice then is. `read_profile` gives the choice for every other budget from the same trials.

    Args:
        space: what is searched; its tables share no bytes.
        nbytes: serving bytes that a candidate after the plan may have; None for no limit.
        seed: of the evolution.
        settings: of the evolution.

    Raises:
        ConfigError: the tables of the space share bytes.
    """

    def __init__(self, space: Space, *, nbytes: int | None = None, seed: int | None = None, **settings: Any) -> None:
        super().__init__(space, nbytes=nbytes, seed=seed, **settings)
        self.plan = profile_plan(space)
        self._planned = set(self.plan)
        self._chosen: tuple[int, list[Genes]] = (0, [])

    def enqueue(self, study: optuna.Study) -> None:
        """Makes the plan the next trials of a study, without those candidates that it has."""
        assert self.space is not None
        enqueue_new(study, self.space, self.plan, attributes={"profile": True})

    def _of_space(
        self, space: Space, study: optuna.Study, trial: FrozenTrial, parents: Sequence[FrozenTrial], rng: random.Random
    ) -> dict[str, Any]:
        known = self._known.of(study, trial, space)
        for genes in self._choices(study):
            if genes not in known:
                return space.params(genes)
        return super()._of_space(space, study, trial, parents, rng)

    def _choices(self, study: optuna.Study) -> list[Genes]:
        """What the knapsack makes of the trials so far."""
        assert isinstance(self.space, TableSpace)
        scores = planned_scores(study, self.space, self._planned, self._known)
        if len(scores) > self._chosen[0] and self.space.ceiling() in scores:
            profile = Profile(self.space, scores)
            is_front = len(study.directions) > 1
            limit = self.space.nbytes_of(self.space.ceiling()) if self.nbytes is None else self.nbytes
            ladder = profile.ladder(_FRONT_POINTS) if is_front else [profile.at(limit)]
            within = [genes for genes in ladder if self.space.nbytes_of(genes) <= limit]
            self._chosen = (len(scores), within)
        return self._chosen[1]
