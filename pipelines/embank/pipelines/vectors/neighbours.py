"""Which vectors are nearest to a query, by cosine and by inner product; and how many of them a coded matrix keeps.

Every query is compared with every vector, some vectors at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

METRICS = ("cosine", "inner_product")
DEPTHS = (1, 10, 100)
_CLOSE = 1e-6
"""Scores that differ by less, as a share of the query's and the vector's length, are one."""
_NUMBERS = 1 << 22

Recalls = dict[str, dict[int, float]]
"""By metric and depth."""


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Vectors that look for others.

    Args:
        rows_QD: the vectors, fp32.
        own_Q: the row of each among those that are searched, which is never found; -1 for none.
    """

    rows_QD: Tensor
    own_Q: Tensor

    def part(self, start: int, end: int) -> Queries:
        """Some of them."""
        return Queries(rows_QD=self.rows_QD[start:end], own_Q=self.own_Q[start:end])


class Nearest:
    """The vectors nearest to some queries, of all that were met.

    Args:
        queries: of them.
        depth: how many are kept.
    """

    def __init__(self, queries: Queries, *, depth: int) -> None:
        self.queries, self.depth, self.num_met = queries, depth, 0
        num = len(queries.own_Q)
        self.scores = {metric: torch.empty(num, 0) for metric in METRICS}
        self.ids = {metric: torch.empty(num, 0, dtype=torch.int64) for metric in METRICS}

    def meet(self, rows_rD: Tensor) -> None:
        """Takes the next vectors in."""
        ids_r = torch.arange(self.num_met, self.num_met + len(rows_rD))
        self.num_met += len(rows_rD)
        products_Qr = self.queries.rows_QD @ rows_rD.T
        products_Qr.masked_fill_(self.queries.own_Q[:, None] == ids_r, float("-inf"))
        self._keep("inner_product", products_Qr, ids_r)
        self._keep("cosine", products_Qr / lengths(rows_rD), ids_r)

    def _keep(self, metric: str, scores_Qr: Tensor, ids_r: Tensor) -> None:
        scores_Qr, places = scores_Qr.topk(min(self.depth, scores_Qr.shape[1]), dim=1)
        scores = torch.cat([self.scores[metric], scores_Qr], dim=1)
        ids = torch.cat([self.ids[metric], ids_r[places]], dim=1)
        self.scores[metric], order = scores.topk(min(self.depth, scores.shape[1]), dim=1)
        self.ids[metric] = ids.gather(1, order)


def lengths(rows_rD: Tensor) -> Tensor:
    """Of vectors; 1 in place of 0, so that a vector of zeros has cosine 0 with every other."""
    norms_r = rows_rD.norm(dim=1)
    return torch.where(norms_r > 0, norms_r, 1.0)


def depth_of(num_rows: int) -> int:
    """How many neighbours a vector among so many has, up to the largest of `DEPTHS`."""
    return max(0, min(max(DEPTHS), num_rows - 1))


def row_slices(num_rows: int, dim: int) -> Iterator[slice]:
    """Of a matrix, a few million numbers each."""
    step = max(1, _NUMBERS // max(1, dim))
    for start in range(0, num_rows, step):
        yield slice(start, min(num_rows, start + step))


def nearest_of(rows_RD: Tensor, queries: Queries, *, met: Callable[[int], None] = lambda _: None) -> Nearest:
    """The neighbours of queries among some rows.

    Args:
        rows_RD: fp32; may be mapped.
        queries: of vectors as long.
        met: is told of how many rows more were met.
    """
    found = Nearest(queries, depth=depth_of(len(rows_RD)))
    for part in row_slices(*rows_RD.shape):
        found.meet(rows_RD[part])
        met(part.stop - part.start)
    return found


def recalls(rows_RD: Tensor, true: Nearest, found: Nearest, *, start: int = 0, end: int | None = None) -> Recalls:
    """Of the nearest vectors of a query the share that is found, mean over queries.

    A vector counts as found if it is as near as the last of the true ones: of vectors that are equal, or equally near,
    any will do.

    Args:
        rows_RD: what the true neighbours are of.
        true, found: of the same queries.
        start, end: of which of the queries.

    Returns:
        By metric and depth; nothing for a depth beyond the neighbours that there are, or without queries.
    """
    told: Recalls = {}
    queries = true.queries.part(start, len(true.queries.own_Q) if end is None else end)
    last = start + len(queries.own_Q)
    for metric in METRICS:
        told[metric] = {}
        ids_QK, bounds_QK = found.ids[metric][start:last], true.scores[metric][start:last]
        depths = [depth for depth in DEPTHS if depth <= bounds_QK.shape[1]] or (
            [bounds_QK.shape[1]] if bounds_QK.shape[1] else []
        )
        if not depths or not len(ids_QK):
            continue
        scores_QK, slack_QK = _scores(rows_RD, queries, ids_QK, metric)
        for depth in depths:
            is_found = scores_QK[:, :depth] >= bounds_QK[:, depth - 1 : depth] - slack_QK[:, :depth]
            told[metric][depth] = float(is_found.float().mean())
    return told


def _scores(rows_RD: Tensor, queries: Queries, ids_QK: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """The true scores of what was found, and by how much they may be off by rounding, [Q, K]."""
    step = max(1, _NUMBERS // max(1, ids_QK.shape[1] * rows_RD.shape[1]))
    scores, slacks = [], []
    for first in range(0, len(ids_QK), step):
        own_qD = queries.rows_QD[first : first + step]
        rows_qKD = rows_RD[ids_QK[first : first + step]]
        products_qK = torch.einsum("qd,qkd->qk", own_qD, rows_qKD)
        norms_qK = lengths(rows_qKD.flatten(0, 1)).view(products_qK.shape)
        if metric == "cosine":
            products_qK, norms_qK = products_qK / norms_qK, torch.ones_like(norms_qK)
        scores.append(products_qK)
        slacks.append(_CLOSE * norms_qK * own_qD.norm(dim=1, keepdim=True))
    return torch.cat(scores), torch.cat(slacks)


def recall_at(told: Mapping[str, Mapping[int, float]], metric: str, depth: int = 10) -> float | None:
    """One of `recalls`: at a depth, or at the largest below it where there are fewer neighbours; None without any."""
    able = [at for at in told.get(metric, {}) if at <= depth]
    return told[metric][max(able)] if able else None
