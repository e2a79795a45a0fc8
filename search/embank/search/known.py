"""Which candidates a study has proposed already, and how to find another."""

import random

import optuna
from optuna.trial import FrozenTrial, TrialState

from embank.search.spaces import Genes, Space

_WALK = 200


class KnownCandidates:
    """The candidates of a study's trials, each decoded once."""

    def __init__(self) -> None:
        self._by_trial: dict[tuple[str, int], Genes] = {}

    def of(self, study: optuna.Study, trial: FrozenTrial | None, space: Space) -> set[Genes]:
        """Genes of all trials that hold a value for every parameter, failed ones and one trial left out.

        Args:
            study: whose trials.
            trial: the one that is left out, if any.
            space: of the candidates.
        """
        known = {
            self.genes_of(study, other, space)
            for other in study.get_trials(deepcopy=False)
            if other.state != TrialState.FAIL and (trial is None or other.number != trial.number)
        }
        return {genes for genes in known if genes is not None}

    def genes_of(self, study: optuna.Study, trial: FrozenTrial, space: Space) -> Genes | None:
        """Genes of one trial, those of an enqueued one included; None if it lacks a parameter."""
        key = (study.study_name, trial.number)
        if key not in self._by_trial:
            params = trial.params or trial.system_attrs.get("fixed_params", {})
            if not space.has_all(params):
                return None
            self._by_trial[key] = space.genes(params)
        return self._by_trial[key]


def another(space: Space, genes: Genes, known: set[Genes], *, nbytes: int | None, rng: random.Random) -> Genes:
    """A candidate near one that is known: by a random walk through neighbours within the bytes, until one is new.

    The last resort of a sampler whose own proposals are all known. Where the walk meets none, it is the start itself.
    """
    here = genes
    for _ in range(_WALK):
        ways = [way for way in space.neighbours(here) if nbytes is None or space.nbytes_of(way) <= nbytes]
        new = [way for way in ways if way not in known]
        if new:
            return rng.choice(new)
        if not ways:
            break
        here = rng.choice(ways)
    return genes
