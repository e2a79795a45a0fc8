"""Pictures of runs: learning curves, and AUC against bytes."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter

from embank.tables.wording import human_bytes

_COLORS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a")
_MARKERS = "osD^vPX*"


def _style(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#d0d7de", linewidth=0.6)
    axes.set_axisbelow(True)


def plot_learning_curves(records: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> None:
    """Log loss of training and validation, and AUC on validation, by step; the test result as a star.

    Where a method trains in several stages, a dashed line stands between them.

    Args:
        records: the lines of metrics.jsonl.
        path: the PNG.
        title: what was trained.
    """
    valid = [r for r in records if r["split"] == "valid"]
    test = [r for r in records if r["split"] == "test"]
    steps = [r["step"] for r in valid]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    left.plot(steps, [r["train_logloss"] for r in valid], "o-", color=_COLORS[5], markersize=4, label="training")
    left.plot(steps, [r["logloss"] for r in valid], "o-", color=_COLORS[0], markersize=4, label="validation")
    left.set(xlabel="step", ylabel="log loss")
    scored = [r for r in valid if r["auc"] is not None]
    right.plot(
        [r["step"] for r in scored],
        [r["auc"] for r in scored],
        "o-",
        color=_COLORS[0],
        markersize=4,
        label="validation",
    )
    right.set(xlabel="step", ylabel="AUC")
    for record in test:
        left.plot(record["step"], record["logloss"], "*", color=_COLORS[1], markersize=12, label="test (chosen step)")
        if record["auc"] is not None:
            right.plot(record["step"], record["auc"], "*", color=_COLORS[1], markersize=12, label="test (chosen step)")
    ends = [r["step"] for r, following in pairwise(valid) if r["stage"] != following["stage"]]
    for axes in (left, right):
        _style(axes)
        for step in ends:
            axes.axvline(step, color=_COLORS[5], linestyle="--", linewidth=1)
        axes.legend(frameon=False)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_auc_against_bytes(results: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> None:
    """Test AUC against serving bytes (log scale), one marker per method; several seeds become mean and deviation.

    Args:
        results: contents of result.json files; those without an AUC are left out.
        path: the PNG.
        title: data and model.
    """
    groups: dict[tuple[str, int], list[float]] = {}
    for result in results:
        if result["auc"] is not None:
            groups.setdefault((result["method"], result["serving_bytes"]), []).append(result["auc"])
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for number, method in enumerate(dict.fromkeys(method for method, _ in groups)):
        points = sorted((nbytes, values) for (name, nbytes), values in groups.items() if name == method)
        means = [sum(values) / len(values) for _, values in points]
        deviations = [_deviation(values) for _, values in points]
        axes.errorbar(
            [nbytes for nbytes, _ in points],
            means,
            yerr=deviations if any(deviations) else None,
            fmt=f"{_MARKERS[number % len(_MARKERS)]}-",
            color=_COLORS[number % len(_COLORS)],
            capsize=3,
            label=method,
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(value)))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    axes.set(xlabel="serving bytes of all tables (log scale)", ylabel="test AUC", title=title)
    _style(axes)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for one value."""
    mean = sum(values) / len(values)
    return float((sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)) ** 0.5)
