"""The profile of a supernet: what each table's choices cost in score, one table at a time; and what a knapsack makes of
it for any budget."""

from collections.abc import Mapping
from functools import cached_property

import optuna

from embank.search.knapsack import KnapsackFront, profile_knapsack
from embank.search.known import KnownCandidates
from embank.search.spaces import Candidate, Gene, Genes, Group, Parameter, Space, TableSpace
from embank.search.spaces.base import with_gene
from embank.tables import ConfigError, WorkError


def profile_plan(space: Space) -> list[Genes]:
    """The candidates that a profile scores: the largest one, and from there one table at a time each of its options.

    Of a parameter of many values about each half of the one before is measured (64, 32, 16, ...).

    Raises:
        ConfigError: the tables of the space share bytes, so that a choice in one is no matter of that table alone.

    >>> specs = [TableSpec(name=n, num_embeddings=200, embedding_dim=16, feature_names=[n]) for n in ("a", "b")]
    >>> space = DimensionSpace(specs)
    >>> [tuple(space.decode(genes).values()) for genes in profile_plan(space)]
    [(16, 16), (4, 16), (8, 16), (16, 4), (16, 8)]
    """
    if not isinstance(space, TableSpace):
        raise ConfigError(
            f"a {type(space).__name__} can't be profiled one table at a time, since its tables share bytes; use "
            "another sampler, such as 'ea'"
        )
    whole = space.ceiling()
    alone = [
        with_gene(whole, place, gene)
        for place, group in enumerate(space.groups)
        for gene in measured_genes(group, whole[place])
    ]
    return list(dict.fromkeys([whole, *alone]))


def measured_genes(group: Group, whole: Gene) -> list[Gene]:
    """Genes of a group that a profile measures: of unordered parameters every value, of ordered ones a ladder."""
    ladders = [_ladder(parameter) for parameter in group.parameters]
    return [
        gene
        for gene in group.genes
        if gene == whole or all(index in ladder for index, ladder in zip(gene, ladders, strict=True))
    ]


def _ladder(parameter: Parameter) -> set[int]:
    """Indices of values that are about halves of each other, from the largest down to the smallest."""
    last = len(parameter.values) - 1
    numbers = [float(value) for value in parameter.values if not isinstance(value, str)]
    if not parameter.is_ordered or len(numbers) <= last or numbers[0] <= 0:
        return set(range(last + 1))
    found, goal = {0, last}, numbers[-1]
    while goal > numbers[0]:
        found.add(min(range(last + 1), key=lambda index: abs(numbers[index] - goal)))
        goal /= 2
    return found


class Profile:
    """What was measured, by table.

    Args:
        space: of the candidates.
        scores: of candidates of the plan; those that are missing are no option.

    Raises:
        WorkError: the score of the largest candidate is missing.
    """

    def __init__(self, space: TableSpace, scores: Mapping[Genes, float]) -> None:
        self.space = space
        whole = space.ceiling()
        own_nbytes = sum(space.cost(place, gene) for place, gene in enumerate(whole))
        self.fixed_nbytes = space.nbytes_of(whole) - own_nbytes  # of tables that are not searched
        if whole not in scores:
            raise WorkError("the profile has no score of the whole tables yet; score its plan first")
        self.genes: list[list[Gene]] = []
        self.options: dict[str, list[tuple[int, float]]] = {}
        for place, group in enumerate(space.groups):
            own = [g for g in measured_genes(group, whole[place]) if with_gene(whole, place, g) in scores]
            self.genes.append(own)
            self.options[group.name] = [
                (space.cost(place, gene), scores[with_gene(whole, place, gene)]) for gene in own
            ]

    @cached_property
    def front(self) -> KnapsackFront:
        """The best choice at every number of bytes, as if what tables lose added up."""
        return profile_knapsack(self.options)

    def at(self, nbytes: int) -> Genes:
        """The best choice within some bytes."""
        chosen = self.front.at(nbytes - self.fixed_nbytes)
        return tuple(own[chosen[group.name]] for group, own in zip(self.space.groups, self.genes, strict=True))

    def candidate(self, nbytes: int) -> Candidate:
        """The same, as values by name."""
        return self.space.decode(self.at(nbytes))

    def ladder(self, count: int) -> list[Genes]:
        """Choices of the front at byte numbers from the smallest to the largest, evenly in their logarithm."""
        low, high = (int(self.front.nbytes_n[end]) for end in (0, -1))
        steps = [max(low, 1) * (high / max(low, 1)) ** (k / max(1, count - 1)) for k in range(count)]
        return list(dict.fromkeys(self.at(self.fixed_nbytes + max(low, round(step))) for step in steps))


def read_profile(study: optuna.Study, space: Space) -> Profile:
    """The profile that a study's trials hold, whatever else they hold.

    Raises:
        ConfigError: a space whose tables share bytes.
        WorkError: the largest candidate was not scored.

    >>> specs = [TableSpec(name=n, num_embeddings=200, embedding_dim=16, feature_names=[n]) for n in ("a", "b")]
    >>> space = DimensionSpace(specs)
    >>> score = lambda candidate, trial: candidate["width.a"] + 2 * candidate["width.b"] ** 0.5
    >>> study = search(score, space=space, sampler="profile", num_trials=8)
    >>> read_profile(study, space).candidate(16_000)
    {'width.a': 16, 'width.b': 4}
    """
    plan = set(profile_plan(space))
    assert isinstance(space, TableSpace)
    return Profile(space, planned_scores(study, space, plan, KnownCandidates()))


def planned_scores(study: optuna.Study, space: Space, plan: set[Genes], known: KnownCandidates) -> dict[Genes, float]:
    """Scores (the first objective) of the candidates of a plan, as far as a study has them.

    Args:
        study: whose trials.
        space: of the candidates.
        plan: the candidates that are wanted.
        known: what was decoded before.
    """
    scored = known.scored(study, space)
    return {genes: scored[genes].values[0] for genes in plan if genes in scored}
