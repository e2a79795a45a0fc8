"""What a search chooses: parameters with finitely many values, in groups: one per table, and one for what all share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from embank.tables import ConfigError

Value = int | float | str
Candidate = dict[str, Value]
"""One value for each parameter that counts, by name: `{"width.user": 8, "width.item": 4}`."""

Gene = tuple[int, ...]
"""For each parameter of a group the index of its value."""

Genes = tuple[Gene, ...]
"""A candidate as the samplers see it: one gene per group."""

MAX_GENES = 100_000


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """Something to choose, from a list of values.

    Args:
        name: unique in its space, `kind.table`.
        values: in rising order where they are ordered.
        is_ordered: whether neighbours in the list are alike (widths, rows), or not (methods, codecs).
        when: the name of an earlier parameter of the group and some of its values; with any other, this one does not
            count.
        least: for those values the index below which all values mean the same: that of this index.

    >>> Parameter(name="width.user", values=(4, 8, 12)).distribution  # of one step: the values themselves
    IntDistribution(high=12, log=False, low=4, step=4)
    >>> Parameter(name="width.user", values=(4, 8, 10)).distribution  # else their index
    IntDistribution(high=2, log=False, low=0, step=1)
    """

    name: str
    values: tuple[Value, ...]
    is_ordered: bool = True
    when: tuple[str, tuple[Value, ...]] | None = None
    least: Mapping[Value, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.values:
            raise ConfigError(f"parameter '{self.name}' has no values to choose from; give at least one")
        if len(set(self.values)) < len(self.values):
            raise ConfigError(f"parameter '{self.name}' has a value twice in {list(self.values)}; give each once")

    @cached_property
    def distribution(self) -> BaseDistribution:
        """What Optuna samples: the values themselves where they are whole numbers of one step or have no order, else
        their index."""
        if not self.is_ordered:
            return CategoricalDistribution(self.values)
        step = self._step
        if step is None:
            return IntDistribution(0, len(self.values) - 1)
        return IntDistribution(int(self.values[0]), int(self.values[-1]), step=step)

    def suggest(self, trial: optuna.Trial) -> Value:
        """What a trial's sampler proposes, as Optuna holds it."""
        held = self.distribution
        if isinstance(held, IntDistribution):
            return trial.suggest_int(self.name, held.low, held.high, step=held.step)
        chosen: Value = trial.suggest_categorical(self.name, self.values)  # type: ignore[assignment]
        return chosen

    @cached_property
    def _step(self) -> int | None:
        whole = [value for value in self.values if isinstance(value, int)]
        if len(whole) < len(self.values):
            return None
        steps = {b - a for a, b in zip(whole, whole[1:], strict=False)}
        if len(steps) > 1 or (steps and min(steps) < 1):
            return None
        return steps.pop() if steps else 1

    def to_optuna(self, index: int) -> Value:
        """What an Optuna trial holds for the value of an index."""
        return index if self._by_index else self.values[index]

    def from_optuna(self, held: Value) -> int:
        """The index of what an Optuna trial holds.

        Raises:
            ConfigError: it is none of the values.
        """
        if not self._by_index:
            return self.index(held)
        if held not in range(len(self.values)):
            raise ConfigError(f"parameter '{self.name}' has {len(self.values)} values; there is none of index {held!r}")
        return int(held)

    @property
    def _by_index(self) -> bool:
        return self.is_ordered and self._step is None

    def index(self, value: Value) -> int:
        """The index of a value.

        Raises:
            ConfigError: it is none of the values.
        """
        if value not in self.values:
            raise ConfigError(f"parameter '{self.name}' has no value {value!r}; it is one of {list(self.values)}")
        return self.values.index(value)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that are passed on together: those of one table.

    Args:
        name: the table's; empty for what all tables share.
        parameters: a parameter that others depend on (`when`) stands before them.
    """

    name: str
    parameters: tuple[Parameter, ...]

    def __post_init__(self) -> None:
        len(self.genes)  # too many are refused here

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        """Every gene, parameters that do not count at index 0.

        Raises:
            ConfigError: there are too many.
        """
        found: list[Gene] = [()]
        for place, parameter in enumerate(self.parameters):
            found = [(*gene, index) for gene in found for index in self._indices(place, parameter, gene)]
            if len(found) > MAX_GENES:
                raise ConfigError(
                    f"table '{self.name}' has more than {MAX_GENES:,} forms; give its parameters fewer values"
                )
        return tuple(found)

    def _indices(self, place: int, parameter: Parameter, gene: Sequence[int]) -> Sequence[int]:
        """The values that a parameter may have after those before it, each meaning once."""
        value = self._ruling(place, gene)
        if parameter.when is not None and value is None:
            return (0,)
        return range(0 if value is None else parameter.least.get(value, 0), len(parameter.values))

    def canonical(self, gene: Gene) -> Gene:
        """The gene with every parameter that does not count at index 0: equal genes mean equal tables."""
        made: list[int] = []
        for place, (index, parameter) in enumerate(zip(gene, self.parameters, strict=True)):
            value = self._ruling(place, made)
            if value is not None:
                index = max(index, parameter.least.get(value, 0))
            made.append(index if parameter.when is None or value is not None else 0)
        return tuple(made)

    def _counts(self, place: int, gene: Gene) -> bool:
        """Whether a parameter counts in a gene."""
        return self.parameters[place].when is None or self._ruling(place, gene) is not None

    def _ruling(self, place: int, gene: Sequence[int]) -> Value | None:
        """The value of the parameter that a parameter depends on, if it is one that lets it count."""
        when = self.parameters[place].when
        if when is None:
            return None
        other = self._places[when[0]]
        value = self.parameters[other].values[gene[other]]
        is_ruling = value in when[1] and (self.parameters[other].when is None or self._ruling(other, gene) is not None)
        return value if is_ruling else None

    @cached_property
    def _places(self) -> dict[str, int]:
        return {parameter.name: place for place, parameter in enumerate(self.parameters)}

    def values(self, gene: Gene) -> Candidate:
        """The values of the parameters that count."""
        return {
            parameter.name: parameter.values[gene[place]]
            for place, parameter in enumerate(self.parameters)
            if self._counts(place, gene)
        }

    def draw(self, rng: Random) -> Gene:
        """Every value of a parameter is as likely."""
        return self.canonical(tuple(rng.randrange(len(parameter.values)) for parameter in self.parameters))

    def step(self, gene: Gene, rng: Random) -> Gene:
        """One parameter moved: an ordered one by up to an eighth of its values, of an unordered one any value."""
        place = rng.choice([k for k in range(len(gene)) if self._counts(k, gene)])
        parameter, last = self.parameters[place], len(self.parameters[place].values) - 1
        if parameter.is_ordered:
            moved = gene[place] + rng.choice((-1, 1)) * rng.randint(1, max(1, (last + 1) // 8))
            index = min(last, max(0, moved))
        else:
            index = rng.randint(0, last)
        return self.canonical((*gene[:place], index, *gene[place + 1 :]))

    def near(self, gene: Gene) -> list[Gene]:
        """Genes one choice away: a neighbouring value of one ordered parameter, any other of an unordered one."""
        found: dict[Gene, None] = {}
        for place, parameter in enumerate(self.parameters):
            if not self._counts(place, gene):
                continue
            others = range(len(parameter.values))
            if parameter.is_ordered:
                others = range(max(0, gene[place] - 1), min(len(parameter.values), gene[place] + 2))
            for index in others:
                found[self.canonical((*gene[:place], index, *gene[place + 1 :]))] = None
        found.pop(gene, None)
        return list(found)
