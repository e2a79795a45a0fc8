"""What a synthetic log is: its size, its ids, and how well the best possible model would do on it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embank.pipelines.data.synth.fields import CRITEO_FIELDS
from embank.pipelines.data.synth.model import PlantedModel, Unit
from embank.pipelines.data.synth.zipf import Floats
from embank.tables.storage.atomic import replacing

NUM_BINS = 65_536


@dataclass(frozen=True, kw_only=True)
class SynthReport:
    """Facts about a synthetic log or split.

    Attributes:
        rows, bytes: of the file or part files.
        clicks, click_rate: number and share of label 1.
        distinct: field to the number of different ids that occur (missing not counted).
        best_auc: AUC of the true click probabilities against the drawn labels: no model can expect to do better. None
            if a class is absent.
        expected_auc: its expectation over the draw of the labels.
        auc_error: bound on the error of both that comes from counting in 65,536 bins of probability.
        table_sizes: field to the number of values it is drawn from (a missing one included).
    """

    rows: int
    bytes: int
    clicks: int
    click_rate: float
    distinct: dict[str, int]
    best_auc: float | None
    expected_auc: float | None
    auc_error: float
    seed: int
    alpha: float
    table_sizes: dict[str, int]


class BestAUC:
    """Streaming AUC of known probabilities, from counts in bins of probability; pairs within a bin count one half."""

    def __init__(self) -> None:
        self._rows = np.zeros(NUM_BINS)
        self._clicks = np.zeros(NUM_BINS)
        self._expected_clicks = np.zeros(NUM_BINS)

    def add(self, probabilities_N: Floats, labels_N: Any) -> None:
        bins_N = (probabilities_N * NUM_BINS).astype(np.int32)
        np.clip(bins_N, 0, NUM_BINS - 1, out=bins_N)
        self._rows += np.bincount(bins_N, minlength=NUM_BINS)
        self._clicks += np.bincount(bins_N, weights=labels_N, minlength=NUM_BINS)
        self._expected_clicks += np.bincount(bins_N, weights=probabilities_N, minlength=NUM_BINS)

    @property
    def rows(self) -> int:
        return int(self._rows.sum())

    @property
    def clicks(self) -> int:
        return int(self._clicks.sum())

    def best(self) -> float | None:
        return _auc(self._clicks, self._rows - self._clicks)

    def expected(self) -> float | None:
        """The expected numerator over the expected denominator, which differs from the expectation by O(1 / rows)."""
        return _auc(self._expected_clicks, self._rows - self._expected_clicks)

    def error(self) -> float:
        """Half the share of pairs within a bin, the larger of the two AUCs."""
        pairs = [
            (clicks, self._rows - clicks)
            for clicks in (self._clicks, self._expected_clicks)
            if 0 < clicks.sum() < self._rows.sum()
        ]
        return max((float(a @ b / 2 / (a.sum() * b.sum())) for a, b in pairs), default=0.0)


def _auc(positive: Floats, negative: Floats) -> float | None:
    if positive.sum() == 0 or negative.sum() == 0:
        return None
    below = np.cumsum(negative) - negative
    return float(positive @ (below + negative / 2) / (positive.sum() * negative.sum()))


class Observer:
    """Sees every row that is written, and reports in the end."""

    def __init__(self, num_tokens: Sequence[int]) -> None:
        self._auc = BestAUC()
        # One place more than tokens: a missing value (rank -1) falls on the last.
        self._seen = [np.zeros(count + 1, dtype=np.bool_) for count in num_tokens]

    def add(self, unit: Unit, num_rows: int) -> None:
        """Take in the unit's first `num_rows` rows."""
        self._auc.add(unit.probabilities[:num_rows], unit.labels[:num_rows])
        for seen, ranks_N in zip(self._seen, unit.ranks, strict=True):
            seen[ranks_N[:num_rows]] = True

    def report(self, model: PlantedModel, *, num_bytes: int, table_sizes: Sequence[int]) -> SynthReport:
        names = [field.name for field in CRITEO_FIELDS]
        distinct = [int(np.count_nonzero(seen[:-1])) for seen in self._seen]
        return SynthReport(
            rows=self._auc.rows,
            bytes=num_bytes,
            clicks=self._auc.clicks,
            click_rate=self._auc.clicks / max(self._auc.rows, 1),
            distinct=dict(zip(names, distinct, strict=True)),
            best_auc=self._auc.best(),
            expected_auc=self._auc.expected(),
            auc_error=self._auc.error(),
            seed=model.seed,
            alpha=model.alpha,
            table_sizes=dict(zip(names, table_sizes, strict=True)),
        )


def write_json(path: Path, report: Any) -> None:
    """Writes a report dataclass, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
