"""From the results of runs to lines of a leaderboard: means and deviations over seeds, and paired differences."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from embank.pipelines.runs.coded import UNCODED
from embank.pipelines.runs.records import RESUME
from embank.pipelines.sweep.comparison import CaseResults, best, changes, differences
from embank.tables import DataError
from embank.tables.storage.atomic import replace_text

AVERAGED = (
    *("auc", "logloss", "serving_bytes", "serving_ratio", "nominal_ratio", "training_bytes"),
    *("train_seconds", "num_samples", "samples_per_s"),
)
"""Figures of result.json that a line has the mean of."""

SIGNED = "+z.4f"
"""How a change is written, wherever it stands: what is rounded to nothing has no minus."""

COMPLETE, INFEASIBLE, FAILED, REFUSED = "complete", "infeasible", "failed", "refused"
"""Of a line: it has its figures; no such budget; a run has none; its codec can't hold its rows."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the leaderboard. Quality is of the test split; `sd` is the sample deviation over seeds, None for one
    seed.

    Bytes and training costs are means over seeds; training is counted in all of a method's stages. Differences are
    paired: the same seed's AUC minus the baseline's for the same model at equal bytes, see `Difference`; the best
    baseline is the one with the best mean on validation.
    """

    model: str
    method: str
    budget: float | None
    codec: str | None = None
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
    minus_hash_bytes_ratio: float | None = None
    best_baseline: str | None = None
    minus_best_baseline: float | None = None
    minus_best_baseline_sd: float | None = None
    minus_best_baseline_bytes_ratio: float | None = None
    minus_fp32: float | None = None
    minus_fp32_sd: float | None = None
    valid_minus_fp32: float | None = None
    note: str = ""

    @property
    def is_alone(self) -> bool:
        """Whether it is a method without a codec."""
        return self.codec in (None, UNCODED)


CODEC_COLUMNS = ("codec", "minus_fp32", "minus_fp32_sd", "valid_minus_fp32")
"""Left out where a sweep has no codecs."""


def leaderboard(results: Sequence[CaseResults]) -> list[Row]:
    """One line per case, in the order given."""
    return [_row(entry, results) for entry in results]


def _row(entry: CaseResults, results: Sequence[CaseResults]) -> Row:
    case, runs = entry.case, list(entry.by_seed.values())
    head: dict[str, Any] = {
        "model": case.model,
        "method": case.method,
        "budget": case.budget,
        "codec": entry.codec,
        "point": entry.point,
        "seeds": ",".join(map(str, entry.by_seed)),
        "note": "; ".join(f"{run} failed: {text}" for run, text in {**entry.failures, **entry.failed_points}.items()),
    }
    if entry.refusal is not None:
        floor = entry.refusal if entry.floor is None else f"floor {entry.floor:g}"
        return Row(**{**head, "status": INFEASIBLE, "note": f"{INFEASIBLE}: {floor}"})
    if entry.refused and not entry.failures:
        told = "; ".join(f"{run}: {text}" for run, text in entry.refused.items())
        return Row(**{**head, "status": REFUSED, "note": f"{REFUSED}: {told}"})
    if not runs:
        return Row(**head, status=FAILED)

    def average(key: str) -> float | None:
        values = [run[key] for run in runs if run[key] is not None]
        return mean(values) if values else None

    def spread(key: str) -> float | None:
        values = [run[key] for run in runs if run[key] is not None]
        return stdev(values) if len(values) > 1 else None

    gains = differences(entry, results)
    hashed, top = gains.get("hash"), best(gains)
    means: dict[str, Any] = {key: average(key) for key in AVERAGED}
    lost, lost_valid = changes(entry)
    return Row(
        **head,
        status=COMPLETE if not entry.failures else FAILED,
        **means,
        auc_sd=spread("auc"),
        logloss_sd=spread("logloss"),
        valid_metric=entry.validation,
        lookup_us_1=entry.latency.us_per_id if entry.latency else None,
        lookup_rows_per_s_4096=entry.latency.rows_per_s if entry.latency else None,
        minus_hash=hashed.mean if hashed else None,
        minus_hash_sd=hashed.sd if hashed else None,
        minus_hash_bytes_ratio=hashed.bytes_ratio if hashed else None,
        best_baseline=top.baseline if top else None,
        minus_best_baseline=top.mean if top else None,
        minus_best_baseline_sd=top.sd if top else None,
        minus_best_baseline_bytes_ratio=top.bytes_ratio if top else None,
        minus_fp32=mean(lost) if lost else None,
        minus_fp32_sd=stdev(lost) if len(lost) > 1 else None,
        valid_minus_fp32=mean(lost_valid) if lost_valid else None,
    )


def leaderboard_facts(rows: Sequence[Row], *, data: Path, num_jobs: int, num_cores: int) -> list[str]:
    """Sentences on how the figures were made.

    Args:
        rows: the leaderboard.
        data: the prepared folder.
        num_jobs: runs that trained at a time.
        num_cores: that these shared.
    """
    by_line = {row.seeds: row.seeds.split(",") for row in rows if row.seeds}
    several = max(map(len, by_line.values()), default=0) > 1
    if len(by_line) == 1:
        (seeds,) = by_line.values()
        told = f"seed{'s' * several} {', '.join(seeds)}"
    else:
        told = "seeds of each line"
    quality = f"mean ± sample deviation over the {told}" if several else told
    coded = [
        "A codec other than fp32 is that of the same runs' bundles, coded and scored anew and not trained again; AUC − "
        "fp32 is paired by run. Baselines, training and lookups are those without codec."
    ]
    runs = "1 run at a time had" if num_jobs == 1 else f"{num_jobs} runs at a time shared"
    return [
        f"Test split of `{data}`, {quality}; checkpoints are chosen on validation.",
        "Serving bytes are those of the packed tables, everything included; nominal is the ratio as the method's "
        "paper counts.",
        "Differences are paired by seed, for the same model at equal serving bytes: within 5%, or on the line between "
        "two sizes of the baseline over the logarithm of bytes. Where the baseline has no such sizes, the cell says "
        "how many times the line's bytes its nearest size has; the best baseline is then the best by validation of "
        "those whose sizes are nearest.",
        f"Training time and samples are those of all stages; training bytes include the rows' optimizer state. {runs} "
        f"{num_cores} core{'s' * (num_cores != 1)}.",
        "Lookups in the packed tables of the first seed, each table by itself (a server asks tables that are alike at "
        "once), afterwards, one run at a time on one thread: median time for one id, and rows per second at 4,096 ids.",
        *(coded if any(row.codec for row in rows) else []),
    ]


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """All columns, numbers in full; undefined ones are empty."""
    text = io.StringIO(newline="")
    left_out = () if any(row.codec for row in rows) else CODEC_COLUMNS
    names = [field.name for field in fields(Row) if field.name not in left_out]
    writer = csv.DictWriter(text, fieldnames=names, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    replace_text(path, text.getvalue(), cure=RESUME)


def read_csv(path: Path) -> list[Row]:
    """What `write_csv` wrote; columns that an earlier version did not have are empty.

    Raises:
        DataError: a column that no leaderboard has, or a cell that is no number where one belongs.
    """
    kinds = {field.name: field.type for field in fields(Row)}
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    rows = []
    for number, line in enumerate(lines, 2):
        unknown = [name for name in line if name not in kinds]
        if unknown:
            raise DataError(
                f"'{path}' has a column '{unknown[0]}', which no leaderboard has; write it again by --resume"
            )
        try:
            values = {name: _value(text, kinds[name]) for name, text in line.items()}
            rows.append(Row(**values))
        except (TypeError, ValueError) as error:
            raise DataError(f"'{path}', line {number}: {error}; write it again by --resume") from error
    return rows


def _value(text: str, kind: Any) -> Any:
    if kind is str:
        return text
    return None if text == "" else float(text) if kind == (float | None) else text


def table_columns(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The leaderboard as text, by column; columns that say nothing in this sweep are left out."""
    several = len({row.model for row in rows}) > 1
    columns = {
        "model": [row.model for row in rows] if several else [],
        "method": [row.method for row in rows],
        "budget": [_budget(row) for row in rows],
        "codec": [row.codec or "" for row in rows],
        "seeds": [row.seeds.replace(",", ", ") for row in rows]
        if len({row.seeds for row in rows if row.seeds}) > 1
        else [],
        "chosen": [row.point for row in rows],
        "test AUC": [_pair(row.auc, row.auc_sd, ".4f") if row.auc is not None else _status(row) for row in rows],
        "AUC − fp32": [_pair(row.minus_fp32, row.minus_fp32_sd, SIGNED) for row in rows],
        "log loss": [_pair(row.logloss, row.logloss_sd, ".4f") for row in rows],
        "serving bytes": [_number(row.serving_bytes, ",.0f") for row in rows],
        "of plain": [_number(row.serving_ratio, ".4f") for row in rows],
        "nominal": [_number(row.nominal_ratio, ".4f") for row in rows],
        "AUC − hash": [_against(row.minus_hash, row.minus_hash_sd, row.minus_hash_bytes_ratio) for row in rows],
        "AUC − best baseline": [
            _against(
                row.minus_best_baseline,
                row.minus_best_baseline_sd,
                row.minus_best_baseline_bytes_ratio,
                name=row.best_baseline,
            )
            for row in rows
        ],
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


def _budget(row: Row) -> str:
    """A plain table is the whole of the budget's base; another method without a budget has the size that its options
    say."""
    if row.budget is not None:
        return f"{row.budget:g}"
    return "1" if row.method == "full" else "-"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _pair(value: float | None, deviation: float | None, form: str) -> str:
    return _number(value, form) if deviation is None else f"{_number(value, form)} ± {deviation:{form.lstrip('+')}}"


def _against(
    difference: float | None, deviation: float | None, bytes_ratio: float | None, *, name: str | None = None
) -> str:
    """A difference; the baseline's name and size where they are not understood."""
    if difference is None:
        return "-"
    size = None if bytes_ratio in (None, 1) else f"{bytes_ratio:.2g} times the bytes"
    said = ", ".join(part for part in (name, size) if part)
    return f"{_pair(difference, deviation, SIGNED)}{f' ({said})' if said else ''}"


def _status(row: Row) -> str:
    return {COMPLETE: "undefined", INFEASIBLE: row.note}.get(row.status, row.status)
