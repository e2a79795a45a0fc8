"""How good a search of widths is, on an objective whose optimum is known: OptEmbed's released evolution, Optuna's
samplers as they are, and ours.

Run: python benchmarks/search.py [--problems 20] [--slow-problems 5] [--evaluations 600] [--budget 0.2] [--merge]
A problem has one width of 1 .. 64 for each of 39 fields. Its score is 0.8 less a sum over fields of weight *
log2(width / best)**2, with log-uniform best widths and log-normal weights: separable, with an optimum inside the range,
so that neither the widest nor the narrowest tables win. Weights are scaled to an AUC: the best of 600 random
candidates is about 30e-4 below the optimum. The regret of a contestant is what the candidate that it hands over loses
against the optimum, scored anew: for the released evolution that is not the score that it reports. The defaults of `ea`
were chosen on problems 0 .. 19; the table is of problems 100 and on, which nothing was chosen by.

released          OptEmbed's evolution as its authors published it (fuyuanlyu/OptEmbed, evolution.py): mutants are their
                  parents, changed in place; candidates are sorted and their scores are not; children are cut at a place
                  in 1 .. 64 of a vector of 39; nothing is kept from round to round
random, tpe_independent, tpe, nsga2
                  Optuna's, as they come; nsga2 with a population of 20; the TPEs on fewer problems, being slow
ea_paper          embank's `EvolutionSampler` with the paper's settings: the released evolution without its faults
ea, profile       embank's, by `search`; "profile alone" ends with the knapsack's choice
gp                Optuna's with a tenth of the evaluations, since each of its trials takes seconds; "random, a tenth",
                  "tpe, a tenth" and "ea, a tenth" have as many

With --budget B the widths are multiples of 4, tables have log-uniform sizes, and a candidate keeps that share of the
plain bytes: Optuna's samplers are told by a constraint, and hand over the best candidate that keeps it. The released
evolution knows no budget and is left out. The optimum is that of the exact knapsack over all widths. Writes
benchmarks/results/search[_budget].json; --merge keeps the contestants of the file that are not run again.
"""

import argparse
import math
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import optuna
import records

from embank.search import DimensionSpace, EvolutionSampler, profile_knapsack, profile_plan, search
from embank.tables import TableSpec

FIELDS, DIM = 39, 64
OCTAVES = math.log2(DIM)
SCALE = 2.0e-5
"""Mean weight of a field: random search then loses about 30e-4."""


class Problem:
    """One objective.

    Args:
        seed: of the best widths, the weights and the sizes.
        budget: serving bytes / plain bytes; None for no limit, and then widths are all of 1 .. 64.
    """

    def __init__(self, seed: int, *, budget: float | None) -> None:
        rng = random.Random(f"problem {seed}")
        best = [2 ** rng.uniform(0, OCTAVES) for _ in range(FIELDS)]
        drawn = [rng.lognormvariate(0, 1) for _ in range(FIELDS)]
        self.fields = [(SCALE * FIELDS * weight / sum(drawn), b) for weight, b in zip(drawn, best, strict=True)]
        sizes = [round(10 ** rng.uniform(1, 5)) for _ in range(FIELDS)]
        specs = [
            TableSpec(name=f"f{k}", num_embeddings=size, embedding_dim=DIM, feature_names=[f"f{k}"])
            for k, size in enumerate(sizes)
        ]
        self.space = DimensionSpace(specs, widths=1 if budget is None else 4)
        self.names = list(self.space.parameters)
        self.budget = budget
        self.allowed = None if budget is None else self.space.allowed_nbytes(budget)

    def loss(self, field: int, width: float) -> float:
        """What one field costs."""
        weight, best = self.fields[field]
        return weight * math.log2(width / best) ** 2

    def score(self, widths: Sequence[float]) -> float:
        """Of a candidate."""
        return 0.8 - sum(self.loss(field, width) for field, width in enumerate(widths))

    @cached_property
    def optimum(self) -> float:
        """The best score of the space, within the bytes."""
        options = {
            name: [
                (0 if self.allowed is None else 4 * spec.num_embeddings * width, -self.loss(field, width))
                for width in map(int, map(float, self.space.parameters[name].values))
            ]
            for field, (name, spec) in enumerate(zip(self.names, self.space.tables, strict=True))
        }
        chosen = profile_knapsack(options, nbytes=self.allowed).at(self.allowed or 0)
        return self.score([float(self.space.parameters[name].values[index]) for name, index in chosen.items()])


Search = Callable[[Problem, int, int], list[float] | None]
"""(problem, evaluations, seed) -> the widths that are handed over; None if no candidate kept the budget."""


def released(problem: Problem, evaluations: int, seed: int) -> list[float]:
    """OptEmbed's published evolution, fault by fault; widths are held as indices from 0 there, as they are here."""
    rng, size = random.Random(seed), 20
    candidates = [[rng.randrange(DIM) for _ in range(FIELDS)] for _ in range(size)]
    handed_over, best = candidates[0], 0.0
    for _ in range(evaluations // size):
        scores = [problem.score([index + 1 for index in candidate]) for candidate in candidates]
        candidates = [candidates[k] for k in sorted(range(size), key=lambda k: -scores[k])]
        if best < scores[0]:  # the score of the first as drawn, beside the candidate that is first as sorted
            best, handed_over = scores[0], candidates[0]
        for parent in candidates[:10]:  # mutants are these very lists, and so may be the one that is handed over
            for field in range(FIELDS):
                if rng.random() < 0.1:
                    parent[field] = rng.randrange(1, DIM)
        children = []
        for _ in range(10):
            cut = rng.randint(1, DIM)
            first, second = rng.randint(0, 10), rng.randint(0, 10)
            children.append(candidates[first][:cut] + candidates[second][cut:])
        candidates = candidates[:10] + children
    return [index + 1.0 for index in handed_over]


def of_optuna(make: Callable[[int], optuna.samplers.BaseSampler]) -> Search:
    """A sampler of Optuna's as it comes."""

    def run(problem: Problem, evaluations: int, seed: int) -> list[float] | None:
        def objective(trial: optuna.Trial) -> float:
            candidate = problem.space.suggest(trial)
            if problem.allowed is not None:
                trial.set_constraint("nbytes", problem.space.nbytes(candidate) / problem.allowed - 1)
            return problem.score([float(candidate[name]) for name in problem.names])

        study = optuna.create_study(sampler=make(seed), direction="maximize")
        study.optimize(objective, n_trials=evaluations)
        if not any(all(value <= 0 for value in trial.constraints.values()) for trial in study.trials):
            return None
        return [float(study.best_params[name]) for name in problem.names]

    return run


def of_ours(sampler: str | Callable[[Problem, int], optuna.samplers.BaseSampler], *, only_plan: bool = False) -> Search:
    """One of embank's, by name, or made for a problem from a seed."""

    def run(problem: Problem, evaluations: int, seed: int) -> list[float]:
        study = search(
            lambda candidate, trial: problem.score([float(candidate[name]) for name in problem.names]),
            space=problem.space,
            sampler=sampler if isinstance(sampler, str) else sampler(problem, seed),
            num_trials=len(profile_plan(problem.space)) + 1 if only_plan else evaluations,
            budget=problem.budget,
            seed=seed,
        )
        return [float(study.best_trial.user_attrs["candidate"][name]) for name in problem.names]

    return run


def _paper(problem: Problem, seed: int) -> EvolutionSampler:
    """The paper's settings: mutants and children apart, genes drawn anew, 15 parents."""
    return EvolutionSampler(
        problem.space, nbytes=problem.allowed, num_mutants=10, num_crossovers=10, num_elites=15, nearby=0.0, seed=seed,
        child_mutation=0.0,
    )  # fmt: skip


CONTESTANTS: dict[str, Search] = {
    "released": released,
    "random": of_optuna(lambda seed: optuna.samplers.RandomSampler(seed=seed)),
    "nsga2": of_optuna(lambda seed: optuna.samplers.NSGAIISampler(population_size=20, seed=seed)),
    "ea_paper": of_ours(_paper),
    "ea": of_ours("ea"),
    "profile alone": of_ours("profile", only_plan=True),
    "profile": of_ours("profile"),
    "tpe": of_optuna(lambda seed: optuna.samplers.TPESampler(multivariate=True, seed=seed)),
    "tpe_independent": of_optuna(lambda seed: optuna.samplers.TPESampler(multivariate=False, seed=seed)),
}
CONTESTANTS |= {f"{name}, a tenth": CONTESTANTS[name] for name in ("random", "tpe", "ea")}
CONTESTANTS["gp"] = of_optuna(lambda seed: optuna.samplers.GPSampler(seed=seed, deterministic_objective=True))
SLOW = ("tpe", "tpe_independent", "gp")
FIRST_PROBLEM = 100


def measure(name: str, *, problems: int, evaluations: int, budget: float | None) -> Iterator[dict[str, Any]]:
    """One contestant on problem after problem; its row after each."""
    asked = evaluations // 10 if name == "gp" or name.endswith("a tenth") else evaluations
    regrets, seconds = [], []
    for seed in range(FIRST_PROBLEM, FIRST_PROBLEM + problems):
        problem = Problem(seed, budget=budget)
        start = time.perf_counter()
        widths = CONTESTANTS[name](problem, asked, seed)
        seconds.append(time.perf_counter() - start)
        if widths is not None:
            regrets.append(problem.optimum - problem.score(widths))
        shown = "no candidate within the budget" if widths is None else f"regret {regrets[-1] * 1e4:6.2f}e-4"
        print(f"{name:16} problem {seed:3}: {shown}, {seconds[-1]:6.1f} s", flush=True)
        yield {
            "contestant": name,
            "problems": len(seconds),
            "first_problem": FIRST_PROBLEM,
            "evaluations": len(profile_plan(problem.space)) + 1 if name == "profile alone" else asked,
            "solved": len(regrets),
            "mean_regret": statistics.mean(regrets) if regrets else None,
            "standard_error": statistics.stdev(regrets) / len(regrets) ** 0.5 if len(regrets) > 1 else None,
            "worst_regret": max(regrets, default=None),
            "seconds": statistics.median(seconds),
            "regrets": list(regrets),
        }


def recorded(row: dict[str, Any]) -> list[records.Record]:
    """Regret of a contestant, how many problems it solved within the bytes, and its seconds."""
    case = {
        "contestant": row["contestant"],
        "evaluations": row["evaluations"],
        "problems": row["problems"],
        "solved": row["solved"],
    }
    seconds = records.record("time", "s", case=case, better="lower", value=row["seconds"], rounds=row["problems"])
    if row["mean_regret"] is None:
        return [seconds]
    mean, error = 1e4 * row["mean_regret"], row["standard_error"]
    spread = {} if error is None else {"low": mean - 1e4 * error, "high": mean + 1e4 * error, "spread": "error"}
    regret = records.record(
        "regret",
        "1e-4",
        case=case,
        better="lower",
        value=mean,
        statistic="mean",
        rounds=row["solved"],
        detail={"regrets": row["regrets"], "worst": row["worst_regret"], "first_problem": row["first_problem"]},
        **spread,
    )
    worst = {"value": 1e4 * row["worst_regret"], "statistic": "once"}
    return [regret, records.record("worst regret", "1e-4", case=case, better="lower", **worst), seconds]


TITLE = "Search of widths on an objective whose optimum is known"
ABOUT = (
    f"{FIELDS} fields, a separable score. Regret against the optimum, times 10,000, of the candidate that each "
    "contestant hands over, mean ± standard error over the problems that it solved: those where that candidate keeps "
    "the budget, if there is one. Problems are those from 100 on; the defaults of ea were chosen on problems 0 to 19. "
    "gp has a tenth of the evaluations, and so have the contestants that say it."
)


def main() -> None:
    """All contestants, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=20)
    parser.add_argument("--slow-problems", type=int, default=5, help=f"of {', '.join(SLOW)}")
    parser.add_argument("--evaluations", type=int, default=600)
    parser.add_argument("--budget", type=float, default=None)
    parser.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--merge", action="store_true", help="keep the other contestants of the file")
    records.argument(parser)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    name = "search" if arguments.budget is None else "search_budget"
    run = records.begin(settings=records.settings_of(arguments))
    for contestant in arguments.contestants:
        if contestant == "released" and arguments.budget is not None:
            continue
        problems = arguments.slow_problems if contestant in SLOW else arguments.problems
        before = run.records
        for row in measure(contestant, problems=problems, evaluations=arguments.evaluations, budget=arguments.budget):
            run.records = [*before, *recorded(row)]
            keep = without(run) if arguments.merge else None
            records.save(name, run, title=TITLE, about=ABOUT, out=arguments.out, keep=keep)


def without(run: records.Run) -> Callable[[records.Run], records.Run | None]:
    """What stays of earlier runs: the contestants that this one has not measured."""
    measured = {record.case["contestant"] for record in run.records}

    def keep(earlier: records.Run) -> records.Run | None:
        kept = [record for record in earlier.records if record.case["contestant"] not in measured]
        return earlier.model_copy(update={"records": kept}) if kept else None

    return keep


if __name__ == "__main__":
    main()
