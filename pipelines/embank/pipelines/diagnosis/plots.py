"""Pictures of how a model uses its tables: overlap of readers, traffic of rows, growth of their norms."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from embank.pipelines.diagnosis.overlap import Overlap
from embank.pipelines.diagnosis.traffic import NormTrend, Traffic
from embank.pipelines.runs.plots import COLORS, style
from embank.tables.storage.atomic import replacing

_INK = "#24292f"
_MOST_ANNOTATED = 20
_MOST_LINES = len(COLORS)


def plot_overlaps(overlaps: Sequence[Overlap], initial: Sequence[Overlap], path: Path, *, title: str) -> None:
    """A heat map of the features' overlaps per first layer and table, beside it the effective ranks of the readers.

    Args:
        overlaps: at least one, of the trained network.
        initial: the same of the network as it started.
        path: the PNG.
        title: what was trained.
    """
    most = max(len(overlap.features) for overlap in overlaps)
    side = min(8.0, max(3.2, 0.4 * most + 1.2))
    layers = list(dict.fromkeys(overlap.layer for overlap in overlaps))
    where = list(dict.fromkeys((overlap.table, overlap.width) for overlap in overlaps))
    figure = plt.figure(
        figsize=((side + 2.2) * len(layers) + 0.9, (side + 0.6) * len(where) + 0.4), layout="constrained"
    )
    grid = figure.add_gridspec(len(where), 2 * len(layers), width_ratios=[side, 1.4] * len(layers))
    lowest = _floor_tenth(min(float(overlap.matrix.min()) for overlap in overlaps))
    image: Any = None
    panels: list[Any] = []
    for overlap, start in zip(overlaps, initial, strict=True):
        row, column = where.index((overlap.table, overlap.width)), 2 * layers.index(overlap.layer)
        heat, bars = (figure.add_subplot(grid[row, column + k]) for k in range(2))
        image = _heat_map(heat, overlap, start, lowest=lowest)
        _rank_bars(bars, overlap)
        panels += [heat, bars]
    bar = figure.colorbar(image, ax=panels, shrink=0.7, aspect=30, pad=0.02)
    bar.set_label("overlap of row spaces (0 orthogonal, 1 the same)", color=_INK, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    figure.suptitle(title, color=_INK, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)


def _floor_tenth(value: float) -> float:
    """The scale begins at a tenth below the least overlap: from 0 on, readers of full rank would all look alike."""
    return min(0.9, math.floor(10 * value) / 10)


def _heat_map(axes: Any, overlap: Overlap, start: Overlap, *, lowest: float) -> Any:
    num = len(overlap.features)
    image = axes.imshow(overlap.matrix.numpy(), cmap="Blues", vmin=lowest, vmax=1, aspect="equal")
    axes.set_xticks(range(num), overlap.features, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(num), overlap.features, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for edge in range(1, num):
        axes.axhline(edge - 0.5, color="white", linewidth=0.8)
        axes.axvline(edge - 0.5, color="white", linewidth=0.8)
    if num <= _MOST_ANNOTATED:
        for i in range(num):
            for j in range(num):
                if i != j:
                    value = float(overlap.matrix[i, j])
                    color = "white" if value > lowest + 0.6 * (1 - lowest) else _INK
                    axes.text(
                        j, i, f"{value:.2f}", ha="center", va="center", fontsize=7 if num <= 12 else 5.5, color=color
                    )
    place = "tables of their own" if overlap.table is None else overlap.table
    title = f"{overlap.layer} layer, {place}\nmean {overlap.mean:.2f}, at the start {start.mean:.2f}"
    axes.set_title(title, fontsize=9, color=_INK, loc="left")
    return image


def _rank_bars(axes: Any, overlap: Overlap) -> None:
    """A bar per feature, cut into its lookups, in line with the heat map's rows; a line at the width that all of them
    share."""
    for place, name in enumerate(overlap.features):
        left = 0.0
        for lookup, rank in enumerate(overlap.ranks[name]):
            color = COLORS[0] if lookup % 2 == 0 else "#79a8f2"
            axes.barh(place, rank, left=left, height=0.7, color=color)
            left += rank
    if overlap.table is not None:
        axes.axvline(overlap.width, color=COLORS[1], linewidth=1, linestyle="--")
    axes.set_ylim(len(overlap.features) - 0.5, -0.5)
    axes.set_yticks([])
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("effective rank", fontsize=8)
    budget = f"sum {overlap.rank_sum:.1f}" + ("" if overlap.table is None else f",\nwidth {overlap.width}")
    axes.set_title(budget, fontsize=8, color=_INK, loc="left")


def plot_traffic(traffic: Mapping[str, Traffic], trends: Sequence[NormTrend], path: Path, *, title: str) -> None:
    """Share of lookups against share of rows, the hottest first; and growth of squared norms by decile of traffic.

    Args:
        traffic: by physical table, in the order of interest; the first few are shown.
        trends: of some of these tables.
        path: the PNG.
        title: what was trained.
    """
    shown = list(traffic)[:_MOST_LINES]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
    for name, color in zip(shown, COLORS, strict=False):
        lookups = traffic[name].lookups.sort(descending=True).values.double()
        shares = lookups.cumsum(0) / lookups.sum().clamp(min=1)
        places = torch.arange(1, lookups.numel() + 1, dtype=torch.float64) / lookups.numel()
        thin = torch.unique(torch.logspace(0, 1, 400).sub(1).div(9).mul(lookups.numel() - 1).long())
        left.plot(places[thin], shares[thin], color=color, linewidth=1.6, label=name)
    left.set_xscale("log")
    left.set(xlabel="share of the rows, the most read first", ylabel="share of the lookups", ylim=(0, 1.02))
    percent = FuncFormatter(lambda value, _: f"{value:.3g}" if value < 0.01 else f"{value:.2g}")
    left.xaxis.set_major_formatter(percent)
    by_name = {trend.table: trend for trend in trends}
    for name, color in zip(shown, COLORS, strict=False):
        if name in by_name:
            trend = by_name[name]
            growth = [final / initial for initial, final in zip(trend.initial, trend.final, strict=True) if initial > 0]
            if len(growth) == len(trend.initial):
                right.plot(range(1, len(growth) + 1), growth, "o-", color=color, markersize=4, label=name)
    right.axhline(1, color=COLORS[5], linewidth=1, linestyle="--")
    right.set_yscale("log")
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    right.yaxis.set_minor_formatter(NullFormatter())
    right.set_xticks(range(1, 11))
    right.set(xlabel="decile of rows, the most read first", ylabel="mean squared norm, trained / initial")
    for axes in (left, right):
        style(axes)
    left.legend(frameon=False, fontsize=8)
    figure.suptitle(title, color=_INK, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)
