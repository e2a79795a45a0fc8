"""A small evolutionary search over one gene per table, whose candidates are tuples: nothing that was scored can change
later.

`offspring` is the one step that `evolve` (OptEmbed's own search) and `embank.search.EvolutionSampler` (an Optuna
sampler) both take.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from embank.tables import ConfigError, option_class
from embank.tables.method.options import refuse_wrong_types

Gene = tuple[int, ...]
Candidate = tuple[Gene, ...]

AnyCandidate = TypeVar("AnyCandidate", bound=tuple[Any, ...])

ATTEMPTS = 20
"""Times that a candidate which is known is made anew, before it is taken as it is."""


@option_class
class EvolutionConfig:
    """Sizes of the search: it scores at most generations * (num_mutants + num_crossovers) candidates.

    Args:
        generations: rounds, the random first one included.
        num_mutants, num_crossovers: candidates of a round that come from one parent, and from two.
        num_elites: best candidates of all rounds so far, which are the parents of the next.
        mutation: chance of each gene of a mutant to be drawn anew.
        seed: of the search; None takes the collection's.
        max_samples: validation samples that the last candidates are scored on, about; they are spread over the split.
        screening: the share of these samples on which all others are scored, by log loss; the `num_elites` best ones
            are then scored on all, by AUC. 1 scores every candidate by AUC on all.
    """

    generations: int = 30
    num_mutants: int = 10
    num_crossovers: int = 10
    num_elites: int = 15
    mutation: float = 0.1
    seed: int | None = None
    max_samples: int = 50_000
    screening: float = 0.125

    def __post_init__(self) -> None:
        refuse_wrong_types(self)
        if min(self.generations, self.num_elites, self.num_mutants + self.num_crossovers) < 1:
            raise ConfigError("an evolution needs at least 1 generation, 1 elite and 1 mutant or crossover")
        if self.max_samples < 1:
            raise ConfigError(f"max_samples is {self.max_samples}; a candidate needs at least 1 validation sample")
        if not 0 < self.screening <= 1:
            raise ConfigError(f"screening is {self.screening}; it is a share of the samples and lies in (0, 1]")
        if not 0 <= self.mutation <= 1:
            raise ConfigError(f"mutation is {self.mutation}; it is a chance and lies in [0, 1]")


def mutate(parent: AnyCandidate, *, draw: Callable[[int, Any], Any], chance: float, rng: random.Random) -> AnyCandidate:
    """A copy of which each gene is drawn anew with some chance; `draw` is given its place and what it was."""
    genes = enumerate(parent)
    return tuple(draw(i, gene) if rng.random() < chance else gene for i, gene in genes)  # type: ignore[return-value]


def cross(first: AnyCandidate, second: AnyCandidate, *, rng: random.Random) -> AnyCandidate:
    """Each gene from one of the two parents."""
    pairs = zip(first, second, strict=True)
    return tuple(a if rng.random() < 0.5 else b for a, b in pairs)  # type: ignore[return-value]


def unseen(
    make: Callable[[], AnyCandidate],
    *,
    repair: Callable[[AnyCandidate, random.Random], AnyCandidate],
    is_known: Callable[[AnyCandidate], bool],
    rng: random.Random,
) -> AnyCandidate:
    """An allowed candidate that is not known, if one turns up in a few attempts; else the last one."""
    for _ in range(ATTEMPTS):
        candidate = repair(make(), rng)
        if not is_known(candidate):
            break
    return candidate


def offspring(
    elites: Sequence[AnyCandidate],
    *,
    is_mutant: bool,
    draw: Callable[[int, Any, random.Random], Any],
    repair: Callable[[AnyCandidate, random.Random], AnyCandidate],
    is_known: Callable[[AnyCandidate], bool],
    chance: float,
    rng: random.Random,
    child_chance: float = 0.0,
) -> AnyCandidate:
    """A new candidate from the best ones so far: a mutant of one of them, or a child of two.

    Args:
        elites: the parents to choose from.
        is_mutant: which of the two.
        draw: a new gene for a position, given the old one.
        repair: makes a candidate one that is allowed; must leave an allowed one alone.
        is_known: whether a candidate was made before.
        chance: of each gene of a mutant to be drawn anew.
        rng: of all choices.
        child_chance: the same for a child.
    """

    def make() -> AnyCandidate:
        if is_mutant:
            return mutate(rng.choice(elites), draw=lambda i, gene: draw(i, gene, rng), chance=chance, rng=rng)
        child = cross(rng.choice(elites), rng.choice(elites), rng=rng)
        if not child_chance:
            return child
        return mutate(child, draw=lambda i, gene: draw(i, gene, rng), chance=child_chance, rng=rng)

    return unseen(make, repair=repair, is_known=is_known, rng=rng)


def best_of(scores: Mapping[AnyCandidate, float], count: int) -> list[AnyCandidate]:
    """The candidates with the highest scores, from the best on; equal scores in the order of the candidates."""
    return sorted(scores, key=lambda candidate: (-scores[candidate], candidate))[:count]


def evolve(
    first: Sequence[Candidate],
    *,
    score: Callable[[Candidate], float],
    draw: Callable[[int, random.Random], Gene],
    repair: Callable[[Candidate, random.Random], Candidate],
    config: EvolutionConfig,
    seed: int,
    final_score: Callable[[Candidate], float] | None = None,
) -> tuple[Candidate, list[float]]:
    """The candidate with the highest score that was found.

    Args:
        first: candidates that the first round contains, besides random ones.
        score: of a candidate; called once for each.
        draw: a random gene for a position.
        repair: makes a candidate one that is allowed; must leave an allowed one alone.
        config: sizes of the search.
        seed: taken where the config has none.
        final_score: chooses among the elites of the last round; None takes `score`.

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

    def anew() -> Candidate:
        return tuple(draw(i, rng) for i in range(num_genes))

    def is_known(candidate: Candidate) -> bool:
        return candidate in scores or candidate in population

    population = [repair(candidate, rng) for candidate in first]
    while len(population) < config.num_mutants + config.num_crossovers:
        population.append(unseen(anew, repair=repair, is_known=is_known, rng=rng))
    for _ in range(config.generations):
        for candidate in population:
            if candidate not in scores:
                scores[candidate] = score(candidate)
        elites = best_of(scores, config.num_elites)
        history.append(scores[elites[0]])
        population = []
        for is_mutant in [True] * config.num_mutants + [False] * config.num_crossovers:
            population.append(
                offspring(
                    elites,
                    is_mutant=is_mutant,
                    draw=lambda i, gene, rng: draw(i, rng),
                    repair=repair,
                    is_known=is_known,
                    chance=config.mutation,
                    rng=rng,
                )
            )
    finalists = best_of(scores, config.num_elites if final_score else 1)
    return max(finalists, key=final_score) if final_score else finalists[0], history
