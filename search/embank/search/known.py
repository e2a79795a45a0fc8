"""Which candidates a study has proposed already, and how to find another."""

import random
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from embank.search.spaces import Genes, Space

_WALK = 200
_COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(kw_only=True)
class _Read:
    """What was read of a study's trials.

    Args:
        decoded: genes by number of trial.
        num: trials that were looked at.
        unfinished: numbers of those that may still change.
        scored: the first complete trial of each candidate.
        settled: genes of all that were scored or pruned.
        pending: genes of the unfinished ones, by number.
    """

    decoded: dict[int, Genes] = field(default_factory=dict)
    num: int = 0
    unfinished: list[int] = field(default_factory=list)
    scored: dict[Genes, FrozenTrial] = field(default_factory=dict)
    settled: set[Genes] = field(default_factory=set)
    pending: dict[int, Genes] = field(default_factory=dict)


class KnownCandidates:
    """The candidates of a study's trials, each finished trial read once: what a new trial costs does not grow with
    those before it."""

    def __init__(self) -> None:
        self._by_study: dict[tuple[BaseStorage, str], _Read] = {}

    def of(self, study: optuna.Study, trial: FrozenTrial | None, space: Space) -> Container[Genes]:
        """Candidates of all trials that hold a value for every parameter, failed ones and one trial left out.

        Args:
            study: whose trials.
            trial: the one that is left out, if any.
            space: of the candidates.
        """
        read = self._read(study, space)
        number = None if trial is None else trial.number
        return Known(read.settled, {genes for other, genes in read.pending.items() if other != number})

    def scored(self, study: optuna.Study, space: Space) -> dict[Genes, FrozenTrial]:
        """The first complete trial of each candidate."""
        return self._read(study, space).scored

    def genes_of(self, study: optuna.Study, trial: FrozenTrial, space: Space) -> Genes | None:
        """Genes of one trial, those of an enqueued one included; None if it lacks a parameter."""
        decoded = self._of_study(study).decoded
        if trial.number not in decoded:
            params = trial.params or trial.system_attrs.get("fixed_params", {})
            if not space.has_all(params):
                return None
            decoded[trial.number] = space.genes(params)
        return decoded[trial.number]

    def _of_study(self, study: optuna.Study) -> _Read:
        return self._by_study.setdefault((study._storage, study.study_name), _Read())

    def _read(self, study: optuna.Study, space: Space) -> _Read:
        """The study as it stands: new trials, and those that were not finished when it was read last."""
        read = self._of_study(study)
        # of the storage: under Hyperband samplers are shown the trials of one bracket alone
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
        looked_at = [*(trials[number] for number in read.unfinished), *trials[read.num :]]
        read.num, read.unfinished, read.pending = len(trials), [], {}
        for trial in looked_at:
            genes = self.genes_of(study, trial, space)
            if not trial.state.is_finished():
                read.unfinished.append(trial.number)
                if genes is not None:
                    read.pending[trial.number] = genes
            elif genes is not None and trial.state in _COUNTED:
                read.settled.add(genes)
                first = read.scored.get(genes)
                if trial.state == TrialState.COMPLETE and (first is None or trial.number < first.number):
                    read.scored[genes] = trial
        return read


def enqueue_new(
    study: optuna.Study, space: Space, every: Iterable[Genes], *, attributes: Mapping[str, object] | None = None
) -> None:
    """Makes candidates the next trials of a study, those left out that it has.

    Optuna's own `skip_if_exists` compares every value of every trial, which takes minutes for some hundreds.

    Args:
        study: whose trials.
        space: of the candidates.
        every: the candidates.
        attributes: user attributes of their trials.
    """
    known, made = KnownCandidates().of(study, None, space), set[Genes]()
    for genes in every:
        if genes not in known and genes not in made:
            made.add(genes)
            study.enqueue_trial(space.params(genes), user_attrs=dict(attributes or {}))


class Known(Container[Genes]):
    """Candidates that are known.

    Args:
        settled: of finished trials; grows with the study.
        pending: of trials that wait or run.
    """

    def __init__(self, settled: set[Genes], pending: set[Genes]) -> None:
        self._settled, self._pending = settled, pending

    def __contains__(self, genes: object) -> bool:
        return genes in self._settled or genes in self._pending


def another(space: Space, genes: Genes, known: Container[Genes], *, nbytes: int | None, rng: random.Random) -> Genes:
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
