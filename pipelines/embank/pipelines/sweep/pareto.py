"""The picture of a sweep: test AUC against serving bytes, with the Pareto front."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D

from embank.pipelines.sweep.comparison import BASELINES, base_name
from embank.pipelines.sweep.drawing import (
    COLORS,
    FRONT,
    INK,
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

_BASELINE_COLORS = ("#57606a", "#8c959f", "#afb8c1")
_MARKERS = "osD^vP<>hp"
_KNOWN = (
    *("adapt", "alpt", "autodim", "autosrh", "compositional", "dedup", "deeplight", "dhe", "dpq", "hash_embedding"),
    *("low_precision", "mde", "memcom", "mgqe", "optembed", "pep", "robe", "tt_rec", "unified"),
)
"""Methods whose looks differ from each other's. They are drawn alike in every picture; add new ones at the end."""


def plot_pareto(rows: Sequence[Row], path: Path, *, title: str) -> None:
    """One panel per model: a line per method through its budgets, labelled at its right end; deviations as bars.

    The plain table is the reference: a dashed line with a band of its deviation. Points that no smaller table beats on
    validation are ringed and joined by steps.

    Args:
        rows: the leaderboard; lines without an AUC are left out.
        path: the PNG.
        title: data and models.
    """
    shown = [row for row in rows if row.auc is not None and row.serving_bytes]
    methods = list(dict.fromkeys(row.method for row in shown))
    draw(
        shown,
        path,
        title=title,
        models=list(dict.fromkeys(row.model for row in rows)),
        size=(7.4, max(4.4, 0.19 * len(methods) + 1.8)),
        panel=lambda axes, own: _panel(axes, own, methods),
    )


def _panel(axes: Any, rows: Sequence[Row], methods: Sequence[str]) -> None:
    best = front(rows)
    axes.step(
        [nbytes_of(r) for r in best], [auc_of(r) for r in best], where="post", color=FRONT, linewidth=5, alpha=0.35
    )
    axes.plot(
        [nbytes_of(r) for r in best],
        [auc_of(r) for r in best],
        linestyle="none",
        marker="o",
        markersize=12,
        markerfacecolor="none",
        markeredgecolor=FRONT,
        markeredgewidth=1.8,
        zorder=4,
    )
    ends = []
    for method in methods:
        points, look = [row for row in rows if row.method == method], look_of(method, methods)
        if points:
            _line(axes, points, look)
            ends.append((look, max(points, key=nbytes_of)))
    reference(axes, [row for row in rows if row.method == "full"])
    label_bytes(axes)
    handle = Line2D([], [], color=FRONT, alpha=0.6, linewidth=4, marker="o", markersize=10, markerfacecolor="none")
    axes.legend([handle], ["Pareto front (by validation)"], loc="best", frameon=False, fontsize=8.5)
    label_ends(ends, axes)


def look_of(method: str, methods: Sequence[str]) -> Look:
    """How a method is drawn: the same in every picture. Baselines are grey; a second round of colours is hollow and
    dashed.

    A method that is not known here has a look by the hash of its name. Of one method with several options, only the
    first has the method's own marker.

    Args:
        method: its name, with options if it has any.
        methods: all that are in the picture.
    """
    name = base_name(method)
    variant = [other for other in methods if base_name(other) == name].index(method)
    if name == "full":
        return Look(label="full (plain table)", color=INK, marker="*", is_hollow=False, linestyle="none")
    if name in BASELINES:
        color, marker = _BASELINE_COLORS[BASELINES.index(name)], f"X{_MARKERS}"[variant % (1 + len(_MARKERS))]
        return Look(label=method, color=color, marker=marker, is_hollow=False, linestyle=":")
    number = _KNOWN.index(name) if name in _KNOWN else zlib.crc32(name.encode())
    is_second = number // len(COLORS) % 2 == 1
    return Look(
        label=method,
        color=COLORS[number % len(COLORS)],
        marker=_MARKERS[(number + variant) % len(_MARKERS)],
        is_hollow=is_second,
        linestyle="--" if is_second else "-",
    )


def _line(axes: Any, rows: Sequence[Row], look: Look) -> None:
    """A method through its budgets."""
    points = sorted(rows, key=nbytes_of)
    axes.errorbar(
        [nbytes_of(row) for row in points],
        [auc_of(row) for row in points],
        yerr=[row.auc_sd or 0.0 for row in points],
        linestyle=look.linestyle,
        linewidth=1.3,
        elinewidth=0.9,
        capsize=2,
        zorder=5,
        **look.marker_style,
    )
