"""Samplers: how candidates are proposed. All of them repair to the budget and propose no candidate twice."""

from embank.search.samplers.evolution import EvolutionSampler
from embank.search.samplers.fitted import FittedSampler
from embank.search.samplers.named import SAMPLERS, make_sampler

__all__ = ["SAMPLERS", "EvolutionSampler", "FittedSampler", "make_sampler"]
