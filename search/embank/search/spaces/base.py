"""A space of candidates: what can be chosen, the bytes of each choice, and how a choice is made to fit a budget."""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from random import Random
from typing import Any

import optuna
from optuna.distributions import BaseDistribution

from embank.compression.budget.floors import share_text
from embank.search.spaces.parameter import Candidate, Gene, Genes, Group, Parameter, Value
from embank.tables import BudgetError, ConfigError, TableSpec
from embank.tables.wording import nearest_or_all


class Space(ABC):
    """What a search chooses from.

    A candidate has three forms, which `encode`, `decode`, `params` and `candidate` turn into each other: values by name
    (`Candidate`, what an objective gets), indices by group (`Genes`, what samplers breed), and what Optuna's trials
    hold.

    Args:
        groups: parameters by table, and those that all tables share in a group with an empty name.
        plain_nbytes: bytes of the plain fp32 tables, what budgets refer to.
    """

    def __init__(self, groups: Iterable[Group], *, plain_nbytes: int) -> None:
        self.groups = tuple(groups)
        self.plain_nbytes = plain_nbytes
        self.parameters: dict[str, Parameter] = {p.name: p for group in self.groups for p in group.parameters}
        if not self.parameters:
            raise ConfigError("a space needs at least one parameter to choose; none of its tables has any")
        if len(self.parameters) < sum(len(group.parameters) for group in self.groups):
            raise ConfigError("two parameters of a space have the same name; names are kind.table")

    # -- bytes ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    def nbytes_of(self, genes: Genes) -> int:
        """Serving bytes of all tables of a candidate, packed."""

    @abstractmethod
    def specs(self, candidate: Mapping[str, Value]) -> list[TableSpec]:
        """The tables of a candidate, for a `TableCollection`."""

    def nbytes(self, candidate: Mapping[str, Value]) -> int:
        """Serving bytes of a candidate, known without building it."""
        return self.nbytes_of(self.encode(candidate))

    @abstractmethod
    def floor(self) -> Genes:
        """A candidate of the fewest bytes."""

    @abstractmethod
    def ceiling(self) -> Genes:
        """A candidate of the most bytes."""

    def allowed_nbytes(self, budget: float) -> int:
        """Bytes that a budget allows.

        Args:
            budget: serving bytes / bytes of the plain fp32 tables, in (0, 1].

        Raises:
            ConfigError: not in (0, 1].
            BudgetError: below the floor, which it states, or less than a byte.
        """
        if not 0 < budget <= 1:
            raise ConfigError(f"the budget is {budget}; it is serving bytes / plain bytes and lies in (0, 1]")
        allowed, floor = int(budget * self.plain_nbytes), self.nbytes_of(self.floor())
        if allowed < floor:
            raise BudgetError(
                f"the budget is {budget}, {allowed:,} bytes, but the smallest candidate of this space has {floor:,} "
                f"bytes, budget {share_text(floor, self.plain_nbytes)}. Raise the budget, or give "
                "the space smaller values"
            )
        if not allowed:  # a space whose candidates have as many bytes as the budget has no floor of its own
            raise BudgetError(
                f"the budget is {budget}, less than one of the plain tables' {self.plain_nbytes:,} bytes. Raise the "
                f"budget to {share_text(1, self.plain_nbytes)} at least"
            )
        return allowed

    # -- forms of a candidate ------------------------------------------------------------------------------------------

    def encode(self, candidate: Mapping[str, Value]) -> Genes:
        """Genes of a candidate; parameters that do not count may be missing.

        Raises:
            ConfigError: a parameter that counts is missing, or unknown, or has another value.
        """
        for name in candidate:
            if name not in self.parameters:
                raise ConfigError(
                    f"the space has no parameter '{name}'; {nearest_or_all(name, self.parameters, label='it has')}"
                )
        genes = tuple(
            group.canonical(tuple(p.index(candidate[p.name]) if p.name in candidate else 0 for p in group.parameters))
            for group in self.groups
        )
        for name in self.decode(genes):
            if name not in candidate:
                raise ConfigError(f"the candidate has no '{name}'; give one of {self.parameters[name].values}")
        return genes

    def decode(self, genes: Genes) -> Candidate:
        """The values of the parameters that count."""
        found: Candidate = {}
        for group, gene in zip(self.groups, genes, strict=True):
            found |= group.values(gene)
        return found

    def params(self, genes: Genes) -> dict[str, Value]:
        """What an Optuna trial holds for it; parameters that do not count included."""
        return {
            parameter.name: parameter.to_optuna(index)
            for group, gene in zip(self.groups, genes, strict=True)
            for parameter, index in zip(group.parameters, gene, strict=True)
        }

    def genes(self, params: Mapping[str, Value]) -> Genes:
        """Genes of what an Optuna trial holds for every parameter."""
        return tuple(
            group.canonical(tuple(p.from_optuna(params[p.name]) for p in group.parameters)) for group in self.groups
        )

    def has_all(self, params: Mapping[str, Value]) -> bool:
        """Whether an Optuna trial holds something for every parameter."""
        return all(name in params for name in self.parameters)

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """What Optuna samples, by parameter."""
        return {name: parameter.distribution for name, parameter in self.parameters.items()}

    def suggest(self, trial: optuna.Trial) -> Candidate:
        """The candidate that a trial's sampler proposes, for an objective of one's own with `study.optimize`."""
        return self.decode(self.genes({name: parameter.suggest(trial) for name, parameter in self.parameters.items()}))

    # -- moves ---------------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Number of candidates, those above a budget included."""
        return math.prod(len(group.genes) for group in self.groups)

    def draw(self, rng: Random) -> Genes:
        """A random candidate."""
        return tuple(group.draw(rng) for group in self.groups)

    def neighbours(self, genes: Genes) -> Iterator[Genes]:
        """Candidates one choice away: one step in one parameter, or another method or codec of one table."""
        for place, group in enumerate(self.groups):
            for gene in group.near(genes[place]):
                yield with_gene(genes, place, gene)

    def change(self, genes: Genes, place: int, gene: Gene) -> int:
        """Bytes that another gene in one group adds."""
        return self.nbytes_of(with_gene(genes, place, gene)) - self.nbytes_of(genes)

    def repair(self, genes: Genes, *, nbytes: int, rng: Random) -> Genes:
        """A candidate within some bytes: the same one if it is; else random tables are made smaller, step by step, and
        then, in random order, larger again by what is left over.

        Args:
            genes: any candidate.
            nbytes: bytes that it may have, at least the floor's.
            rng: of the choices.
        """
        excess = self.nbytes_of(genes) - nbytes
        if excess <= 0:
            return genes
        floor = self.floor()
        places = list(range(len(self.groups)))
        while excess > 0 and places:
            # by the bytes that can be saved: the small tables, whose rows count the most, are left alone
            weights = [max(1, -self.change(genes, place, floor[place])) for place in places]
            (place,) = rng.choices(places, weights)
            smaller = [gene for gene in self._below(genes, place) if self.change(genes, place, gene) < 0]
            if smaller:
                gene = rng.choice(smaller)
                excess += self.change(genes, place, gene)
                genes = with_gene(genes, place, gene)
            else:
                places.remove(place)
        if excess > 0:  # local floors, where a method's options run out
            return floor
        for place in rng.sample(range(len(self.groups)), len(self.groups)):
            gene = self._grown(genes, place, spare=-excess)
            excess += self.change(genes, place, gene)
            genes = with_gene(genes, place, gene)
        return genes

    def _below(self, genes: Genes, place: int) -> list[Gene]:
        """Genes of a group that may be smaller: one choice away, or half of the way down in one ordered parameter."""
        group, gene = self.groups[place], genes[place]
        halves = [
            group.canonical((*gene[:k], gene[k] // 2, *gene[k + 1 :]))
            for k, parameter in enumerate(group.parameters)
            if parameter.is_ordered and gene[k] > 2
        ]
        return group.near(gene) + halves

    def _grown(self, genes: Genes, place: int, *, spare: int) -> Gene:
        """One table enlarged, in its ordered parameters alone, as far as bytes are left."""
        group, gene = self.groups[place], genes[place]
        for k, parameter in enumerate(group.parameters):
            if parameter.is_ordered:
                best = gene
                for index in range(gene[k] + 1, len(parameter.values)):
                    way = group.canonical((*gene[:k], index, *gene[k + 1 :]))
                    if self.change(genes, place, way) > spare:
                        break
                    best = way
                gene = best
        return gene

    # -- identity ------------------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """What a study is compared by when it is resumed."""
        return {
            "kind": type(self).__name__,
            "plain_nbytes": self.plain_nbytes,
            "floor_nbytes": self.nbytes_of(self.floor()),
            "ceiling_nbytes": self.nbytes_of(self.ceiling()),
            "parameters": {name: list(parameter.values) for name, parameter in self.parameters.items()},
        }

    def checksum(self) -> str:
        """Of the facts, as a study stores it."""
        return hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode()).hexdigest()[:16]


def with_gene(genes: Genes, place: int, gene: Gene) -> Genes:
    """A candidate with another gene in one group."""
    return (*genes[:place], gene, *genes[place + 1 :])
