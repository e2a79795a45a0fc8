"""OptEmbed's evolution as an Optuna sampler."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseGASampler
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState

from embank.compression.parts.evolution import EvolutionConfig, offspring, unseen
from embank.search.known import KnownCandidates, another
from embank.search.samplers.draws import draw_value, near_value
from embank.search.samplers.ranking import best_trials
from embank.search.spaces import Genes, Space
from embank.tables import ConfigError

_ELITES, _ELITES_OF_FRONTS = 10, 20
_LARGER = (0.3, 1.0)
"""Chances of a gene to be drawn anew, where offspring of the usual chance is all known."""


class EvolutionSampler(BaseGASampler):
    """An evolution that keeps the best candidates of all rounds, and proposes none twice.

    A round has `num_mutants + num_crossovers` trials. Those of the first round are random; after that each is a mutant
    of one of the best trials so far, or a child of two of them that takes each gene from either. The state is in the
    study alone: a study that is resumed goes on as if it had never stopped, and several workers may share one study and
    one seed, since what is drawn depends on the seed and the trial's number.

    The defaults differ from the paper's (10 mutants, 10 children that are not mutated, 15 parents, every gene drawn
    from its whole range): rounds are shorter, so that a good candidate becomes a parent sooner, and half of the new
    genes are near the old ones. `benchmarks/search.py` compares the two.

    Args:
        space: what is searched; a table's parameters are one gene. None searches whatever the objective suggests, each
            parameter a gene, without a budget.
        nbytes: serving bytes that a candidate may have; those above it are repaired (`Space.repair`).
        num_mutants, num_crossovers: trials of a round that come from one parent, and from two.
        num_elites: best trials of all rounds so far, which are the parents of the next. With several objectives they
            are those on the best fronts, the least crowded first. None takes 10, or 20 with several objectives.
        mutation: chance of each gene of a mutant to be drawn anew.
        child_mutation: the same for a child of two parents.
        nearby: chance of a gene that is drawn anew to be one near the old gene (`Group.step`) instead of any.
        seed: None takes a random one.

    Source: Lyu et al., CIKM 2022, section 3.4, without the faults of the authors' release (see
    `embank.compression.parts.evolution`, whose step this sampler takes).

    >>> study = optuna.create_study(sampler=EvolutionSampler(seed=0), direction="minimize")
    >>> study.optimize(lambda trial: trial.suggest_int("x", 0, 1000) ** 2, n_trials=300)
    >>> study.best_value < 100
    True
    """

    def __init__(
        self,
        space: Space | None = None,
        *,
        nbytes: int | None = None,
        num_mutants: int = 5,
        num_crossovers: int = 5,
        num_elites: int | None = None,
        mutation: float = 0.1,
        child_mutation: float = 0.05,
        nearby: float = 0.5,
        seed: int | None = None,
    ) -> None:
        self.config = EvolutionConfig(num_mutants=num_mutants, num_crossovers=num_crossovers, mutation=mutation)
        for name, chance in (("child_mutation", child_mutation), ("nearby", nearby)):
            if not 0 <= chance <= 1:
                raise ConfigError(f"{name} is {chance}; it is a chance and lies in [0, 1]")
        if num_elites is not None and num_elites < 1:
            raise ConfigError(f"num_elites is {num_elites}; an evolution needs at least 1 parent")
        self.num_elites, self.child_mutation, self.nearby = num_elites, child_mutation, nearby
        super().__init__(population_size=num_mutants + num_crossovers)
        self.space, self.nbytes = space, nbytes
        self.seed = random.SystemRandom().getrandbits(32) if seed is None else seed
        self._intersection = IntersectionSearchSpace()
        self._known = KnownCandidates()

    def __repr__(self) -> str:
        """The settings, by which a study that is resumed tells whether the sampler is the same."""
        config = self.config
        return (
            f"{type(self).__name__}(num_mutants={config.num_mutants}, num_crossovers={config.num_crossovers}, "
            f"num_elites={self.num_elites}, mutation={config.mutation}, child_mutation={self.child_mutation}, "
            f"nearby={self.nearby}, nbytes={self.nbytes}, seed={self.seed})"
        )

    def reseed_rng(self) -> None:
        """Nothing: what is drawn depends on the trial's number, so workers draw differently with one seed."""

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The space's parameters; without a space those that all trials so far had."""
        if self.space is not None:
            return dict(self.space.distributions)
        found = self._intersection.calculate(study)
        return {name: held for name, held in found.items() if not held.single()}

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Notes the round, so that enqueued trials, whose parameters are given, count in it too."""
        self.get_trial_generation(study, trial)

    def select_parent(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        """The best trials so far, enqueued ones included: those that keep their constraints first."""
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return self._best(complete, study)

    def _best(self, trials: Sequence[FrozenTrial], study: optuna.Study) -> list[FrozenTrial]:
        count = self.num_elites or (_ELITES if len(study.directions) == 1 else _ELITES_OF_FRONTS)
        return best_trials(trials, study.directions, count)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values for all parameters; none in the first round of a search without a space."""
        if not search_space or (
            self.space is not None and self.space.has_all(trial.system_attrs.get("fixed_params", {}))
        ):
            return {}  # an enqueued trial's values are given
        generation = self.get_trial_generation(study, trial)
        parents = self._best(self.get_parent_population(study, generation), study)
        rng = random.Random(f"{self.seed}:{trial.number}")
        if self.space is not None:
            return self._of_space(self.space, study, trial, parents, rng)
        return self._of_any(study, trial, parents, search_space, rng)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random value, for parameters that not all trials have."""
        return draw_value(param_distribution, random.Random(f"{self.seed}:{trial.number}:{param_name}"))

    def _of_space(
        self, space: Space, study: optuna.Study, trial: FrozenTrial, parents: Sequence[FrozenTrial], rng: random.Random
    ) -> dict[str, Any]:
        known = self._known.of(study, trial, space)

        def repair(genes: Genes, rng: random.Random) -> Genes:
            return genes if self.nbytes is None else space.repair(genes, nbytes=self.nbytes, rng=rng)

        bred = [self._known.genes_of(study, parent, space) for parent in parents]
        elites = [genes for genes in bred if genes is not None]
        genes = self._bred(
            elites,
            trial,
            draw=lambda i, rng: space.groups[i].draw(rng),
            step=lambda i, gene, rng: space.groups[i].step(gene, rng),
            num_genes=len(space.groups),
            repair=repair,
            is_known=known.__contains__,
            rng=rng,
        )
        if genes in known:
            genes = another(space, genes, known, nbytes=self.nbytes, rng=rng)
        return space.params(genes)

    def _of_any(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        parents: Sequence[FrozenTrial],
        search_space: Mapping[str, BaseDistribution],
        rng: random.Random,
    ) -> dict[str, Any]:
        names = list(search_space)
        others = study.get_trials(deepcopy=False)
        known = {_values(t, names) for t in others if t.number != trial.number and all(n in t.params for n in names)}
        values = self._bred(
            [_values(parent, names) for parent in parents if all(name in parent.params for name in names)],
            trial,
            draw=lambda i, rng: draw_value(search_space[names[i]], rng),
            step=lambda i, value, rng: near_value(search_space[names[i]], value, rng),
            num_genes=len(names),
            repair=lambda values, rng: values,
            is_known=known.__contains__,
            rng=rng,
        )
        return dict(zip(names, values, strict=True))

    def _bred(
        self,
        elites: Sequence[tuple[Any, ...]],
        trial: FrozenTrial,
        *,
        draw: Callable[[int, random.Random], Any],
        step: Callable[[int, Any, random.Random], Any],
        num_genes: int,
        repair: Callable[[Any, random.Random], Any],
        is_known: Callable[[Any], bool],
        rng: random.Random,
    ) -> Any:
        """A random candidate where there are no elites, else their offspring: where that is known, such as the child of
        one gene, a mutant of more and more genes."""
        if not elites:
            return unseen(
                lambda: tuple(draw(i, rng) for i in range(num_genes)), repair=repair, is_known=is_known, rng=rng
            )

        def new_gene(i: int, gene: Any, rng: random.Random) -> Any:
            return step(i, gene, rng) if rng.random() < self.nearby else draw(i, rng)

        is_mutant = trial.number % (self.config.num_mutants + self.config.num_crossovers) < self.config.num_mutants
        for chance in (self.config.mutation, *_LARGER):
            made = offspring(
                elites,
                is_mutant=is_mutant,
                draw=new_gene,
                repair=repair,
                is_known=is_known,
                chance=chance,
                rng=rng,
                child_chance=self.child_mutation,
            )
            if not is_known(made):
                break
            is_mutant = True
        return made


def _values(trial: FrozenTrial, names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(trial.params[name] for name in names)
