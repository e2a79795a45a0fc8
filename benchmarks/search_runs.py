"""Searched tables against uniform and frequency-cut ones, MDE, DPQ and the best published lines, at equal bytes.

For each task and model: the baselines in a sweep, a search over rows and widths for all budgets, its best candidates
with the sweep's own grid and seeds, and a dozen random candidates scored and trained, for the rank correlation between
the two. On MovieLens-100K also whole configurations by training.

Run: python benchmarks/search_runs.py --data runs/data --work runs/search [--only movielens/deepfm]
Data: folders movielens-100k, anime and criteo-sample in --data, made as docs/results/README.md says.
Every step is one `embank` command; a step that is complete is not repeated, one that was stopped goes on. Seconds go to
WORK/steps.jsonl. Then it writes docs/results/search/tables.md and its pictures, see benchmarks/search_report.py.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs/results"
SPACE = str(HERE / "tasks" / "search_space.yaml")
BASELINES = ("full", "uniform_dim", "frequency_cut", "mde", "dpq")
MODELS = {
    "deepfm": "{name: deepfm, hidden_units: [64, 64], dropout: 0.2}",
    "dcn_v2": "{name: dcn_v2, hidden_units: [64, 64], dropout: 0.2}",
    "fnn": "{name: fnn, hidden_units: [64, 64], dropout: 0.2}",
    "ipnn": "{name: ipnn, hidden_units: [64, 64], dropout: 0.2}",
}
GRID = {"train.table_lr": "0.05,0.2", "train.lr": "0.001,0.003"}
CRITEO_GRID = {"train.table_lr": "0.02,0.05", "train.lr": "0.001,0.003"}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set with its models.

    Args:
        name: of the task.
        config: in benchmarks/tasks.
        folder: of the prepared data.
        models: names.
        published: folder of the sweep of all methods, in docs/results.
        grid: rates that are chosen on validation.
    """

    name: str
    config: str
    folder: str
    models: Sequence[str]
    published: str
    grid: dict[str, str]


TASKS = (
    Task(
        name="movielens",
        config="movielens_train.yaml",
        folder="movielens-100k",
        models=("deepfm", "dcn_v2", "fnn", "ipnn"),
        published="movielens-deepfm",
        grid=GRID,
    ),
    Task(
        name="anime",
        config="anime_train.yaml",
        folder="anime",
        models=("deepfm", "dcn_v2"),
        published="anime-deepfm",
        grid=GRID,
    ),
    Task(
        name="criteo-sample",
        config="criteo_sample_train.yaml",
        folder="criteo-sample",
        models=("deepfm", "dcn_v2"),
        published="criteo-deepfm",
        grid=CRITEO_GRID,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """An `embank` command.

    Args:
        name: of the step.
        arguments: of `embank`.
        out: its directory; resumed if it is there.
    """

    name: str
    arguments: Sequence[str]
    out: Path


def published_methods(task: Task) -> list[str]:
    """The methods that are best by validation at some size from a fiftieth to a half of the published sweep."""
    with (RESULTS / task.published / "leaderboard.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "complete" and row["method"] != "full"]
    best: dict[str, tuple[float, str]] = {}
    for row in rows:
        if 0.02 <= float(row["budget"] or 1) <= 0.5:
            entry = (float(row["valid_metric"]), row["method"])
            best[row["budget"]] = max(best.get(row["budget"], entry), entry)
    return sorted({method for _, method in best.values()})


def steps_of(task: Task, model: str, args: argparse.Namespace) -> Iterator[Step]:
    """What a task takes with one model, in order; the last steps depend on what the search has found."""
    place = args.work / f"{task.name}-{model}"
    config = str(HERE / "tasks" / task.config)
    own = ["--set", f"data.path={args.data / task.folder}", "--set", f"model={MODELS[model]}"]
    grid = [word for key, values in task.grid.items() for word in ("--grid", f"{key}={values}")]
    methods = [*dict.fromkeys([*BASELINES, *published_methods(task)])]
    budgets, seeds = ",".join(args.budgets), ",".join(map(str, args.seeds))
    middle = min(args.budgets, key=lambda b: abs(float(b) - 0.1))
    sweep = ["sweep", config, *own, "--methods", ",".join(methods), "--budgets", budgets, "--seeds", seeds, *grid]
    yield Step(name=f"{place.name}: baselines", arguments=[*sweep, "--grid-budget", middle], out=place / "sweep")
    own_search = ["search", config, *own, "--workers", str(args.workers)]
    search = [*own_search, "--space", SPACE, "--sampler", "profile", "--trials", str(args.trials)]
    found = place / "search"
    retrained = ["--retrain", "5", "--train-seeds", str(args.seeds[0])]
    yield Step(name=f"{place.name}: search", arguments=[*search, "--budget", budgets, *retrained], out=found)
    ranks = [*own_search, "--space", SPACE, "--sampler", "random", "--trials", "12", "--budget", middle]
    supernet = ["--supernet", str(found / "supernet"), "--retrain", "12", "--train-seeds", str(args.seeds[0])]
    yield Step(name=f"{place.name}: rank correlation", arguments=[*ranks, *supernet], out=place / "ranks")
    for budget in args.budgets:
        best = found / ("best.yaml" if len(args.budgets) == 1 else f"best-{float(budget):g}.yaml")
        tuned = ["sweep", str(best), "--methods", "full", "--seeds", seeds, *grid]
        yield Step(name=f"{place.name}: searched at {budget}", arguments=tuned, out=place / f"searched-{budget}")
    if task.name == "movielens" and model == "deepfm" and not args.without_training:
        for budget in ("0.5", "0.1", "0.05"):
            full = [*own_search, "--space", "full", "--sampler", "tpe", "--budget", budget, "--trials", "40"]
            full += ["--train-seeds", seeds]
            found = place / f"full-{budget}"
            yield Step(name=f"{place.name}: configurations at {budget}", arguments=full, out=found)
            for seed in args.seeds:
                again = ["train", str(found / "best.yaml"), "--set", f"train.seed={seed}"]
                name = f"{place.name}: the best configuration at {budget}, seed {seed}"
                yield Step(name=name, arguments=again, out=place / f"best-{budget}" / str(seed))


def run(step: Step, *, work: Path) -> None:
    """Runs a step to its end, from wherever it stands; one that has ended well is not run again."""
    log = work / "steps.jsonl"
    steps = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    if any(entry["step"] == step.name and not entry["code"] for entry in steps):
        return
    resume = ["--resume"] if step.out.is_dir() else []
    print(f"\n== {step.name}", flush=True)
    begun = time.time()
    command = [sys.executable, "-m", "embank", *step.arguments, "--out", str(step.out), *resume]
    done = subprocess.run(command, check=False)
    with log.open("a") as file:
        entry = {"step": step.name, "seconds": time.time() - begun, "code": done.returncode}
        file.write(json.dumps(entry) + "\n")
    if done.returncode:
        raise SystemExit(f"{step.name} has failed; run the same command again to go on")


def main() -> None:
    """All steps of all tasks, one after the other, then the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/search"))
    parser.add_argument("--only", nargs="*", default=[], help="TASK/MODEL, for example movielens/deepfm")
    parser.add_argument("--budgets", nargs="+", default=["0.5", "0.2", "0.1", "0.05"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--trials", type=int, default=1200, help="of each budget's study, more than the profile takes")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time")
    parser.add_argument("--without-training", action="store_true", help="leave the configurations by training out")
    parser.add_argument("--out", type=Path, default=RESULTS / "search")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    cells = [(task, model) for task in TASKS for model in task.models]
    chosen = [(t, m) for t, m in cells if not args.only or f"{t.name}/{m}" in args.only]
    if not chosen:
        raise SystemExit(f"--only names none of {', '.join(f'{t.name}/{m}' for t, m in cells)}")
    settings = {key: value for key, value in vars(args).items() if key in ("budgets", "seeds", "trials")}
    (args.work / "settings.yaml").write_text(yaml.safe_dump(settings))
    for task, model in chosen:
        for step in steps_of(task, model, args):
            run(step, work=args.work)
    subprocess.run([sys.executable, str(HERE / "search_report.py"), str(args.work), str(args.out)], check=True)


if __name__ == "__main__":
    main()
