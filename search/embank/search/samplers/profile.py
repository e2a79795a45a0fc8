"""The profile: one table at a time, then what a knapsack makes of it, then an evolution from there."""

import optuna

from embank.search.samplers.evolution import EvolutionSampler


class ProfileSampler(EvolutionSampler):
    """Work in progress: an evolution."""

    def enqueue(self, study: optuna.Study) -> None:
        """Puts the profile's trials into a study."""
