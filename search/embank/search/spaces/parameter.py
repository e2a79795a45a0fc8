"""What a search chooses: parameters with finitely many values, in groups: one per table, and one for what all share."""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import product
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
        when: the name and the value of an earlier parameter of the group; with any other value of that one, this one
            does not count.
    """

    name: str
    values: tuple[Value, ...]
    is_ordered: bool = True
    when: tuple[str, Value] | None = None

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
        if math.prod(len(parameter.values) for parameter in self.parameters) > MAX_GENES:
            raise ConfigError(
                f"table '{self.name}' has more than {MAX_GENES:,} forms; give its parameters fewer values"
            )

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        """Every gene, parameters that do not count at index 0."""
        every = product(*(range(len(parameter.values)) for parameter in self.parameters))
        return tuple(dict.fromkeys(self.canonical(gene) for gene in every))

    def canonical(self, gene: Gene) -> Gene:
        """The gene with every parameter that does not count at index 0: equal genes mean equal tables."""
        names = {parameter.name: place for place, parameter in enumerate(self.parameters)}
        counted: list[int] = []
        for index, parameter in zip(gene, self.parameters, strict=True):
            if parameter.when is not None:
                place = names[parameter.when[0]]
                is_off = (
                    not self._counts(place, counted)
                    or self.parameters[place].values[counted[place]] != (parameter.when[1])
                )
                index = 0 if is_off else index
            counted.append(index)
        return tuple(counted)

    def _counts(self, place: int, gene: list[int] | Gene) -> bool:
        """Whether a parameter counts in a gene."""
        when = self.parameters[place].when
        if when is None:
            return True
        other = next(k for k, parameter in enumerate(self.parameters) if parameter.name == when[0])
        return self._counts(other, gene) and self.parameters[other].values[gene[other]] == when[1]

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
