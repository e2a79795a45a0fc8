"""Pictures of runs: learning curves, and what all pictures share."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from embank.tables.storage.atomic import replacing

COLORS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a")


def style(axes: Any) -> None:
    """The look of every picture."""
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
    left.plot(steps, [r["train_logloss"] for r in valid], "o-", color=COLORS[5], markersize=4, label="training")
    left.plot(steps, [r["logloss"] for r in valid], "o-", color=COLORS[0], markersize=4, label="validation")
    left.set(xlabel="step", ylabel="log loss")
    scored = [r for r in valid if r["auc"] is not None]
    right.plot(
        [r["step"] for r in scored],
        [r["auc"] for r in scored],
        "o-",
        color=COLORS[0],
        markersize=4,
        label="validation",
    )
    right.set(xlabel="step", ylabel="AUC")
    for record in test:
        left.plot(record["step"], record["logloss"], "*", color=COLORS[1], markersize=12, label="test (chosen step)")
        if record["auc"] is not None:
            right.plot(record["step"], record["auc"], "*", color=COLORS[1], markersize=12, label="test (chosen step)")
    ends = [r["step"] for r, following in pairwise(valid) if r["stage"] != following["stage"]]
    for axes in (left, right):
        style(axes)
        for step in ends:
            axes.axvline(step, color=COLORS[5], linestyle="--", linewidth=1)
        axes.legend(frameon=False)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)
