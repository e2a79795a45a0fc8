"""From the runs of benchmarks/search_runs.py to docs/results/search: tables.md, with a section and a picture for each
task and model.

Run: python benchmarks/search_report.py runs/search docs/results/search

Each task and model leaves its section in a file of its own, sections/NAME.json, so that they may be run on different
days or machines; tables.md has them all.
"""

import argparse
import csv
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from statistics import mean, stdev

import matplotlib as mpl
import optuna
import yaml

from embank.pipelines.search.retrain import kendall_tau
from embank.pipelines.search.storage import open_storage
from embank.pipelines.sweep.leaderboard import COMPLETE, read_csv
from embank.search.study import IDENTITY

mpl.use("Agg")
from matplotlib import pyplot as plt

EQUAL = log(1.05)
"""Sizes that differ by less count as equal."""

PUBLISHED = {
    "movielens-deepfm": "movielens-deepfm",
    "anime-deepfm": "anime-deepfm",
    "criteo-sample-deepfm": "criteo-deepfm",
}
"""Sweeps of all methods with the same data, model, grid and seeds, in docs/results."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A method or a search at one size: test AUC by seed, of the checkpoint that validation chose."""

    name: str
    budget: float | None
    nbytes: float
    by_seed: dict[int, float]
    validation: float


def line_of(name: str, budget: float | None, runs: Sequence[Path]) -> Line | None:
    """The line of some complete runs, whose folders are named by their seeds."""
    results = {int(run.name): json.loads((run / "result.json").read_text()) for run in runs}
    if not results:
        return None
    return Line(
        name=name,
        budget=budget,
        nbytes=mean(result["serving_bytes"] for result in results.values()),
        by_seed={seed: result["auc"] for seed, result in results.items()},
        validation=mean(result["valid_auc"] for result in results.values()),
    )


def lines_of_sweep(folder: Path, *, name: str | None = None, budget: float | None = None) -> list[Line]:
    """The lines of a sweep; of each the point of the grid that its leaderboard names.

    Args:
        folder: what `embank sweep` wrote.
        name, budget: what its lines are called, instead of the sweep's own words.
    """
    found = []
    for row in read_csv(folder / "leaderboard.csv"):
        if row.status != COMPLETE or not row.is_alone:
            continue
        share = row.budget or 1.0
        place = folder / "runs" / row.model / row.method / f"{share:g}" / row.point
        runs = [path.parent for path in place.glob("*/result.json") if path.parent.name.isdecimal()]
        line = line_of(name or row.method, budget if name else share, sorted(runs))
        found += [line] if line is not None else []
    return found


def at_bytes(lines: Sequence[Line], nbytes: float) -> tuple[dict[int, float], bool] | None:
    """AUC by seed of a method at some bytes: of an equal size, or between two sizes over the logarithm of bytes.

    Returns:
        The figures, and whether they are at equal bytes; of the nearest size where there is none on either side.
    """
    if not lines:
        return None
    nearest = min(lines, key=lambda line: abs(log(line.nbytes / nbytes)))
    smaller = max((line for line in lines if line.nbytes < nbytes), key=lambda line: line.nbytes, default=None)
    larger = min((line for line in lines if line.nbytes > nbytes), key=lambda line: line.nbytes, default=None)
    if abs(log(nearest.nbytes / nbytes)) <= EQUAL or smaller is None or larger is None:
        return nearest.by_seed, abs(log(nearest.nbytes / nbytes)) <= EQUAL
    weight = log(nbytes / smaller.nbytes) / log(larger.nbytes / smaller.nbytes)
    seeds = smaller.by_seed.keys() & larger.by_seed.keys()
    return {s: smaller.by_seed[s] * (1 - weight) + larger.by_seed[s] * weight for s in seeds}, True


def difference(searched: Line, others: Sequence[Line]) -> str:
    """Searched minus another method, paired by seed."""
    found = at_bytes(others, searched.nbytes)
    if found is None:
        return "-"
    figures, is_equal = found
    gains = [searched.by_seed[seed] - figures[seed] for seed in searched.by_seed.keys() & figures.keys()]
    if not gains:
        return "-"
    spread = f" ± {stdev(gains):.4f}" if len(gains) > 1 else ""
    size = "" if is_equal else f" ({others[0].name} has no such size)"
    return f"{mean(gains):+.4f}{spread}{size}"


def tau_of(folder: Path) -> tuple[float | None, int]:
    """Kendall's tau between supernet score and validation after training, over random candidates of one budget."""
    with (folder / "candidates.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["name"].isdecimal() and row["score"] and row["validation"]]
    return kendall_tau([(float(row["score"]), float(row["validation"])) for row in rows]), len(rows)


def cost_of(place: Path) -> dict[str, float]:
    """What a search has cost, in trainings of the plain model: the supernet, the trials of all budgets, the candidates
    trained anew.

    By rows, since seconds hang on what else the machine did: a row that is scored counts a third of one that is trained
    (a forward pass of three).
    """
    runs = [json.loads(path.read_text()) for path in (place / "search" / "runs").glob("*/*/result.json")]
    full = [json.loads(path.read_text()) for path in (place / "sweep" / "runs").glob("*/full/1/**/result.json")]
    one = mean(run["num_samples"] for run in full)
    saved = sorted((place / "search" / "supernet" / "checkpoints").glob("step-*"))
    supernet = json.loads((saved[-1] / "meta.json").read_text())["progress"]["stages"][0]["samples"]
    scored = sum(
        sum("same_as" not in trial.user_attrs for trial in study.trials) * study.user_attrs[IDENTITY]["validation_rows"]
        for study in studies_of(place / "search")
    )
    return {
        "supernet": supernet / one,
        "trials": scored / 3 / one,
        "retraining": sum(run["num_samples"] for run in runs) / one,
    }


def studies_of(folder: Path) -> list[optuna.Study]:
    """The studies of a search, one for each budget."""
    storage = open_storage(folder / "study.journal")
    return [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]


def report_cell(place: Path, budgets: Sequence[str], published: Path | None) -> tuple[list[str], list[Line]]:
    """Section of a task and model, and its lines.

    Args:
        place: of its runs.
        budgets: that were searched for.
        published: a sweep of all methods with the same model, if there is one.
    """
    lines = lines_of_sweep(place / "sweep")
    plain_nbytes = next(line.nbytes for line in lines if line.name == "full")
    searched = [
        line
        for budget in budgets
        for line in lines_of_sweep(place / f"searched-{budget}", name="searched", budget=float(budget))
    ]
    methods = [name for name in dict.fromkeys(line.name for line in lines) if name != "full"]
    text = [f"## {place.name}", "", f"![AUC against bytes]({place.name}.png)", ""]
    text += [f"| budget | serving bytes | of plain | test AUC | {' | '.join(f'− {name}' for name in methods)} |"]
    text += [f"|{'---|' * (4 + len(methods))}"]
    for line in searched:
        figures = list(line.by_seed.values())
        spread = f" ± {stdev(figures):.4f}" if len(figures) > 1 else ""
        cells = [difference(line, [other for other in lines if other.name == name]) for name in methods]
        size = f"{line.nbytes:,.0f} | {line.nbytes / plain_nbytes:.4f}"
        text.append(f"| {line.budget:g} | {size} | {mean(figures):.4f}{spread} | {' | '.join(cells)} |")
    plain = [line for line in lines if line.name == "full"]
    text += ["", *(f"Plain tables: {mean(p.by_seed.values()):.4f} at {p.nbytes:,.0f} bytes." for p in plain)]
    tau, num = tau_of(place / "ranks")
    cost = cost_of(place)
    shares = ", ".join(f"{name} {share:.1f}" for name, share in cost.items())
    total = sum(cost.values())
    text += [
        "",
        f"Kendall's tau between supernet score and validation after training: "
        f"{'-' if tau is None else f'{tau:+.2f}'} ({num} random candidates of one budget). "
        f"What was chosen: {chosen_of(place / 'search')}.",
        "",
        f"Cost in trainings of the plain model, all budgets together: {total:.1f} ({shares}; "
        f"{num_trials_of(place / 'search')} trials for each budget).",
        "",
    ]
    if published is not None:
        text += [*place_among(searched, published), ""]
    return text, [*lines, *searched]


def chosen_of(folder: Path) -> str:
    """By budget, which candidate validation chose: the search's first, second, ..., or a simple one."""
    with (folder / "candidates.csv").open() as file:
        best = [row for row in csv.DictReader(file) if row["is_best"] == "True"]
    names = {"uniform": "uniform widths", "mde": "the MDE rule"}
    told = (f"{names.get(row['name'], 'candidate ' + row['name'])} at {float(row['budget']):g}" for row in best)
    return ", ".join(told)


def num_trials_of(folder: Path) -> int:
    """Trials of the longest of a search's studies."""
    return max(len(study.trials) for study in studies_of(folder))


def place_among(searched: Sequence[Line], published: Path) -> list[str]:
    """Where the searched tables stand among all lines of a published sweep."""
    head = (
        "| budget | lines of the [published sweep](../{}/leaderboard.md) at these bytes | searched is | better ones |"
    )
    rows = [head.format(published.name), "|---|---|---|---|"]
    for line in searched:
        own, others = mean(line.by_seed.values()), _published_at(published, line.nbytes)
        better = sorted(((auc, name) for name, auc in others.items() if auc > own), reverse=True)
        told = ", ".join(f"{name} {auc:.4f}" for auc, name in better) or "none"
        place = f"number {len(better) + 1}" if others else "-"
        rows.append(f"| {line.budget:g} | {len(others)} | {place} | {told} |")
    return rows


def report_training(place: Path, published: Path) -> list[str]:
    """The best whole configurations, trained with every seed, against every published line at three sizes."""
    rows = []
    for folder in sorted(place.glob("full-*"), reverse=True):
        budget = folder.name.removeprefix("full-")
        line = line_of("best", float(budget), sorted(p.parent for p in place.glob(f"best-{budget}/*/result.json")))
        if not (folder / "candidates.csv").is_file() or line is None:
            continue
        with (folder / "candidates.csv").open() as file:
            best = next(row for row in csv.DictReader(file) if row["is_best"] == "True")
        others, own = _published_at(published, line.nbytes), list(line.by_seed.values())
        name, auc = max(others.items(), key=lambda pair: pair[1])
        spread = f" ± {stdev(own):.4f}" if len(own) > 1 else ""
        told = ", ".join(f"{key} {best[key]}" for key in best if "." in key and best[key] and key != "tables.method")
        rows.append(
            f"| {budget} | {best['tables.method']} ({told}) | {line.nbytes:,.0f} | {mean(own):.4f}{spread} | "
            f"{name} {auc:.4f} | {mean(own) - auc:+.4f} |"
        )
    if not rows:
        return []
    head = "| budget | chosen | serving bytes | test AUC | best published line at these bytes | difference |"
    return ["## Whole configurations, 40 trials for each budget", "", head, "|---|---|---|---|---|---|", *rows, ""]


def _published_at(folder: Path, nbytes: float) -> dict[str, float]:
    """By method, the mean test AUC of a published sweep at some bytes."""
    by_method: dict[str, list[Line]] = {}
    for row in read_csv(folder / "leaderboard.csv"):
        if row.status != COMPLETE or not row.is_alone:
            continue
        assert row.serving_bytes is not None
        assert row.auc is not None
        assert row.valid_metric is not None
        line = Line(
            name=row.method,
            budget=None,
            nbytes=row.serving_bytes,
            by_seed={0: row.auc},
            validation=row.valid_metric,
        )
        by_method.setdefault(row.method, []).append(line)
    found = {name: at_bytes(lines, nbytes) for name, lines in by_method.items()}
    return {name: figures[0][0] for name, figures in found.items() if figures is not None and figures[1]}


def picture(lines: Sequence[Line], path: Path, *, title: str) -> None:
    """Test AUC against serving bytes: a line per method, the searched tables in front."""
    figure, axes = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    names = list(dict.fromkeys(line.name for line in lines))
    for place, name in enumerate(names):
        own = sorted((line for line in lines if line.name == name), key=lambda line: line.nbytes)
        is_ours = name == "searched"
        axes.errorbar(
            [line.nbytes for line in own],
            [mean(line.by_seed.values()) for line in own],
            yerr=[stdev(line.by_seed.values()) if len(line.by_seed) > 1 else 0.0 for line in own],
            marker="*" if is_ours else "osD^vP<>hp"[place % 10],
            markersize=11 if is_ours else 4,
            linewidth=2.4 if is_ours else 1.0,
            color="black" if is_ours else None,
            zorder=5 if is_ours else 2,
            label=name,
        )
    axes.set_xscale("log", base=2)
    axes.set(xlabel="serving bytes of all tables (log scale)", ylabel="test AUC")
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#d0d7de", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Writes tables.md and a picture for each task and model that is complete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    settings = yaml.safe_load((args.work / "settings.yaml").read_text())
    args.out.mkdir(parents=True, exist_ok=True)
    text = [
        "# Searched tables against baselines at equal bytes",
        "",
        "`python benchmarks/search_runs.py` writes this page. Test AUC, mean ± sample deviation over seeds "
        f"{', '.join(map(str, settings['seeds']))}; rates and checkpoints are chosen on validation.",
        "Differences are the searched tables minus the baseline, paired by seed, at equal serving bytes: within 5%, or "
        "on the line between two sizes of the baseline over the logarithm of bytes. Where the baseline has sizes on "
        "one side only, the nearest one stands there, and that is said.",
        "",
    ]
    sections = args.out / "sections"
    sections.mkdir(exist_ok=True)
    for place in sorted(path for path in args.work.iterdir() if path.is_dir()):
        wanted = [place / "sweep", place / "ranks", *(place / f"searched-{b}" for b in settings["budgets"])]
        if not all((p / "leaderboard.csv").is_file() or (p / "results.md").is_file() for p in wanted):
            continue
        sweep = args.out.parent / PUBLISHED.get(place.name, "")
        section, lines = report_cell(place, settings["budgets"], sweep if place.name in PUBLISHED else None)
        section += report_training(place, args.out.parent / "movielens-deepfm")
        picture(lines, args.out / f"{place.name}.png", title=place.name)
        (sections / f"{place.name}.json").write_text(json.dumps(section, indent=1, ensure_ascii=False) + "\n")
    for file in sorted(sections.glob("*.json")):
        text += json.loads(file.read_text())
    wrapped = [line if line.startswith(("|", "#")) else textwrap.fill(line, 120) for line in text]
    (args.out / "tables.md").write_text("\n".join(wrapped).rstrip() + "\n")
    print(args.out / "tables.md")


if __name__ == "__main__":
    main()
