"""Pictures of how a model uses its tables: overlap of readers, traffic of rows, growth of their norms."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from embank.pipelines.diagnosis.overlap import Overlap
from embank.pipelines.diagnosis.traffic import NormTrend, Traffic
from embank.pipelines.training.plots import COLORS, style

_INK = "#24292f"
_MOST_ANNOTATED = 14
_MOST_LINES = len(COLORS)


def plot_overlaps(overlaps: Sequence[Overlap], path: Path, *, title: str) -> None:
    """A heat map of the features' overlaps per first layer and table, beside it the effective ranks of the readers.

    Args:
        overlaps: at least one.
        path: the PNG.
        title: what was trained.
    """
    most = max(len(overlap.features) for overlap in overlaps)
    side = min(9.0, max(3.2, 0.42 * most + 1.6))
    layers = list(dict.fromkeys(overlap.layer for overlap in overlaps))
    rows = [[overlap for overlap in overlaps if overlap.layer == layer] for layer in layers]
    num_columns = max(len(row) for row in rows)
    figure = plt.figure(
        figsize=((side + 2.6) * num_columns + 0.9, (side + 0.4) * len(rows) + 0.5), layout="constrained"
    )
    grid = figure.add_gridspec(len(rows), 2 * num_columns, width_ratios=[side, 1.6] * num_columns)
    image: Any = None
    panels: list[Any] = []
    for place, row in enumerate(rows):
        for column, overlap in enumerate(row):
            heat, bars = (figure.add_subplot(grid[place, 2 * column + k]) for k in range(2))
            image = _heat_map(heat, overlap)
            _rank_bars(bars, overlap)
            panels += [heat, bars]
    bar = figure.colorbar(image, ax=panels, shrink=0.6, aspect=30, pad=0.02)
    bar.set_label("overlap of row spaces (0 orthogonal, 1 the same)", color=_INK, fontsize=9)
    bar.outline.set_visible(False)
    figure.suptitle(title, color=_INK, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _heat_map(axes: Any, overlap: Overlap) -> Any:
    num = len(overlap.features)
    image = axes.imshow(overlap.matrix.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="equal")
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
                    color = "white" if value > 0.6 else _INK
                    axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    where = "tables of their own" if overlap.table is None else overlap.table
    axes.set_title(f"{overlap.layer} layer, {where}: mean {overlap.mean:.2f}", fontsize=9, color=_INK, loc="left")
    return image


def _rank_bars(axes: Any, overlap: Overlap) -> None:
    """A bar per feature, cut into its lookups, in line with the heat map's rows."""
    for place, name in enumerate(overlap.features):
        left = 0.0
        for lookup, rank in enumerate(overlap.ranks[name]):
            color = COLORS[0] if lookup % 2 == 0 else "#79a8f2"
            axes.barh(place, rank, left=left, height=0.7, color=color)
            left += rank
    axes.set_ylim(len(overlap.features) - 0.5, -0.5)
    axes.set_yticks([])
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("effective rank", fontsize=8)
    budget = f"sum {overlap.rank_sum:.1f}" + ("" if overlap.table is None else f"\nof width {overlap.width}")
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
    figure.savefig(path, dpi=150)
    plt.close(figure)
