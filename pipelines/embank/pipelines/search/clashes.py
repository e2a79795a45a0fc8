"""Values of a space that can't be together: told before the first trial, as far as looking is cheap."""

import time
from collections.abc import Iterator, Mapping
from itertools import combinations, islice, product

from embank.pipelines.config.problems import ORIGIN
from embank.pipelines.search.configspace import METHOD, ConfigSpace
from embank.pipelines.sweep.feasible import Feasibility
from embank.search.spaces import Candidate, Genes, Value
from embank.tables import BudgetError, ConfigError

MOST_TRIED, MOST_SECONDS = 1_000, 10.0
"""Candidates, and how long they may take. A trial that draws a clash beyond them says so itself."""
MOST_TOLD = 3


class Clashes:
    """Makes candidates' configurations, and the methods of their tables, without training and without a row.

    Args:
        space: of the candidates.
        told: how messages call the space.
        most: candidates that are tried.
    """

    def __init__(self, space: ConfigSpace, *, told: str, most: int = MOST_TRIED) -> None:
        self.space, self.told, self.most = space, told, most
        self.feasibility = Feasibility(space.data)
        self.refusals: dict[tuple[Genes, bool], str | None] = {}

    def found(self, given: Mapping[str, object]) -> list[str]:
        """What clashes, a line each of the first few: all candidates of a small space are looked at; of a large one
        pairs of values, all else being as near to the configuration as can be.

        Args:
            given: keys whose values a user chose. What a search tries by default is left to the trials.
        """
        if not given:
            return []
        end, lines = time.monotonic() + MOST_SECONDS, dict[str, None]()
        candidates = list(islice(self._distinct(given), self.most))
        # of all first the configurations, of some milliseconds each; tables take up to a quarter of a second
        for builds, candidate in product((False, True), candidates):
            if time.monotonic() > end or len(lines) == MOST_TOLD:
                break
            if line := self._line(candidate, given, builds=builds):
                lines[line] = None
        return list(lines)

    def _line(self, candidate: Candidate, given: Mapping[str, object], *, builds: bool) -> str | None:
        """What clashes in a candidate, of which a user chose a value; None where nothing does."""
        said = self.refusal(candidate, builds=builds)
        if said is None:
            return None
        clash = self._clash(candidate, builds=builds)
        if not given.keys() & clash.keys():
            return None
        values = " and ".join(f"'{key}' {value!r}" for key, value in clash.items())
        return f"{self.told}: {values} can't be together: {said.rstrip('.')}. Trials that draw both are pruned"

    def refusal(self, candidate: Candidate, *, builds: bool) -> str | None:
        """Why a candidate can't be trained, whatever the budget; None if it can.

        Args:
            candidate: of the space.
            builds: the methods of its tables as well as its configuration.
        """
        key = self.space.encode(candidate), builds
        if key not in self.refusals:
            self.refusals[key] = self._tried(self.space.unshaped(candidate), builds=builds)
        return self.refusals[key]

    def _tried(self, candidate: Candidate, *, builds: bool) -> str | None:
        try:
            config = self.space.config(candidate)
            if builds:
                self.feasibility.refusal(config)
        except BudgetError:  # which is said of the trial
            return None
        except ConfigError as error:
            return str(error).removeprefix(f"{ORIGIN}: ")
        return None

    def _distinct(self, given: Mapping[str, object]) -> Iterator[Candidate]:
        seen = set[Genes]()
        for candidate in self._candidates(given):
            genes = self.space.encode(candidate)
            if genes not in seen:
                seen.add(genes)
                yield candidate

    def _candidates(self, given: Mapping[str, object]) -> Iterator[Candidate]:
        if self.space.size > self.most:
            return self._pairs(given)
        return map(self.space.decode, product(*(group.genes for group in self.space.groups)))

    def _pairs(self, given: Mapping[str, object]) -> Iterator[Candidate]:
        """Each given value with each other one; of methods after the first those pairs that another one may change."""
        for place, method in enumerate(self.space.choices.get(METHOD, (None,))):
            at = self.space.decode(self.space.at(**{METHOD: method}))
            for keys in combinations(at, 2):
                is_of_method = any(key == METHOD or self.space.parameters[key].when for key in keys)
                if given.keys() & set(keys) and (place == 0 or is_of_method):
                    for values in product(*(self._values(key, at) for key in keys)):
                        yield {**at, **dict(zip(keys, values, strict=True))}

    def _values(self, key: str, at: Candidate) -> tuple[Value, ...]:
        return (at[key],) if key == METHOD else self.space.parameters[key].values

    def _clash(self, candidate: Candidate, *, builds: bool) -> Candidate:
        """The values of a refused candidate any of which is the one too many: with another of its key the rest is
        taken. Where no single one is, all that are a choice."""
        found = {k: value for k, value in candidate.items() if self._is_one_too_many(candidate, k, builds=builds)}
        return found or {k: value for k, value in candidate.items() if len(self.space.parameters[k].values) > 1}

    def _is_one_too_many(self, candidate: Candidate, key: str, *, builds: bool) -> bool:
        others = (value for value in self.space.parameters[key].values if value != candidate[key])
        return any(self.refusal(self._with(candidate, key, value), builds=builds) is None for value in others)

    def _with(self, candidate: Candidate, key: str, value: Value) -> Candidate:
        """A candidate with another value; another method has options of its own."""
        changed = {**candidate, key: value}
        at = self.space.decode(self.space.at(**{METHOD: changed.get(METHOD)}))
        return {name: changed.get(name, at[name]) for name in at}
