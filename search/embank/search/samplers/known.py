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
        known: set[Genes] = set()
        for other in study.get_trials(deepcopy=False):
            if other.state == TrialState.FAIL or (trial is not None and other.number == trial.number):
                continue
            key = (study.study_name, other.number)
            if key not in self._by_trial:
                params = other.params or other.system_attrs.get("fixed_params", {})  # those of an enqueued trial
                if not space.has_all(params):
                    continue
                self._by_trial[key] = space.genes(params)
            known.add(self._by_trial[key])
        return known


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
