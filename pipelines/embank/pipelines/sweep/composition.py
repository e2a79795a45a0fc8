"""The front picture of a sweep with codecs: what methods with codecs reach against what methods alone do."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D

from embank.pipelines.runs.coded import UNCODED
from embank.pipelines.sweep.drawing import (
    COLORS,
    FRONT,
    Look,
    auc_of,
    draw,
    front,
    label_bytes,
    label_ends,
    nbytes_of,
    reference,
)
from embank.pipelines.sweep.leaderboard import Row

_ALONE = Look(label="methods alone", color="#57606a", marker="o", is_hollow=True, linestyle="none")
_MARGIN = 0.08


def plot_compositions(rows: Sequence[Row], path: Path, *, title: str) -> None:
    """One panel per model: every line as a dot, those with a codec in its colour; the Pareto front of methods alone and
    that of all lines (both by validation) as steps, the points of the latter named at the right.

    What lies far below the front of all lines is outside of the picture.

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
    draw(
        shown,
        path,
        title=title,
        models=models,
        size=(8.6, max(4.8, 0.19 * named + 2.0)),
        panel=lambda axes, own: _panel(axes, own, looks),
    )


def _look(codec: str, number: int) -> Look:
    return Look(
        label=codec, color=COLORS[number % len(COLORS)], marker="o^sDv"[number % 5], is_hollow=False, linestyle="none"
    )


def _ends(rows: Sequence[Row]) -> list[Row]:
    """The points that are named: the front of all lines, and those of methods alone that are not in it, as far as they
    are no lower than its lowest."""
    own = front(rows)
    least = min(map(auc_of, own), default=0.0)
    alone = front([row for row in rows if row.is_alone])
    return [*own, *(row for row in alone if row not in own and auc_of(row) >= least)]


def _name(row: Row) -> str:
    budget = "" if row.budget is None else f" {row.budget:g}"
    return f"{row.method}{budget}{'' if row.is_alone else f' + {row.codec}'}"


def _panel(axes: Any, rows: Sequence[Row], looks: Mapping[str, Look]) -> None:
    def look_of(row: Row) -> Look:
        return _ALONE if row.is_alone else looks[row.codec or UNCODED]

    for row in rows:
        style = {**look_of(row).marker_style, "markersize": 3.6}
        axes.plot(nbytes_of(row), auc_of(row), linestyle="none", alpha=0.55, **style)
    for own, color, linestyle in (([row for row in rows if row.is_alone], _ALONE.color, "--"), (rows, FRONT, "-")):
        best = front(own)
        x, y = [nbytes_of(row) for row in best], [auc_of(row) for row in best]
        axes.step(x, y, where="post", color=color, linewidth=2, linestyle=linestyle, alpha=0.8, zorder=3)
    ends = _ends(rows)
    for row in ends:
        style = {**look_of(row).marker_style, "markersize": 6}
        axes.plot(nbytes_of(row), auc_of(row), linestyle="none", zorder=5, **style)
    aucs = [auc_of(row) for row in ends]
    margin = _MARGIN * max(max(aucs) - min(aucs), 1e-3)
    axes.set_ylim(min(aucs) - margin, max(aucs) + margin)
    reference(axes, [row for row in rows if row.method == "full" and row.is_alone])
    label_bytes(axes)
    handles = [
        Line2D([], [], color=FRONT, linewidth=2, label="front with codecs (by validation)"),
        Line2D([], [], color=_ALONE.color, linewidth=2, linestyle="--", label="front of methods alone"),
        *(
            Line2D([], [], linestyle="none", label=look.label, **{**look.marker_style, "markersize": 5})
            for look in (_ALONE, *looks.values())
        ),
    ]
    axes.legend(handles=handles, loc="best", frameon=True, framealpha=0.85, edgecolor="none", fontsize=8)
    named = [(replace(look_of(row), label=f"{row.auc:.4f}  {_name(row)}"), row) for row in ends]
    label_ends(named, axes)
