"""Optuna's own samplers, fitted to a space: what they propose is repaired to the budget, and not proposed twice."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseGASampler, BaseSampler
from optuna.trial import FrozenTrial, TrialState

from embank.compression.parts.evolution import ATTEMPTS
from embank.search.known import KnownCandidates, another
from embank.search.spaces import Genes, Space
from embank.tables.ids.hashing import seed_of


class FittedSampler(BaseSampler):
    """Another sampler, whose candidates keep a budget and are new.

    Args:
        make: the sampler that proposes, from a seed. It is made anew for each trial, with a seed that depends on the
            trial's number: so a study that is resumed goes on as if it had never stopped, and workers may share a seed.
        space: what is searched.
        nbytes: serving bytes that a candidate may have; None for no limit.
        seed: of all that is drawn.
        attempts: times that it proposes where what it proposed is known, before a candidate from nearby is taken; few
            for a sampler that takes long.
    """

    def __init__(
        self,
        make: Callable[[int], BaseSampler],
        space: Space,
        *,
        nbytes: int | None = None,
        seed: int = 0,
        attempts: int = ATTEMPTS,
    ) -> None:
        self.make, self.space, self.nbytes, self.seed, self.attempts = make, space, nbytes, seed, attempts
        self._known = KnownCandidates()

    def reseed_rng(self) -> None:
        """Nothing: what is drawn depends on the trial's number."""

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The space's parameters, whatever the base would model."""
        return dict(self.space.distributions)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        base = self._base(trial)
        base.before_trial(study, trial)
        if isinstance(base, BaseGASampler):  # so that enqueued trials are in a generation too
            base.get_trial_generation(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._base(trial).after_trial(study, trial, state, values)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """What the base proposes, repaired; a candidate that is known is proposed anew, at last taken from nearby."""
        base, rng = self._base(trial), random.Random(f"{self.seed}:{trial.number}")
        known = self._known.of(study, trial, self.space)
        for _ in range(self.attempts):
            genes = self._proposed(base, study, trial, rng)
            if genes not in known:
                return self.space.params(genes)
        return self.space.params(another(self.space, genes, known, nbytes=self.nbytes, rng=rng))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        base = self._base(trial, param_name)
        return base.sample_independent(study, trial, param_name, param_distribution)

    def _base(self, trial: FrozenTrial, *parts: str) -> BaseSampler:
        return self.make(seed_of(self.seed, "trial", ":".join(parts), trial.number) % 2**32)

    def _proposed(self, base: BaseSampler, study: optuna.Study, trial: FrozenTrial, rng: random.Random) -> Genes:
        modelled = base.infer_relative_search_space(study, trial)
        params = base.sample_relative(study, trial, modelled) if modelled else {}
        for name, held in self.space.distributions.items():
            if name not in params:
                params[name] = base.sample_independent(study, trial, name, held)
        genes = self.space.genes(params)
        return genes if self.nbytes is None else self.space.repair(genes, nbytes=self.nbytes, rng=rng)
