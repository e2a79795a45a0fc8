"""What `embank advise`, `embank diagnose` and `embank drift` print."""

from typing import TYPE_CHECKING

from embank.pipelines.cli.show import out, table
from embank.tables.wording import human_bytes

if TYPE_CHECKING:  # these import torch, and `embank --help` should not wait for it
    from embank.compression.multiplexing.specs import FeatureAdvice
    from embank.pipelines.diagnosis.diagnose import Diagnosis
    from embank.pipelines.diagnosis.drift import Drift
    from embank.pipelines.diagnosis.traffic import NormTrend
    from embank.pipelines.sizing.advice import ConfigAdvice

_MOST_TABLES = 12


def advice(values: "ConfigAdvice") -> None:
    """What to expect of a configuration's tables."""
    table(
        ["table", "method", "placement", "ids", "lookups/example", "row bytes", "intra", "merged", "inter"],
        [
            [
                t.name,
                t.method,
                "-" if t.collisions is None else t.collisions.placement,
                "?" if t.num_ids is None else f"{t.num_ids:,}",
                f"{t.lookups:.2f}",
                f"{t.row_nbytes:,}",
                *(_rate(t.collisions, name) for name in ("intra", "merged", "inter")),
            ]
            for t in values.tables
        ],
        left=3,
    )
    if any(t.collisions is not None for t in values.tables):
        out.print(
            "expected share of values that share a row with another of their feature in the same lookup (intra), all "
            "rows (merged), or a row "
            "with anything else (inter)"
        )
    out.print(
        f"{values.lookups:.2f} lookups per example; rows in training, shared ones once: {values.row_nbytes:,} bytes "
        f"({human_bytes(values.row_nbytes)}){_of_plain(values, values.row_nbytes)}"
    )
    if values.serving_nbytes is not None:
        out.print(
            f"serving: {values.serving_nbytes:,} bytes ({human_bytes(values.serving_nbytes)})"
            f"{_of_plain(values, values.serving_nbytes)}"
        )
    if values.is_estimated:
        out.print(
            "without a vocabulary, ids are the different values in training, and a plain table would have a row for "
            "each of them"
        )
    for name, part in values.concentration.items():
        out.print(f"{name}: {part:.0%} of colliding pairs are within features", markup=False)
    for warning in values.warnings:
        out.print(f"warning: {warning}", markup=False)


def _of_plain(values: "ConfigAdvice", nbytes: int) -> str:
    return f", {nbytes / values.plain_nbytes:.4f} of plain fp32" if values.plain_nbytes else ""


def _rate(collisions: "FeatureAdvice | None", name: str) -> str:
    """A collision rate; a dash where there is no closed form, a question mark where the number of values is not
    known."""
    if collisions is None:
        return "-"
    rate = getattr(collisions, name)
    return "?" if rate is None else f"{rate:.2%}"


def diagnosis(found: "Diagnosis") -> None:
    """How a trained model uses its tables."""
    if found.undefined is not None:
        out.print(found.undefined, markup=False)
    else:
        table(
            ["layer", "table", "features", "mean overlap", "at start", "sum of effective ranks", "width"],
            [
                [
                    o.layer,
                    o.table or "-",
                    f"{len(o.features)}",
                    f"{o.mean:.3f}",
                    f"{start.mean:.3f}",
                    f"{o.rank_sum:.1f}",
                    f"{o.width}",
                ]
                for o, start in zip(found.overlaps, found.initial_overlaps, strict=True)
            ],
            left=2,
        )
        if any(o.table is not None and o.rank_sum > o.width for o in found.overlaps):
            out.print("features whose ranks sum up to more than the width can't all read shared rows apart")
    out.print()
    shown = list(found.traffic.values())[:_MOST_TABLES]
    trends = {trend.table: trend for trend in found.norms}
    table(
        [
            "table",
            "features",
            "rows",
            "lookups",
            "top 0.1%",
            "top 1%",
            "top 10%",
            "gini",
            "unused",
            "features/row",
            "norm growth",
        ],
        [
            [
                t.table,
                f"{t.readers}",
                f"{t.lookups.numel():,}",
                f"{t.total:,}",
                *(f"{t.hottest(share):.1%}" for share in (0.001, 0.01, 0.1)),
                f"{t.gini:.3f}",
                f"{t.unused:.1%}",
                f"{t.features_per_row:.2f}",
                _growth(trends.get(t.table)),
            ]
            for t in shown
        ],
    )
    if len(found.traffic) > len(shown):
        out.print(f"and {len(found.traffic) - len(shown)} more tables in row_traffic.csv")
    out.print(
        "norm growth: mean squared norm of the most-read tenth of the rows, trained over initial; a sign of "
        "collisions under "
        "binary cross entropy only"
    )
    for file in found.files:
        out.print(f"written: {file}", markup=False)


def _growth(trend: "NormTrend | None") -> str:
    return "-" if trend is None or not trend.initial[0] else f"{trend.final[0] / trend.initial[0]:.2f}"


def drift(values: "Drift") -> None:
    """What has changed since training."""
    told = sorted(values.features, key=lambda one: -1.0 if one.psi is None else one.psi, reverse=True)
    table(
        ["feature", "PSI", "", "unknown", "in training", "in validation", "missing", "in training"],
        [
            [
                one.name,
                "" if one.psi is None else f"{one.psi:.3f}",
                one.verdict,
                *map(_share, (one.unknown, one.unknown_train, one.unknown_valid, one.missing, one.missing_train)),
            ]
            for one in told
        ],
    )
    out.print("PSI: population stability index; below .1 stable, from .25 on much has changed")
    if values.slices:
        table(
            [f"by {values.by}", "rows", "predicted", "observed", "calibration"],
            [
                [
                    one.name,
                    f"{one.num_rows:,}",
                    f"{one.mean_prediction:.4f}",
                    *map(_number, (one.mean_label, one.calibration)),
                ]
                for one in values.slices
            ],
        )
    metrics = values.metrics
    line = f"{values.num_rows:,} rows, mean prediction {values.mean_prediction:.4f}"
    if metrics is not None:
        line += f", observed {metrics['num_positive'] / metrics['num_rows']:.4f}"
        line += f", calibration {_number(metrics['calibration'])}, log loss {_number(metrics['logloss'])}"
        auc = metrics["auc"]
        line += ", AUC undefined: the rows are of one class" if auc is None else f", AUC {auc:.4f}"
    out.print(line, markup=False)
    for note in values.notes:
        out.print(note, markup=False)
    for file in values.files:
        out.print(f"written to {file}", markup=False)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
