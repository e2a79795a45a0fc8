"""What the pictures of a sweep share: a panel for each model, AUC against bytes, fronts, names at the right."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from embank.pipelines.runs.plots import style
from embank.pipelines.sweep.leaderboard import Row
from embank.tables.storage.atomic import replacing
from embank.tables.wording import human_bytes

COLORS = ("#1f6feb", "#d1242f", "#1a7f37", "#bf5700", "#8250df", "#0b7a8a", "#bf3989", "#7a5c00", "#3b4cc0", "#5a8f29")
FRONT, INK = "#f0b429", "#24292f"
_SHARES = (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 1e-4, 1e-5)


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


def draw(
    rows: Sequence[Row],
    path: Path,
    *,
    title: str,
    models: Sequence[str],
    size: tuple[float, float],
    panel: Callable[[Any, Sequence[Row]], None],
) -> None:
    """A picture with one panel per model.

    Args:
        rows: lines that have an AUC and bytes.
        path: the PNG.
        title: data and models.
        models: in the order of the panels.
        size: of a panel, inches.
        panel: draws the lines of a model on axes of AUC against bytes.
    """
    width, height = size
    figure, panels = plt.subplots(
        1, len(models), figsize=(width * len(models), height), squeeze=False, layout="constrained"
    )
    for axes, model in zip(panels[0], models, strict=True):
        axes.set(xlabel="serving bytes of all tables (log scale)", ylabel="test AUC")
        style(axes)
        axes.tick_params(labelsize=8.5)
        own = [row for row in rows if row.model == model]
        if own:
            axes.set_xscale("log", base=2)
            _widen(axes, own)
            panel(axes, own)
        else:
            axes.text(0.5, 0.5, "no run has an AUC", ha="center", transform=axes.transAxes)
        axes.set_title(model if len(models) > 1 else title, fontsize=11, color=INK, pad=10)
    if len(models) > 1:
        figure.suptitle(title, fontsize=12, color=INK)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=200, format="png")
    plt.close(figure)


def _widen(axes: Any, rows: Sequence[Row]) -> None:
    """An axis of a factor of four at least: methods of one budget lie above each other, and it has ticks."""
    sizes = [nbytes_of(row) for row in rows]
    middle = math.sqrt(min(sizes) * max(sizes))
    axes.update_datalim([(nbytes, auc_of(rows[0])) for nbytes in (middle / 2, middle * 2)])


def label_bytes(axes: Any) -> None:
    """Bytes as a person writes them, once the plain table's scale is there."""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def front(rows: Sequence[Row]) -> list[Row]:
    """Rows that no other row beats in both bytes and validation, by rising bytes.

    Chosen on validation like everything else: the best of many test figures is too good by chance.
    """
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (nbytes_of(row), -validation_of(row))):
        if not best or validation_of(row) > validation_of(best[-1]):
            best.append(row)
    return best


def nbytes_of(row: Row) -> float:
    assert row.serving_bytes is not None
    return row.serving_bytes


def validation_of(row: Row) -> float:
    assert row.valid_metric is not None
    return row.valid_metric


def auc_of(row: Row) -> float:
    assert row.auc is not None
    return row.auc


def reference(axes: Any, rows: Sequence[Row]) -> None:
    """The plain table as a level, and its share as a second scale."""
    if not rows:
        return
    (plain,) = rows[:1]
    axes.axhline(auc_of(plain), color=INK, linestyle=(0, (5, 3)), linewidth=0.9, zorder=1)
    if plain.auc_sd:
        axes.axhspan(auc_of(plain) - plain.auc_sd, auc_of(plain) + plain.auc_sd, color=INK, alpha=0.07, linewidth=0)
    nbytes = nbytes_of(plain)
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
    ordered = sorted(ends, key=lambda end: auc_of(end[1]))
    wanted = [(auc_of(row) - low) / (high - low) for _, row in ordered]
    for (look, row), place in zip(ordered, spread(wanted, gap=gap), strict=True):
        axes.plot(1.04, place, transform=axes.transAxes, clip_on=False, linestyle="none", **look.marker_style)
        axes.annotate(
            "",
            xy=(nbytes_of(row), auc_of(row)),
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
