"""The picture of a sweep: test AUC against serving bytes, with the Pareto front."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from embank.pipelines.runs.plots import style
from embank.pipelines.sweep.comparison import BASELINES, base_name
from embank.pipelines.sweep.leaderboard import Row
from embank.tables.storage.atomic import replacing
from embank.tables.wording import human_bytes

_BASELINE_COLORS = ("#57606a", "#8c959f", "#afb8c1")
_COLORS = ("#1f6feb", "#d1242f", "#1a7f37", "#bf5700", "#8250df", "#0b7a8a", "#bf3989", "#7a5c00", "#3b4cc0", "#5a8f29")
_MARKERS = "osD^vP<>hp"
_KNOWN = (
    *("adapt", "alpt", "autodim", "autosrh", "compositional", "dedup", "deeplight", "dhe", "dpq", "hash_embedding"),
    *("low_precision", "mde", "memcom", "mgqe", "optembed", "pep", "robe", "tt_rec", "unified"),
)
"""Methods whose looks differ from each other's. They are drawn alike in every picture; add new ones at the end."""

_SHARES = (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 1e-4, 1e-5)
_FRONT = "#f0b429"
_INK = "#24292f"


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
    models = list(dict.fromkeys(row.model for row in rows))
    methods = list(dict.fromkeys(row.method for row in shown))
    height = max(4.4, 0.19 * len(methods) + 1.8)
    figure, panels = plt.subplots(
        1, len(models), figsize=(7.4 * len(models), height), squeeze=False, layout="constrained"
    )
    for axes, model in zip(panels[0], models, strict=True):
        _panel(axes, [row for row in shown if row.model == model], methods)
        axes.set_title(model if len(models) > 1 else title, fontsize=11, color=_INK, pad=10)
    if len(models) > 1:
        figure.suptitle(title, fontsize=12, color=_INK)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=200, format="png")
    plt.close(figure)


def front(rows: Sequence[Row]) -> list[Row]:
    """Rows that no other row beats in both bytes and validation, by rising bytes.

    Chosen on validation like everything else: the best of many test figures is too good by chance.
    """
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (_nbytes(row), -_validation(row))):
        if not best or _validation(row) > _validation(best[-1]):
            best.append(row)
    return best


def _nbytes(row: Row) -> float:
    assert row.serving_bytes is not None
    return row.serving_bytes


def _validation(row: Row) -> float:
    assert row.valid_metric is not None
    return row.valid_metric


def _auc(row: Row) -> float:
    assert row.auc is not None
    return row.auc


def _panel(axes: Any, rows: Sequence[Row], methods: Sequence[str]) -> None:
    axes.set(xlabel="serving bytes of all tables (log scale)", ylabel="test AUC")
    style(axes)
    axes.tick_params(labelsize=8.5)
    if not rows:
        axes.text(0.5, 0.5, "no run has an AUC", ha="center", transform=axes.transAxes)
        return
    axes.set_xscale("log", base=2)
    best = front(rows)
    axes.step([_nbytes(r) for r in best], [_auc(r) for r in best], where="post", color=_FRONT, linewidth=5, alpha=0.35)
    axes.plot(
        [_nbytes(r) for r in best],
        [_auc(r) for r in best],
        linestyle="none",
        marker="o",
        markersize=12,
        markerfacecolor="none",
        markeredgecolor=_FRONT,
        markeredgewidth=1.8,
        zorder=4,
    )
    ends = []
    for method in methods:
        points, look = [row for row in rows if row.method == method], look_of(method, methods)
        if points:
            _line(axes, points, look)
            ends.append((look, max(points, key=_nbytes)))
    reference(axes, [row for row in rows if row.method == "full"])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    handle = Line2D([], [], color=_FRONT, alpha=0.6, linewidth=4, marker="o", markersize=10, markerfacecolor="none")
    axes.legend([handle], ["Pareto front (by validation)"], loc="lower right", frameon=False, fontsize=8.5)
    label_ends(ends, axes)


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a method is drawn."""

    label: str
    color: str
    marker: str
    is_hollow: bool
    linestyle: str

    @property
    def marker_style(self) -> dict[str, Any]:
        size = 11 if self.marker == "*" else 5
        return {
            "color": self.color,
            "marker": self.marker,
            "markersize": size,
            "markerfacecolor": "white" if self.is_hollow else self.color,
        }


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
        return Look(label="full (plain table)", color=_INK, marker="*", is_hollow=False, linestyle="none")
    if name in BASELINES:
        color, marker = _BASELINE_COLORS[BASELINES.index(name)], f"X{_MARKERS}"[variant % (1 + len(_MARKERS))]
        return Look(label=method, color=color, marker=marker, is_hollow=False, linestyle=":")
    number = _KNOWN.index(name) if name in _KNOWN else zlib.crc32(name.encode())
    is_second = number // len(_COLORS) % 2 == 1
    return Look(
        label=method,
        color=_COLORS[number % len(_COLORS)],
        marker=_MARKERS[(number + variant) % len(_MARKERS)],
        is_hollow=is_second,
        linestyle="--" if is_second else "-",
    )


def _line(axes: Any, rows: Sequence[Row], look: Look) -> None:
    """A method through its budgets."""
    points = sorted(rows, key=_nbytes)
    axes.errorbar(
        [_nbytes(row) for row in points],
        [_auc(row) for row in points],
        yerr=[row.auc_sd or 0.0 for row in points],
        linestyle=look.linestyle,
        linewidth=1.3,
        elinewidth=0.9,
        capsize=2,
        zorder=5,
        **look.marker_style,
    )


def reference(axes: Any, rows: Sequence[Row]) -> None:
    """The plain table as a level, and its share as a second scale."""
    if not rows:
        return
    (plain,) = rows[:1]
    axes.axhline(_auc(plain), color=_INK, linestyle=(0, (5, 3)), linewidth=0.9, zorder=1)
    if plain.auc_sd:
        axes.axhspan(_auc(plain) - plain.auc_sd, _auc(plain) + plain.auc_sd, color=_INK, alpha=0.07, linewidth=0)
    nbytes = _nbytes(plain)
    top = axes.secondary_xaxis("top", functions=(lambda x: x / nbytes, lambda x: x * nbytes))
    shares = [share for share in _SHARES if nbytes * share >= axes.get_xlim()[0]]
    top.xaxis.set_major_locator(FixedLocator(shares))
    top.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    top.xaxis.set_minor_locator(NullLocator())
    top.set_xlabel("of the plain table", fontsize=8.5)
    top.tick_params(labelsize=8)


def label_ends(ends: Sequence[tuple[Look, Row]], axes: Any) -> None:
    """Markers and names in a column to the right of the panel, spread so that none covers another, joined to their
    lines."""
    figure = axes.figure
    figure.draw_without_rendering()
    low, high = axes.get_ylim()
    gap = 11 / (axes.get_window_extent().height / figure.dpi * 72)
    ordered = sorted(ends, key=lambda end: _auc(end[1]))
    wanted = [(_auc(row) - low) / (high - low) for _, row in ordered]
    for (look, row), place in zip(ordered, spread(wanted, gap=gap), strict=True):
        axes.plot(1.04, place, transform=axes.transAxes, clip_on=False, linestyle="none", **look.marker_style)
        axes.annotate(
            "",
            xy=(_nbytes(row), _auc(row)),
            xytext=(1.04, place),
            textcoords="axes fraction",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": look.color,
                "linewidth": 0.6,
                "alpha": 0.5,
                "shrinkA": 4,
                "shrinkB": 4,
            },
        )
        axes.text(1.06, place, look.label, transform=axes.transAxes, fontsize=8.5, color=look.color, va="center")


def spread(places: Sequence[float], *, gap: float) -> list[float]:
    """Moves rising places within [0, 1] apart so that neighbours are `gap` apart, as little as possible.

    Places that are too close form a block around their mean; blocks that then touch are joined.
    """
    blocks: list[tuple[float, int]] = []  # mean of the places, number of them

    def centre(mean: float, count: int) -> float:
        half = gap * (count - 1) / 2
        return min(max(mean, half), 1 - half)

    for place in places:
        mean, count = place, 1
        while blocks and centre(mean, count) - centre(*blocks[-1]) < gap * (count + blocks[-1][1]) / 2:
            other, others = blocks.pop()
            mean, count = (mean * count + other * others) / (count + others), count + others
        blocks.append((mean, count))
    return [centre(mean, count) + gap * (i - (count - 1) / 2) for mean, count in blocks for i in range(count)]
