"""From scores to models: the best candidates trained anew, side by side, and the best of them by validation."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

import optuna
from optuna.trial import TrialState

from embank.pipelines.config.run import Config
from embank.pipelines.reporting import Reporter
from embank.pipelines.runs.folder import is_training
from embank.pipelines.search.fields import FieldSpace
from embank.pipelines.search.folder import SearchFolder
from embank.pipelines.search.plan import SearchPlan
from embank.pipelines.search.trials import StoppedSearchError
from embank.pipelines.sweep.children import Child, Ended, run_children
from embank.pipelines.sweep.comparison import validation
from embank.pipelines.train.interrupt import StopRequest
from embank.search.spaces import Candidate, Shape, Space
from embank.search.study import SAME_AS

_ALIKE = 0.9
"""Candidates that keep so much of the same are one candidate with respect to what training them can tell."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A candidate of the results.

    Args:
        budget: that it was found for.
        name: its place among them, or that of a simple one, which is always compared (`FieldSpace.simple_candidates`).
        trial: number of its trial; None if the search has not met it.
        candidate: its values.
        nbytes: its serving bytes.
        score: on the supernet, higher is better; None if it has none.
        results: what its trainings have come to, by seed.
        failures: what went wrong, by seed.
    """

    budget: float | None
    name: str
    trial: int | None
    candidate: Candidate
    nbytes: int
    score: float | None
    results: Mapping[int, Mapping[str, Any]]
    failures: Mapping[int, str]

    @property
    def validation(self) -> float | None:
        """The mean over seeds of what validation says; None before it was trained."""
        return mean(map(validation, self.results.values())) if self.results else None

    def average(self, key: str) -> tuple[float, float | None] | None:
        """Mean and sample deviation over seeds of a figure; None where no run has it."""
        values = [run[key] for run in self.results.values() if run[key] is not None]
        return (mean(values), stdev(values) if len(values) > 1 else None) if values else None


def best_trials(study: optuna.Study, *, nbytes: int | None) -> list[optuna.trial.FrozenTrial]:
    """The scored trials within some bytes, each candidate once, the best one first."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    fitting = [t for t in complete if nbytes is None or t.user_attrs["nbytes"] <= nbytes]
    ranked = sorted(fitting, key=lambda t: (-t.values[0], t.user_attrs["nbytes"], t.number))
    distinct: dict[tuple[Any, ...], optuna.trial.FrozenTrial] = {}
    for trial in ranked:
        distinct.setdefault(_key(trial.user_attrs["candidate"]), trial)
    return list(distinct.values())


def candidates_of(study: optuna.Study, space: FieldSpace, *, budget: float | None, num: int) -> list[Entry]:
    """What is trained anew for a budget: the best trials that differ, and the simple candidates."""
    nbytes = None if budget is None else space.allowed_nbytes(budget)
    ranked = best_trials(study, nbytes=nbytes)
    found = [
        _entry(f"{place}", trial.user_attrs["candidate"], budget=budget, space=space, trial=trial)
        for place, trial in enumerate(different(ranked, space, num=num), start=1)
    ]
    known = {_key(trial.user_attrs["candidate"]): trial for trial in ranked}
    for name, candidate in space.simple_candidates(nbytes).items():
        found.append(_entry(name, candidate, budget=budget, space=space, trial=known.get(_key(candidate))))
    return found


def different(
    ranked: Sequence[optuna.trial.FrozenTrial], space: FieldSpace, *, num: int
) -> list[optuna.trial.FrozenTrial]:
    """The first of some trials, and after it those that differ from all before them; if they are too few, the first of
    the others.

    The best candidates of a search are often one candidate with a row more here and there. Training them all would
    tell no more than training one: the supernet's errors are the same for all.

    Args:
        ranked: from the best on.
        space: of their candidates.
        num: how many at most.
    """
    shapes = {trial.number: space.shapes(trial.user_attrs["candidate"]) for trial in ranked}
    taken: list[optuna.trial.FrozenTrial] = []
    for trial in ranked:
        if len(taken) < num and all(overlap(shapes[trial.number], shapes[t.number]) <= _ALIKE for t in taken):
            taken.append(trial)
    numbers = {trial.number for trial in taken}
    taken += [trial for trial in ranked if trial.number not in numbers][: num - len(taken)]
    places = {trial.number: place for place, trial in enumerate(ranked)}
    return sorted(taken, key=lambda trial: places[trial.number])


def overlap(first: Mapping[str, Shape], second: Mapping[str, Shape]) -> float:
    """Numbers that two candidates both keep / those that the larger one keeps."""
    both = sum(min(own.rows, second[name].rows) * min(own.width, second[name].width) for name, own in first.items())
    sizes = [sum(shape.rows * shape.width for shape in shapes.values()) for shapes in (first, second)]
    return both / max(sizes)


def _key(candidate: Candidate) -> tuple[Any, ...]:
    return tuple(sorted(candidate.items()))


def _entry(
    name: str, candidate: Candidate, *, budget: float | None, space: FieldSpace, trial: optuna.trial.FrozenTrial | None
) -> Entry:
    scored = trial is not None and trial.state == TrialState.COMPLETE
    return Entry(
        budget=budget,
        name=name,
        trial=None if trial is None else trial.number,
        candidate=candidate,
        nbytes=space.nbytes(candidate),
        score=trial.values[0] if trial is not None and scored else None,
        results={},
        failures={},
    )


class Retraining:
    """Trains candidates in child processes, several at a time.

    Args:
        plan: the search.
        folder: its directory.
        config_of: what trains a candidate, but for the seed.
        seeds: that each is trained with.
        stop: a request to stop.
        reporter: is told a line for each training.
    """

    def __init__(
        self,
        plan: SearchPlan,
        folder: SearchFolder,
        config_of: Callable[[Entry], Config],
        *,
        seeds: Sequence[int],
        stop: StopRequest,
        reporter: Reporter,
    ) -> None:
        self.plan, self.folder, self.config_of, self.seeds = plan, folder, config_of, seeds
        self.stop, self.reporter = stop, reporter

    def run(self, entries: Sequence[Entry]) -> list[Entry]:
        """The entries with the results of their trainings beside those that they have; complete ones are read.

        Raises:
            StoppedSearchError: a signal stopped it; what ran is saved.
        """
        self.configs = {self._name(entry, seed): self.config(entry, seed) for entry in entries for seed in self.seeds}
        self.failures: dict[str, str] = {}
        run_children(self._waiting, self._child, self._ended, self._busy, num_jobs=self.plan.workers, stop=self.stop)
        if self.stop:
            raise StoppedSearchError(
                f"{self.stop.signal}: stopped while candidates were trained; what ran is saved. Go on with the same "
                f"command and --resume (directory '{self.folder.path}')"
            )
        return [self._with_results(entry) for entry in entries]

    def config(self, entry: Entry, seed: int) -> Config:
        """How a candidate is trained: the search's own settings, from initial values of a seed."""
        config = self.config_of(entry)
        return replace(config, train=replace(config.train, seed=seed))

    def _name(self, entry: Entry, seed: int) -> str:
        """Folder of a candidate's run: by what it is, so that a search that goes on finds what was trained before."""
        return f"{entry_name(entry)}/{seed}"

    def _waiting(self) -> list[str]:
        return [n for n in self.configs if n not in self.failures and not self.folder.run(n).result.is_file()]

    def _busy(self, names: Sequence[str]) -> set[str]:
        return {name for name in names if is_training(self.folder.run(name).path)}

    def _child(self, name: str) -> Child:
        run, file = self.folder.run(name), self.folder.write_config(name, self.configs[name])
        arguments = ["train", str(file), "--out", str(run.path), *(["--resume"] if run.is_run else [])]
        return Child(name=name, arguments=arguments, log=self.folder.log(name))

    def _ended(self, end: Ended) -> None:
        run = self.folder.run(end.name)
        if run.result.is_file():
            done = len(self.configs) - len(self._waiting())
            value = validation(run.read_result())
            self.reporter.note(
                f"[{done}/{len(self.configs)}] {end.name}: {value:.4f} on validation, {end.seconds:.0f} s"
            )
        elif not self.stop:
            self.failures[end.name] = end.message or "it ended without a result"
            self.reporter.note(f"{end.name}: failed: {self.failures[end.name]}")

    def _with_results(self, entry: Entry) -> Entry:
        names = {seed: self._name(entry, seed) for seed in self.seeds}
        results = {s: self.folder.run(n).read_result() for s, n in names.items() if self.folder.run(n).result.is_file()}
        failures = {seed: self.failures[name] for seed, name in names.items() if name in self.failures}
        return replace(entry, results={**entry.results, **results}, failures=failures)


def entry_name(entry: Entry) -> str:
    """A name that only this candidate has in its space: its bytes, and a digest of its values."""
    digest = hashlib.sha256(repr(sorted(entry.candidate.items())).encode()).hexdigest()[:8]
    return f"{entry.nbytes}-{digest}"


def best_entry(entries: Sequence[Entry]) -> Entry | None:
    """The one that validation likes best; without trainings, the one with the best score."""
    trained = [(e.validation, e) for e in entries if e.validation is not None]
    if trained:
        return max(trained, key=lambda pair: (pair[0], -pair[1].nbytes))[1]
    scored = [(e.score, e) for e in entries if e.score is not None]
    return max(scored, key=lambda pair: (pair[0], -pair[1].nbytes))[1] if scored else None


def trained_entries(plan: SearchPlan, studies: Mapping[float | None, optuna.Study], space: Space) -> list[Entry]:
    """The best trials of studies whose trials are trainings, with their results; each training once."""
    found = []
    for budget, study in studies.items():
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        complete = [trial for trial in complete if SAME_AS not in trial.user_attrs]
        if plan.front:
            complete = [trial for trial in complete if _is_of(trial, space, budget)]
        ranked = sorted(complete, key=lambda t: (-t.values[0], t.number))[: max(1, plan.num_retrained)]
        seed = plan.parsed.train.seed
        found += [_trained(trial, name=str(place), budget=budget, seed=seed) for place, trial in enumerate(ranked, 1)]
    return found


def _is_of(trial: optuna.trial.FrozenTrial, space: Space, budget: float | None) -> bool:
    """Whether a trial of a front belongs to a budget: that it was made for, or whose bytes it keeps."""
    candidate = trial.user_attrs["candidate"]
    if budget is None or "budget" in candidate:
        return bool(candidate.get("budget") == budget)
    return bool(trial.user_attrs["nbytes"] <= space.allowed_nbytes(budget))


def _trained(trial: optuna.trial.FrozenTrial, *, name: str, budget: float | None, seed: int) -> Entry:
    """A trial whose run may be on another machine."""
    told = trial.user_attrs
    result = {"auc": told.get("auc"), "logloss": told.get("logloss"), "monitor": "auc", "valid_auc": trial.values[0]}
    return Entry(
        budget=budget,
        name=name,
        trial=trial.number,
        candidate=told["candidate"],
        nbytes=told.get("serving_bytes", told["nbytes"]),
        score=None,
        results={seed: result},
        failures={},
    )


def kendall_tau(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Rank correlation of two scores (tau-b, ties counted); None for fewer than two candidates that differ."""
    signs = [(_sign(a[0] - b[0]), _sign(a[1] - b[1])) for i, a in enumerate(pairs) for b in pairs[i + 1 :]]
    num_first, num_second = sum(x != 0 for x, _ in signs), sum(y != 0 for _, y in signs)
    if not num_first or not num_second:
        return None
    return float(sum(x * y for x, y in signs) / (num_first * num_second) ** 0.5)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
