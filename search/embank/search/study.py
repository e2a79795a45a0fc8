"""`search`: a study over a space, in memory or in a storage that it can be resumed from and shared over."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import optuna
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from embank.search.known import KnownCandidates, enqueue_new
from embank.search.samplers.evolution import EvolutionSampler
from embank.search.samplers.named import make_sampler
from embank.search.samplers.profile import ProfileSampler
from embank.search.spaces import Candidate, Genes, Space, Value
from embank.tables import CheckpointError, ConfigError

Objective = Callable[[Candidate, optuna.Trial], float]
"""The score of a candidate, the higher the better. The trial is for `report`, `should_prune` and attributes."""

Callback = Callable[[optuna.Study, FrozenTrial], None]

SAME_AS = "same_as"
"""User attribute of a trial that was not scored: the number of the one that it is the same as."""

IDENTITY = "embank:identity"
"""The study attribute that says what was searched, and how."""

_MOST_COUNTED = 100_000

_DONE = (TrialState.COMPLETE, TrialState.PRUNED)


def search(
    objective: Objective,
    *,
    space: Space,
    sampler: str | BaseSampler = "ea",
    num_trials: int = 600,
    budget: float | None = None,
    front: bool = False,
    seed: int = 0,
    storage: BaseStorage | str | None = None,
    study_name: str | None = None,
    resume: bool = False,
    identity: Mapping[str, Any] | None = None,
    pruner: BasePruner | None = None,
    candidates: Sequence[Mapping[str, Value]] = (),
    callbacks: Sequence[Callback] = (),
    catch: tuple[type[Exception], ...] = (),
) -> optuna.Study:
    """Scores candidates of a space until `num_trials` are scored or pruned, and returns the study.

    Each trial has the user attributes `candidate` (values by name) and `nbytes` (serving bytes). Under a budget it has
    the constraint `nbytes` (`nbytes / allowed - 1`, at most 0 where it is kept), so `study.best_trial` keeps it.
    A candidate that was scored before is not scored again: its trial gets the same values, and `same_as`, the number of
    the first.

    Args:
        objective: (candidate, trial) -> score, the higher the better. It may raise `optuna.TrialPruned`.
        space: what is searched.
        sampler: a name (see `SAMPLERS`) or a sampler of Optuna's kind.
        num_trials: of the study in all: one that is resumed makes those that are missing. Failed trials don't count.
        budget: serving bytes / plain bytes, in (0, 1].
        front: serving bytes are a second objective, to be minimised: `study.best_trials` is the front. Pruning is then
            impossible (Optuna has none for several objectives).
        seed: of the sampler.
        storage: of the study, an Optuna storage or its URL; None keeps it in memory.
        study_name: its name there.
        resume: goes on with a study of that name, if there is one; several workers that share a study resume it too.
        identity: what else must be alike in a study that is resumed, such as a supernet's checksum; plain values.
        pruner: stops trials that report little; none by default.
        candidates: scored first, in a new study.
        callbacks: called after each trial with the study and the trial, as `study.optimize` does.
        catch: errors of the objective that fail a trial and not the search.

    Raises:
        ConfigError: a study of that name exists and `resume` is False; an unknown sampler; a candidate outside the
            space; a pruner with `front`; fewer trials than a profile takes.
        BudgetError: the budget is below the space's floor; states it.
        CheckpointError: the study that is to be resumed had another space, sampler, seed, budget or identity; names it.

    >>> from embank.search import DimensionSpace, search
    >>> from embank.tables import TableSpec
    >>> sizes = {"a": 90, "b": 50}
    >>> tables = [TableSpec(name=n, num_embeddings=k, embedding_dim=16, feature_names=[n]) for n, k in sizes.items()]
    >>> space = DimensionSpace(tables)
    >>> study = search(lambda c, trial: c["width.a"] + 2 * c["width.b"], space=space, budget=0.5, num_trials=20)
    >>> study.best_trial.user_attrs["candidate"], study.best_trial.user_attrs["nbytes"]
    ({'width.a': 4, 'width.b': 12}, 3840)
    """
    allowed = None if budget is None else space.allowed_nbytes(budget)
    if front and pruner is not None and not isinstance(pruner, NopPruner):
        raise ConfigError("a search for a front can't prune: Optuna has no pruning for several objectives")
    named = _name_of(sampler)
    if isinstance(sampler, str):
        sampler = make_sampler(sampler, space=space, nbytes=allowed, seed=seed)
    if isinstance(sampler, ProfileSampler) and 0 < num_trials <= len(sampler.plan):
        raise ConfigError(
            f"a profile of this space takes {len(sampler.plan):,} trials and at least 1 more for what it chooses; "
            f"{num_trials:,} trials are too few. Make more, give the space fewer values, or use sampler 'ea'"
        )
    study = optuna.create_study(
        storage=storage,
        study_name=study_name,
        directions=["maximize", "minimize"] if front else ["maximize"],
        sampler=sampler,
        pruner=pruner or NopPruner(),
        load_if_exists=True,
    )
    facts = {
        "space": space.checksum(),
        "sampler": named,
        "seed": seed,
        "budget": budget,
        "front": front,
        **(identity or {}),
    }
    if _is_new(study, facts, resume=resume):
        enqueue(study, space, candidates)
        if isinstance(sampler, ProfileSampler):
            sampler.enqueue(study)
    run = _Run(objective, space, allowed=allowed, front=front)
    while _num_done(study) < num_trials:
        study.optimize(run, n_trials=1, callbacks=list(callbacks), catch=catch)
        if run.is_over:
            break
    return study


def enqueue(study: optuna.Study, space: Space, candidates: Iterable[Mapping[str, Value]]) -> None:
    """Makes candidates the next trials of a study, whoever runs them; those that it has already are left out.

    Raises:
        ConfigError: a candidate outside the space.
    """
    enqueue_new(study, space, map(space.encode, candidates))


def _name_of(sampler: str | BaseSampler) -> str:
    """What a study is compared by: Optuna's samplers do not tell their settings."""
    if isinstance(sampler, EvolutionSampler):
        return repr(sampler)
    return sampler if isinstance(sampler, str) else type(sampler).__name__


def _is_new(study: optuna.Study, facts: Mapping[str, Any], *, resume: bool) -> bool:
    """Whether nothing was searched in a study yet, in which case its facts are noted.

    Raises:
        ConfigError: something was, and it is not to be resumed.
        CheckpointError: it was something else.
    """
    noted = study.user_attrs.get(IDENTITY)
    facts = json.loads(json.dumps(facts))
    if noted is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(IDENTITY, facts)
        return True
    if not resume:
        num_trials = len(study.get_trials(deepcopy=False))
        raise ConfigError(
            f"study '{study.study_name}' exists in that storage, with {num_trials:,} trials; "
            "resume it (resume=True), or give another study_name"
        )
    if noted is None:
        raise CheckpointError(
            f"study '{study.study_name}' was not made by embank's search, so it can't be resumed; give another "
            "study_name"
        )
    for name in dict.fromkeys([*noted, *facts]):
        if noted.get(name) != facts.get(name):
            raise CheckpointError(
                f"study '{study.study_name}' was made with {name} {noted.get(name)!r}; this search has "
                f"{name} {facts.get(name)!r}. Search with the same {name}, or give another study_name"
            )
    return False


def _num_done(study: optuna.Study) -> int:
    return sum(trial.state in _DONE for trial in study.get_trials(deepcopy=False))


class _Run:
    """One trial of a search.

    Attributes:
        is_over: every candidate of the space within the budget is known.
    """

    def __init__(self, objective: Objective, space: Space, *, allowed: int | None, front: bool) -> None:
        self.objective, self.space, self.allowed, self.front = objective, space, allowed, front
        self.is_over = False
        self._known = KnownCandidates()

    def __call__(self, trial: optuna.Trial) -> float | tuple[float, float]:
        candidate = self.space.suggest(trial)
        nbytes = self.space.nbytes(candidate)
        trial.set_user_attr("candidate", candidate)
        trial.set_user_attr("nbytes", nbytes)
        if self.allowed is not None:
            trial.set_constraint("nbytes", nbytes / self.allowed - 1)
        first = self._known.scored(trial.study, self.space).get(self.space.encode(candidate))
        if first is None:
            score = self.objective(candidate, trial)
        else:
            trial.set_user_attr(SAME_AS, first.number)
            self.is_over = self._is_exhausted(trial.study)
            score = first.values[0]
        return (score, float(nbytes)) if self.front else score

    def _is_exhausted(self, study: optuna.Study) -> bool:
        if self.space.size > _MOST_COUNTED:
            return False
        known = self._known.of(study, None, self.space)
        every = product(*(group.genes for group in self.space.groups))
        return all(genes in known or not self._fits(genes) for genes in every)

    def _fits(self, genes: Genes) -> bool:
        return self.allowed is None or self.space.nbytes_of(genes) <= self.allowed
