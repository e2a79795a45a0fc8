"""A drift report as files: JSON, CSV and a picture."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from embank.pipelines.diagnosis.drift import KIND, MUCH, SOME, Drift, FeatureDrift
from embank.pipelines.runs.plots import COLORS, style
from embank.tables.storage.new_folder import new_folder

FILES = ("drift.json", "drift.csv", "calibration.csv", "drift.png")
MOST_FEATURES = 40
LEAST_SHOWN = 1e-3
_VERDICTS = {"stable": COLORS[2], "some": COLORS[3], "much": COLORS[1]}


def write_drift(drift: Drift, out: Path) -> list[Path]:
    """Writes drift.json, drift.csv, calibration.csv (where there are slices) and drift.png.

    Raises:
        CheckpointError: the folder exists.
        WorkError: they can't be written.
    """
    values = drift.to_json()
    with new_folder(out, kind=KIND) as folder:
        (folder / "drift.json").write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        _write_csv(folder / "drift.csv", values["features"])
        if values["slices"]:
            _write_csv(folder / "calibration.csv", values["slices"])
        plot_drift(drift, folder / "drift.png")
        names = [name for name in FILES if (folder / name).exists()]
    return [out / name for name in names]


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["name"])
        writer.writeheader()
        writer.writerows(rows)


def plot_drift(drift: Drift, path: Path) -> None:
    """Stability of each feature with the two thresholds, and calibration of each slice.

    Args:
        drift: the report.
        path: the PNG.
    """
    told = [one for one in drift.features if one.psi is not None]
    told = sorted(told, key=lambda one: one.psi or 0.0)[-MOST_FEATURES:]
    height = max(3.2, 0.24 * max(len(told), 1) + 1.2)
    num_panels = 2 if drift.slices else 1
    figure, grid = plt.subplots(1, num_panels, figsize=(5.2 * num_panels, height), layout="constrained", squeeze=False)
    _plot_features(grid[0, 0], told)
    if drift.slices:
        _plot_slices(grid[0, 1], drift)
    figure.suptitle(f"{Path(drift.data).name}, {drift.split}: {drift.num_rows:,} rows", fontsize=11)
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)


def _plot_features(axes: Any, told: Sequence[FeatureDrift]) -> None:
    """Bars on a logarithmic scale, as one feature of new values may have a hundred times the index of the others."""
    values = [max(LEAST_SHOWN, one.psi or 0.0) for one in told]
    axes.barh([one.name for one in told], values, color=[_VERDICTS[one.verdict] for one in told])
    for place, one in enumerate(told):
        axes.annotate(f" {one.psi:.3f}", (values[place], place), va="center", fontsize=7)
    for at in (SOME, MUCH):
        axes.axvline(at, color=COLORS[5], linestyle="--", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(LEAST_SHOWN, 3 * max([MUCH, *values]))
    axes.set_xlabel(f"population stability index (lines: {SOME:g} and {MUCH:g})")
    axes.tick_params(axis="y", labelsize=8)
    style(axes)
    axes.grid(False, axis="y")


def _plot_slices(axes: Any, drift: Drift) -> None:
    places = range(len(drift.slices))
    solid, dashed = ("-", "--") if drift.is_ordered else ("", "")
    axes.plot(
        places,
        [one.mean_prediction for one in drift.slices],
        f"o{solid}",
        color=COLORS[0],
        markersize=4,
        label="predicted",
    )
    if drift.metrics is not None:
        axes.plot(
            places,
            [one.mean_label for one in drift.slices],
            f"s{dashed}",
            color=COLORS[1],
            markersize=4,
            label="observed",
        )
    shown = list(places)[:: max(1, len(drift.slices) // 12)]
    names = [drift.slices[place].name for place in shown]
    axes.set_xticks(shown, [name if len(name) <= 16 else f"{name[:13]}..." for name in names], rotation=45, ha="right")
    axes.tick_params(axis="x", labelsize=8)
    axes.set_ylabel("mean")
    axes.set_ylim(bottom=0)
    axes.set_title(f"by {drift.by}", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    style(axes)
