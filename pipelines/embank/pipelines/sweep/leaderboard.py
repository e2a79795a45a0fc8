"""From the results of runs to lines of a leaderboard: means and deviations over seeds, and paired differences."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from embank.pipelines.sweep.latency import Latency
from embank.pipelines.sweep.plan import Case

BASELINES = ("hash", "frequency_cut", "uniform_dim")
"""What every method has to beat at the same size: sharing rows blindly, keeping the frequent ids only, and shorter rows."""

AVERAGED = (
    *("auc", "logloss", "serving_bytes", "serving_ratio", "nominal_ratio", "training_bytes"),
    *("train_seconds", "num_samples", "samples_per_s"),
)
"""Figures of result.json that a line has the mean of."""

COMPLETE, INFEASIBLE, FAILED = "complete", "infeasible", "failed"


@dataclass(frozen=True, kw_only=True)
class CaseResults:
    """What the runs of a case have come to.

    Args:
        case: model, method and budget.
        point: of the grid, chosen on validation; "" without a grid.
        by_seed: contents of the result.json files of that point.
        failures: by run of that point (of any, if none could be chosen), its error message.
        failed_points: the same for other points of the grid.
        floor: the smallest budget of a method that can't reach this one; None if it can, or has none.
        refusal: why it can't.
        latency: of one run's packed tables.
    """

    case: Case
    point: str
    by_seed: Mapping[int, Mapping[str, Any]]
    failures: Mapping[str, str]
    failed_points: Mapping[str, str]
    floor: float | None = None
    refusal: str | None = None
    latency: Latency | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the leaderboard. Quality is of the test split; `sd` is the sample deviation over seeds, None for one seed.

    Bytes and training costs are means over seeds; training is counted in all of a method's stages. Differences are paired: the same
    seed's AUC minus the baseline's at the same model and budget; the best baseline is the one with the best mean on validation.
    """

    model: str
    method: str
    budget: float | None
    status: str
    point: str
    seeds: str
    auc: float | None = None
    auc_sd: float | None = None
    logloss: float | None = None
    logloss_sd: float | None = None
    valid_metric: float | None = None
    serving_bytes: float | None = None
    serving_ratio: float | None = None
    nominal_ratio: float | None = None
    training_bytes: float | None = None
    train_seconds: float | None = None
    num_samples: float | None = None
    samples_per_s: float | None = None
    lookup_us_1: float | None = None
    lookup_rows_per_s_4096: float | None = None
    minus_hash: float | None = None
    minus_hash_sd: float | None = None
    best_baseline: str | None = None
    minus_best_baseline: float | None = None
    minus_best_baseline_sd: float | None = None
    note: str = ""


def validation(result: Mapping[str, Any]) -> float:
    """What a run reached on validation, larger is better: AUC, or the negative log loss where that was monitored."""
    monitor = result.get("monitor") or ("auc" if "valid_auc" in result else "logloss")  # earlier versions don't say
    value = float(result[f"valid_{monitor}"])
    return -value if monitor == "logloss" else value


def leaderboard(results: Sequence[CaseResults]) -> list[Row]:
    """One line per case, in the order given."""
    return [_row(entry, results) for entry in results]


def _row(entry: CaseResults, results: Sequence[CaseResults]) -> Row:
    case, runs = entry.case, list(entry.by_seed.values())
    head: dict[str, Any] = {
        "model": case.model,
        "method": case.method,
        "budget": case.budget,
        "point": entry.point,
        "seeds": ",".join(map(str, entry.by_seed)),
        "note": "; ".join(f"{run} failed: {text}" for run, text in {**entry.failures, **entry.failed_points}.items()),
    }
    if entry.refusal is not None:
        floor = entry.refusal if entry.floor is None else f"floor {entry.floor:g}"
        return Row(**{**head, "status": INFEASIBLE, "note": f"{INFEASIBLE}: {floor}"})
    if not runs:
        return Row(**head, status=FAILED)

    def average(key: str) -> float | None:
        values = [run[key] for run in runs if run[key] is not None]
        return mean(values) if values else None

    def spread(key: str) -> float | None:
        values = [run[key] for run in runs if run[key] is not None]
        return stdev(values) if len(values) > 1 else None

    peers = {e.case.method: e for e in results if e.by_seed and _same_size(e.case, case)}
    hashed, hashed_sd = _difference(entry, peers.get("hash"))
    baselines = [peers[name] for name in BASELINES if name in peers and name != case.method]
    best = max(baselines, key=lambda e: mean(map(validation, e.by_seed.values())), default=None)
    gain, gain_sd = _difference(entry, best)
    means: dict[str, Any] = {key: average(key) for key in AVERAGED}
    return Row(
        **head,
        status=COMPLETE if not entry.failures else FAILED,
        **means,
        auc_sd=spread("auc"),
        logloss_sd=spread("logloss"),
        valid_metric=mean(map(validation, runs)),
        lookup_us_1=entry.latency.us_per_id if entry.latency else None,
        lookup_rows_per_s_4096=entry.latency.rows_per_s if entry.latency else None,
        minus_hash=hashed,
        minus_hash_sd=hashed_sd,
        best_baseline=best.case.method if best else None,
        minus_best_baseline=gain,
        minus_best_baseline_sd=gain_sd,
    )


def _same_size(a: Case, b: Case) -> bool:
    return (a.model, a.budget) == (b.model, b.budget)


def _difference(entry: CaseResults, other: CaseResults | None) -> tuple[float | None, float | None]:
    """Mean and deviation of the difference in AUC, seed by seed."""
    if other is None or other is entry:
        return None, None
    shared = [
        run["auc"] - other.by_seed[seed]["auc"]
        for seed, run in entry.by_seed.items()
        if seed in other.by_seed and run["auc"] is not None and other.by_seed[seed]["auc"] is not None
    ]
    return (mean(shared) if shared else None, stdev(shared) if len(shared) > 1 else None)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """All columns, numbers in full; undefined ones are empty."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def write_markdown(rows: Sequence[Row], path: Path, *, title: str, facts: Sequence[str]) -> None:
    """A table for people, how its figures were made, and what went wrong.

    Args:
        rows: the leaderboard.
        path: the file.
        title: data and models.
        facts: sentences about the sweep.
    """
    columns = table_columns(rows)
    lines = [f"# {title}", "", *(f"- {fact}" for fact in facts), "", "![AUC against serving bytes](pareto.png)", ""]
    lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(values)} |" for values in zip(*columns.values(), strict=True)]
    failed = [row for row in rows if row.status == FAILED]
    if failed:
        lines += ["", "## Failed runs", "", *(f"- {row.model}, {row.method}: {row.note}" for row in failed)]
    path.write_text("\n".join(lines) + "\n")


def table_columns(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The leaderboard as text, by column; columns that say nothing in this sweep are left out."""
    several = len({row.model for row in rows}) > 1
    columns = {
        "model": [row.model for row in rows] if several else [],
        "method": [row.method for row in rows],
        "budget": ["1" if row.budget is None else f"{row.budget:g}" for row in rows],
        "chosen": [row.point for row in rows],
        "test AUC": [_pair(row.auc, row.auc_sd, ".4f") if row.auc is not None else _status(row) for row in rows],
        "log loss": [_pair(row.logloss, row.logloss_sd, ".4f") for row in rows],
        "serving bytes": [_number(row.serving_bytes, ",.0f") for row in rows],
        "of plain": [_number(row.serving_ratio, ".4f") for row in rows],
        "nominal": [_number(row.nominal_ratio, ".4f") for row in rows],
        "AUC − hash": [_pair(row.minus_hash, row.minus_hash_sd, "+.4f") for row in rows],
        "AUC − best baseline": [_against(row) for row in rows],
        "training bytes": [_number(row.training_bytes, ",.0f") for row in rows],
        "train s": [_number(row.train_seconds, ",.1f") for row in rows],
        "samples": [_number(row.num_samples, ",.0f") for row in rows],
        "samples/s": [_number(row.samples_per_s, ",.0f") for row in rows],
        "µs, 1 id": [_number(row.lookup_us_1, ",.1f") for row in rows],
        "rows/s, 4,096 ids": [_number(row.lookup_rows_per_s_4096, ",.0f") for row in rows],
    }
    if all(row.best_baseline in (None, "hash") for row in rows):
        columns["AUC − best baseline"] = []
    return {name: values for name, values in columns.items() if any(value not in ("", "-") for value in values)}


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _pair(value: float | None, deviation: float | None, form: str) -> str:
    return _number(value, form) if deviation is None else f"{_number(value, form)} ± {deviation:{form.lstrip('+')}}"


def _against(row: Row) -> str:
    difference = _pair(row.minus_best_baseline, row.minus_best_baseline_sd, "+.4f")
    return difference if row.minus_best_baseline is None else f"{difference} ({row.best_baseline})"


def _status(row: Row) -> str:
    return row.note if row.status == INFEASIBLE else row.status if row.status == FAILED else "undefined"
