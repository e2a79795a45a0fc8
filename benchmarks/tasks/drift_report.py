"""The page and the picture of benchmarks/tasks/drift.py."""

import textwrap
from pathlib import Path
from statistics import mean, stdev

import matplotlib
import numpy as np
import records

FEATURES = ("carrier", "flight", "tailnum", "origin", "dest", "hour", "weekday")
FOLLOWED = ("flight", "tailnum")
ARMS = ("unified", "vocabulary", "streaming")
REFERENCE = "all ids"
LABELS = {
    "unified": "unified table, no vocabulary",
    "vocabulary": "vocabulary of the first weeks",
    "streaming": "streaming vocabulary",
    REFERENCE: "every id of the year (more bytes)",
}
COLORS = {"unified": "#d95f02", "vocabulary": "#7570b3", "streaming": "#1b9e77", REFERENCE: "#999999"}


def same_rate_lines(same: dict) -> list[str]:
    """A line per rate and arm."""
    lines = [
        f"All arms at one rate of rows, other options as chosen (`{same['command']}`; added after the weeks had been "
        "seen, to tell "
        "the arms' differences from those of their rates):",
        "",
        "| rate | tables | AUC | minus vocabulary, each seed |",
        "|---|---|---|---|",
    ]
    for rate, arm in dict.fromkeys((one["table_lr"], one["arm"]) for one in same["runs"]):
        by_seed = {
            name: {one["seed"]: one["auc"] for one in same["runs"] if (one["table_lr"], one["arm"]) == (rate, name)}
            for name in (arm, "vocabulary")
        }
        each = ", ".join(f"{value - by_seed['vocabulary'][seed]:+.4f}" for seed, value in by_seed[arm].items())
        lines.append(f"| {rate} | {arm} | {spread(list(by_seed[arm].values()))} | {each} |")
    return [*lines, ""]


def summary(runs: list[dict], arm: str, key: str) -> dict[int, float]:
    """By seed, the mean of a figure over the reported weeks."""
    return {one["seed"]: mean(week[key] for week in one["weeks"] if key in week) for one in runs if one["arm"] == arm}


def spread(values: list[float], *, digits: int = 4, sign: str = "") -> str:
    deviation = stdev(values) if len(values) > 1 else 0.0
    return f"{mean(values):{sign}.{digits}f} ± {deviation:.{digits}f}"


def recorded(report: dict) -> list[records.Record]:
    """AUC and log loss of each arm against the vocabulary of the first weeks, and bytes."""
    runs, found = report["runs"], []
    base = summary(runs, "vocabulary", "auc")
    for arm in (*ARMS, REFERENCE):
        case, own = {"tables": LABELS[arm]}, summary(runs, arm, "auc")
        peers = []
        if arm != "vocabulary":
            less = records.figures([own[seed] - base[seed] for seed in own], statistic="mean")
            peers.append(records.peer(LABELS["vocabulary"], less, kind="difference"))
        for name, key, unit, better in (
            ("AUC", "auc", "AUC", "higher"),
            ("log loss", "logloss", "log loss", "lower"),
            ("AUC of flights with an unseen id", "auc_of_rows_with_unseen_ids", "AUC", "higher"),
        ):
            figures = records.figures(list(summary(runs, arm, key).values()), statistic="mean")
            against = peers if key == "auc" else []
            found.append(records.record(name, unit, case=case, better=better, peers=against, **figures))
        sizes = next(one["bytes"] for one in runs if one["arm"] == arm)
        for name, key in (("tables", "tables"), ("to find rows", "ids")):
            size = {"value": sizes[key], "statistic": "exact"}
            found.append(records.record(name, "bytes", case=case, better="lower", **size))
    return found


def markdown(report: dict) -> str:
    """The results as a page."""
    runs, first, last = report["runs"], report["fit_weeks"] + 1, report["weeks"]
    seeds = sorted({one["seed"] for one in runs})
    lines = [
        "# Flights of 2013, week by week: ids that come and go",
        "",
        f"`{report['command']}`",
        "",
        f"Every week is predicted, then trained on once. Means over weeks {first} to {last}; ± is the deviation over "
        f"{len(seeds)} seeds. "
        f"Options were chosen on weeks 1 to {report['fit_weeks']}.",
        "",
        "| tables | AUC | log loss | AUC of flights with an id unseen in the first weeks | bytes of tables | bytes to "
        "find rows |",
        "|---|---|---|---|---|---|",
    ]
    for arm in (*ARMS, REFERENCE):
        sizes = next(one["bytes"] for one in runs if one["arm"] == arm)
        cells = [
            spread(list(summary(runs, arm, key).values())) for key in ("auc", "logloss", "auc_of_rows_with_unseen_ids")
        ]
        lines.append(f"| {LABELS[arm]} | {' | '.join(cells)} | {sizes['tables']:,} | {sizes['ids']:,} |")
    lines += [
        "",
        "Differences in mean AUC, seed by seed, and the share of weeks in which the mean over seeds is higher:",
        "",
        "| | each seed | mean ± sd | weeks |",
        "|---|---|---|---|",
    ]
    for one, other in (
        ("streaming", "vocabulary"),
        ("unified", "vocabulary"),
        ("streaming", "unified"),
        (REFERENCE, "streaming"),
    ):
        by_seed = [summary(runs, one, "auc")[s] - summary(runs, other, "auc")[s] for s in seeds]
        ahead = np.mean(by_week(runs, one).mean(0) > by_week(runs, other).mean(0))
        each = ", ".join(f"{d:+.4f}" for d in by_seed)
        lines.append(f"| {one} minus {other} | {each} | {spread(by_seed, sign='+')} | {ahead:.0%} |")
    weeks = report["unseen"]
    lines += [
        "",
        f"Share of lookups of values unseen in weeks 1 to {report['fit_weeks']}, over all reported weeks and in the "
        "last one:",
        "",
        "| feature | all | last week |",
        "|---|---|---|",
        *(
            f"| {name} | {mean(week[name] for week in weeks):.1%} | {weeks[-1][name]:.1%} |"
            for name in FEATURES
            if any(week[name] for week in weeks)
        ),
        "",
        "Options chosen: "
        + "; ".join(f"{arm}: {', '.join(f'{k} {v}' for k, v in o.items())}" for arm, o in report["options"].items())
        + ".",
        "",
    ]
    totals = [one["totals"] for one in runs if one["arm"] == "streaming"]
    for name in FOLLOWED:
        counts = ", ".join(f"{mean(t[name][key] for t in totals):,.0f} {key}" for key in totals[0][name])
        lines += [f"Streaming vocabulary of `{name}` in training, mean over seeds: {counts}.", ""]
    lines += same_rate_lines(report["same_rate"]) if "same_rate" in report else []
    wrapped = [line if line.startswith(("|", "#")) else textwrap.fill(line, 120) for line in lines]
    return "\n".join(wrapped).rstrip() + "\n"


def by_week(runs: list[dict], arm: str, key: str = "auc") -> np.ndarray:
    """[seeds, weeks]."""
    return np.array([[week[key] for week in one["weeks"]] for one in runs if one["arm"] == arm])


def draw(report: dict, path: Path) -> None:
    """AUC per week, differences to the fixed vocabulary, and how many lookups are of unseen ids."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    weeks = [entry["week"] for entry in report["unseen"]]
    figure, axes = plt.subplots(
        3, 1, figsize=(8, 8), sharex=True, height_ratios=(3, 2, 1.4), layout="constrained", dpi=150
    )
    for arm in ARMS:
        values = by_week(report["runs"], arm)
        band(axes[0], weeks, values, color=COLORS[arm], label=LABELS[arm])
        if arm != "vocabulary":
            band(axes[1], weeks, values - by_week(report["runs"], "vocabulary"), color=COLORS[arm], label=None)
    axes[0].set_ylabel("AUC of the coming week")
    axes[0].legend(frameon=False, fontsize=9)
    axes[0].set_title("Flights late by more than 15 minutes: each week predicted, then trained on", fontsize=11)
    axes[1].axhline(0, color=COLORS["vocabulary"], linewidth=1.2)
    axes[1].set_ylabel("AUC minus that of the\nvocabulary of the first weeks")
    for name, style in zip(FOLLOWED, ("-", "--"), strict=True):
        axes[2].plot(weeks, [100 * entry[name] for entry in report["unseen"]], style, color="#333333", label=name)
    axes[2].set_ylabel("lookups of ids\nunseen at first, %")
    axes[2].set_ylim(bottom=0)
    axes[2].legend(frameon=False, fontsize=9)
    axes[2].set_xlabel(f"week of 2013 (weeks 1 to {report['fit_weeks']}: vocabulary and options chosen)")
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def band(axis: "matplotlib.axes.Axes", weeks: list[int], values: np.ndarray, *, color: str, label: str | None) -> None:
    """Mean over seeds as a line, one deviation to either side as a band."""
    middle, width = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else 0
    axis.fill_between(weeks, middle - width, middle + width, color=color, alpha=0.2, linewidth=0)
    axis.plot(weeks, middle, color=color, linewidth=1.6, label=label)
