"""The front picture of a sweep with codecs: what methods with codecs reach against what methods alone do."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from embank.pipelines.runs.coded import UNCODED
from embank.pipelines.runs.plots import style
from embank.pipelines.sweep.leaderboard import Row
from embank.pipelines.sweep.pareto import Look, front, label_ends, reference
from embank.tables.storage.atomic import replacing
from embank.tables.wording import human_bytes

_ALONE, _INK = "#57606a", "#24292f"
_COLORS = ("#1f6feb", "#d1242f", "#1a7f37", "#bf5700", "#8250df", "#0b7a8a", "#bf3989", "#7a5c00", "#3b4cc0", "#5a8f29")
_MARGIN = 0.08


def plot_compositions(rows: Sequence[Row], path: Path, *, title: str) -> None:
    """One panel per model: every line as a dot, those with a codec in its colour; the Pareto front of methods alone and
    that of all lines (both by validation) as steps, the points of the latter named at the right.

    What lies far below both fronts is outside of the picture.

    Args:
        rows: the leaderboard; lines without an AUC are left out.
        path: the PNG.
        title: data and models.
    """
    shown = [row for row in rows if row.auc is not None and row.serving_bytes and row.valid_metric is not None]
    models = list(dict.fromkeys(row.model for row in rows))
    codecs = list(dict.fromkeys(row.codec or UNCODED for row in rows))
    looks = {codec: _look(codec, number) for number, codec in enumerate(c for c in codecs if c != UNCODED)}
    named = max((len(_ends([row for row in shown if row.model == model])) for model in models), default=0)
    size = (8.6 * len(models), max(4.8, 0.19 * named + 2.0))
    figure, panels = plt.subplots(1, len(models), figsize=size, squeeze=False, layout="constrained")
    for axes, model in zip(panels[0], models, strict=True):
        _panel(axes, [row for row in shown if row.model == model], looks)
        axes.set_title(model if len(models) > 1 else title, fontsize=11, color=_INK, pad=10)
    if len(models) > 1:
        figure.suptitle(title, fontsize=12, color=_INK)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=200, format="png")
    plt.close(figure)


def _is_alone(row: Row) -> bool:
    return row.codec in (None, UNCODED)


def _look(codec: str, number: int) -> Look:
    return Look(
        label=codec, color=_COLORS[number % len(_COLORS)], marker="o^sDv"[number % 5], is_hollow=False, linestyle="none"
    )


def _ends(rows: Sequence[Row]) -> list[Row]:
    """The points that are named: the front of all lines, and what of the front of methods alone is not in it."""
    own = front(rows)
    return [*own, *(row for row in front([row for row in rows if _is_alone(row)]) if row not in own)]


def _name(row: Row) -> str:
    budget = "" if row.budget is None else f" {row.budget:g}"
    return f"{row.method}{budget}{'' if _is_alone(row) else f' + {row.codec}'}"


def _panel(axes: Any, rows: Sequence[Row], looks: dict[str, Look]) -> None:
    axes.set(xlabel="serving bytes of all tables (log scale)", ylabel="test AUC")
    style(axes)
    axes.tick_params(labelsize=8.5)
    if not rows:
        axes.text(0.5, 0.5, "no run has an AUC", ha="center", transform=axes.transAxes)
        return
    axes.set_xscale("log", base=2)
    alone = Look(label="methods alone", color=_ALONE, marker="o", is_hollow=True, linestyle="none")
    for row in rows:
        look = alone if _is_alone(row) else looks[row.codec or UNCODED]
        axes.plot(row.serving_bytes, row.auc, linestyle="none", alpha=0.55, **{**look.marker_style, "markersize": 3.6})
    fronts = (([row for row in rows if _is_alone(row)], _ALONE, "--"), (rows, "#f0b429", "-"))
    for own, color, linestyle in fronts:
        best = front(own)
        x, y = [row.serving_bytes for row in best], [row.auc for row in best]
        axes.step(x, y, where="post", color=color, linewidth=2, linestyle=linestyle, alpha=0.8, zorder=3)
    ends = _ends(rows)
    for row in ends:
        look = alone if _is_alone(row) else looks[row.codec or UNCODED]
        axes.plot(row.serving_bytes, row.auc, linestyle="none", zorder=5, **{**look.marker_style, "markersize": 6})
    aucs = [row.auc for row in ends if row.auc is not None]
    margin = _MARGIN * max(max(aucs) - min(aucs), 1e-3)
    axes.set_ylim(min(aucs) - margin, max(aucs) + margin)
    reference(axes, [row for row in rows if row.method == "full" and _is_alone(row)])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    handles = [
        Line2D([], [], color="#f0b429", linewidth=2, label="front with codecs (by validation)"),
        Line2D([], [], color=_ALONE, linewidth=2, linestyle="--", label="front of methods alone"),
        *(
            Line2D([], [], linestyle="none", label=look.label, **{**look.marker_style, "markersize": 5})
            for look in (alone, *looks.values())
        ),
    ]
    axes.legend(handles=handles, loc="lower right", frameon=True, framealpha=0.85, edgecolor="none", fontsize=8)
    named = []
    for row in ends:
        look = alone if _is_alone(row) else looks[row.codec or UNCODED]
        label = f"{row.auc:.4f}  {_name(row)}"
        named.append(
            (Look(label=label, color=look.color, marker=look.marker, is_hollow=look.is_hollow, linestyle="none"), row)
        )
    label_ends(named, axes)
