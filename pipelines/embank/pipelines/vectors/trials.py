"""What codecs keep of a matrix: error, cosine, and the neighbours of queries."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embank.pipelines.reporting import Phase, Reporter
from embank.pipelines.runs.coarse_parts import coarse_parts
from embank.pipelines.vectors.encoding import encoded
from embank.pipelines.vectors.neighbours import (
    Nearest,
    Queries,
    Recalls,
    depth_of,
    nearest_of,
    recall_at,
    recalls,
    row_slices,
)
from embank.tables import BudgetError, Coded, ConfigError, named_codec
from embank.tables.ids.hashing import generator_of

FEW = 11
"""Vectors of which each has all others among its ten nearest, whatever becomes of them."""
_ALL_LOST, _LEAST_NORMAL = 0.99, 2.0**-14
"""Of `Trial.lost`: zeros would do. And the least number of which fp16 holds all its bits."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A codec on a matrix.

    Args:
        codec: its name.
        nbytes: of all vectors, exact where the codec can tell it without them.
        share: of their fp32 bytes.
        lost: root mean square of what is lost of a number, as a share of that of the numbers.
        cosine: mean cosine between a vector and its coded form; vectors of zeros are left out.
        valid, test: recall on the queries of either kind, by metric and depth.
        num_rows: vectors that it was tried on.
        seconds: of coding and comparing.
    """

    codec: str
    nbytes: int
    share: float
    lost: float
    cosine: float
    valid: Recalls
    test: Recalls
    num_rows: int
    seconds: float

    def rank(self, metric: str) -> tuple[float, ...]:
        """The more the better: recall@10 on validation queries, fewer bytes, less loss. Of so few vectors that all are
        among a query's ten nearest, less loss, fewer bytes."""
        if self.num_rows <= FEW:
            return (-self.lost, -self.share)
        return (recall_at(self.valid, metric) or 0.0, -self.share, -self.lost)

    def to_json(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return asdict(self)


class Comparison:
    """Coded forms against the vectors that they hold.

    Queries are vectors of the matrix, drawn with a seed: as many to choose by as to report. They stay fp32, as a query
    that arrives does, and look among the coded vectors for all but themselves.

    Args:
        rows_RD: the vectors, fp32.
        num_queries: of each kind; at most half of the vectors.
        seed: of the draw.
        reporter: of the work.

    Attributes:
        coded: the form of the one codec that was tried.
        largest: number of the vectors, by its size.
    """

    def __init__(self, rows_RD: Tensor, *, num_queries: int, seed: int, reporter: Reporter) -> None:
        self.rows_RD, self.reporter = rows_RD, reporter
        self.coded: dict[str, Coded] = {}
        self.largest = float(torch.stack(rows_RD.aminmax()).abs().max())
        self.num_queries = min(num_queries, len(rows_RD) // 2)
        drawn = torch.randperm(len(rows_RD), generator=generator_of(seed, "queries"))[: 2 * self.num_queries]
        self.queries = Queries(rows_QD=rows_RD[drawn], own_Q=drawn)
        phase = Phase(reporter, "neighbours", total=len(rows_RD), unit="rows")
        self.true = nearest_of(rows_RD, self.queries, met=lambda rows: phase.advance(rows, rows=rows))

    def of(self, coded: Coded, codec: str, *, num_rows: int, seconds: float = 0.0) -> Trial:
        """What a coded form keeps.

        Args:
            coded: the form of all rows.
            codec: its name.
            num_rows: vectors whose bytes are told.
            seconds: that coding took.
        """
        began = time.monotonic()
        phase = Phase(self.reporter, f"comparing {codec}", total=len(self.rows_RD), unit="rows")
        found = Nearest(self.queries, depth=depth_of(len(self.rows_RD)))
        square = whole = cosine = 0.0
        num_cosines = 0
        for part in row_slices(*self.rows_RD.shape):
            rows_rD, taken_rD = self.rows_RD[part], coded.take(torch.arange(part.start, part.stop))
            found.meet(taken_rD)
            square += float((taken_rD - rows_rD).double().square().sum())
            whole += float(rows_rD.double().square().sum())
            own = rows_rD.norm(dim=1) > 0
            cosines = torch.nn.functional.cosine_similarity(taken_rD[own], rows_rD[own], dim=1, eps=1e-30)
            cosine, num_cosines = cosine + float(cosines.double().sum()), num_cosines + int(own.sum())
            phase.advance(len(rows_rD), rows=len(rows_rD))
        nbytes = nbytes_of(coded, codec, self.rows_RD, num_rows=num_rows)
        return Trial(
            codec=codec,
            nbytes=nbytes,
            share=nbytes / (4 * num_rows * self.rows_RD.shape[1]),
            lost=(square / whole) ** 0.5 if whole else 0.0,
            cosine=cosine / num_cosines if num_cosines else 1.0,
            valid=recalls(self.rows_RD, self.true, found, end=self.num_queries),
            test=recalls(self.rows_RD, self.true, found, start=self.num_queries),
            num_rows=len(self.rows_RD),
            seconds=round(seconds + time.monotonic() - began, 2),
        )

    def tried(self, codecs: Sequence[str], scratch: Path, *, num_rows: int) -> tuple[dict[str, Trial], dict[str, str]]:
        """Trials by codec; and of codecs that can't hold these vectors why.

        Raises:
            ConfigError: none can.
        """
        trials: dict[str, Trial] = {}
        refused: dict[str, str] = {}
        for codec in codecs:
            began = time.monotonic()
            num_tried, dim = self.rows_RD.shape
            if (said := coarse_parts(codec, num_rows=num_tried, dim=dim)) is not None:
                self.reporter.note(said)
            try:
                coded = encoded(self.rows_RD, codec, scratch / codec)
            except ConfigError as error:
                refused[codec] = str(error)
                if len(refused) == len(codecs):
                    raise
                continue
            trial = self.of(coded, codec, num_rows=num_rows, seconds=time.monotonic() - began)
            if trial.lost >= _ALL_LOST and self.largest < _LEAST_NORMAL:
                refused[codec] = (
                    f"codec '{codec}' keeps nothing of vectors whose numbers reach {self.largest:.4g}, too little for "
                    "its fp16 steps; scale them up, or use 'bf16' or 'fp8_e4m3'"
                )
                if len(refused) == len(codecs):
                    raise ConfigError(refused[codec])
                continue
            if len(codecs) == 1:  # of several, one at a time is held
                self.coded[codec] = coded
            trials[codec] = trial
        return trials, refused


def nbytes_of(coded: Coded, codec: str, rows_RD: Tensor, *, num_rows: int) -> int:
    """Bytes of so many vectors, of which some are coded."""
    if len(rows_RD) == num_rows:
        return coded.nbytes()
    try:
        return named_codec(codec).nbytes_of(num_rows, rows_RD.shape[1])
    except ConfigError:  # only the rows decide
        return round(coded.nbytes() * num_rows / len(rows_RD))


def sample_of(rows_RD: Tensor, *, num_rows: int, seed: int) -> Tensor:
    """At most so many of the rows, drawn with a seed, in their order; all of them as they are."""
    if len(rows_RD) <= num_rows:
        return rows_RD
    drawn = torch.randperm(len(rows_RD), generator=generator_of(seed, "vectors"))[:num_rows]
    return rows_RD[drawn.sort().values]


def best_of(trials: Sequence[Trial], *, budget: float | None, metric: str) -> Trial:
    """The trial that ranks first among those that fit.

    Raises:
        BudgetError: none does.
    """
    fitting = [trial for trial in trials if budget is None or trial.share <= budget]
    if not fitting:
        least = min(trials, key=lambda trial: trial.share)
        raise BudgetError(
            f"no codec of {', '.join(trial.codec for trial in trials)} fits into budget {budget}: the smallest, "
            f"'{least.codec}', takes {least.nbytes:,} bytes, {least.share:.4f} of the fp32 ones. Raise the budget or "
            "name smaller codecs"
        )
    return max(fitting, key=lambda trial: trial.rank(metric))
