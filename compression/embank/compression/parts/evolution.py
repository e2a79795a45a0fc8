"""A small evolutionary search over one gene per table, whose candidates are tuples: nothing that was scored can change
later."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from embank.tables import ConfigError
from embank.tables.method.options import refuse_wrong_types

Gene = tuple[int, ...]
Candidate = tuple[Gene, ...]

_ATTEMPTS = 20


@dataclass(frozen=True, kw_only=True)
class EvolutionConfig:
    """Sizes of the search: it scores at most generations * (num_mutants + num_crossovers) candidates.

    Args:
        generations: rounds, the random first one included.
        num_mutants, num_crossovers: candidates of a round that come from one parent, and from two.
        num_elites: best candidates of all rounds so far, which are the parents of the next.
        mutation: chance of each gene of a mutant to be drawn anew.
        seed: of the search; None takes the collection's.
        max_samples: validation samples that a candidate is scored on, about; they are spread over the split.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic, not a field

    generations: int = 30
    num_mutants: int = 10
    num_crossovers: int = 10
    num_elites: int = 15
    mutation: float = 0.1
    seed: int | None = None
    max_samples: int = 50_000

    def __post_init__(self) -> None:
        refuse_wrong_types(self)
        if min(self.generations, self.num_elites, self.num_mutants + self.num_crossovers) < 1:
            raise ConfigError("an evolution needs at least 1 generation, 1 elite and 1 mutant or crossover")
        if self.max_samples < 1:
            raise ConfigError(f"max_samples is {self.max_samples}; a candidate needs at least 1 validation sample")
        if not 0 <= self.mutation <= 1:
            raise ConfigError(f"mutation is {self.mutation}; it is a chance and lies in [0, 1]")


def mutate(parent: Candidate, *, draw: Callable[[int], Gene], chance: float, rng: random.Random) -> Candidate:
    """A copy of which each gene is drawn anew with some chance."""
    return tuple(draw(i) if rng.random() < chance else gene for i, gene in enumerate(parent))


def cross(first: Candidate, second: Candidate, *, rng: random.Random) -> Candidate:
    """Each gene from one of the two parents."""
    return tuple(a if rng.random() < 0.5 else b for a, b in zip(first, second, strict=True))


def evolve(
    first: Sequence[Candidate],
    *,
    score: Callable[[Candidate], float],
    draw: Callable[[int, random.Random], Gene],
    repair: Callable[[Candidate, random.Random], Candidate],
    config: EvolutionConfig,
    seed: int,
) -> tuple[Candidate, list[float]]:
    """The candidate with the highest score that was found.

    Args:
        first: candidates that the first round contains, besides random ones.
        score: of a candidate; called once for each.
        draw: a random gene for a position.
        repair: makes a candidate one that is allowed; must leave an allowed one alone.
        config: sizes of the search.
        seed: taken where the config has none.

    Returns:
        The best candidate, and the best score after each round, which never falls.

    Source: single-path one-shot search as OptEmbed (Lyu et al., CIKM 2022, section 3.4) uses it. The authors' release
    mutates parents in place, so that its recorded best is not what was scored, pairs sorted candidates with unsorted
    scores, cuts for a crossover at a number below the dim instead of the number of fields, and keeps no elites.
    """
    rng = random.Random(seed if config.seed is None else config.seed)
    num_genes = len(first[0])
    scores: dict[Candidate, float] = {}
    history: list[float] = []

    def unseen(make: Callable[[], Candidate], others: Sequence[Candidate]) -> Candidate:
        """A candidate that is new, if one turns up."""
        for _ in range(_ATTEMPTS):
            candidate = repair(make(), rng)
            if candidate not in scores and candidate not in others:
                break
        return candidate

    def anew() -> Candidate:
        return tuple(draw(i, rng) for i in range(num_genes))

    population = [repair(candidate, rng) for candidate in first]
    while len(population) < config.num_mutants + config.num_crossovers:
        population.append(unseen(anew, population))
    for _ in range(config.generations):
        for candidate in population:
            if candidate not in scores:
                scores[candidate] = score(candidate)
        elites = sorted(scores, key=lambda c: (-scores[c], c))[: config.num_elites]
        history.append(scores[elites[0]])

        def mutant(parents: list[Candidate] = elites) -> Candidate:
            return mutate(rng.choice(parents), draw=lambda i: draw(i, rng), chance=config.mutation, rng=rng)

        def child(parents: list[Candidate] = elites) -> Candidate:
            return cross(rng.choice(parents), rng.choice(parents), rng=rng)

        population = []
        for make in [mutant] * config.num_mutants + [child] * config.num_crossovers:
            population.append(unseen(make, population))
    return max(scores, key=lambda c: scores[c]), history
