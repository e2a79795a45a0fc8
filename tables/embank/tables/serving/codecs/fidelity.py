"""How near a coded matrix is to its rows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from embank.tables.serving.codecs.base import Coded
from embank.tables.serving.codecs.chunks import row_chunks

_NUM_QUERIES = 512


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """What a codec costs and keeps.

    Args:
        nbytes: of the coded matrix.
        share: of the fp32 rows' bytes.
        rmse: root mean square of what is lost of a number.
        cosine: mean cosine between a row and its coded form; rows of zeros are left out.
        recall: of the nearest rows of a row (at most 10, itself left out, by Euclidean distance) the share that are
            nearest among the coded rows too. Of up to 512 rows, spread evenly.

    Example:
        >>> rows_RD = torch.tensor([[0.0, 1.0], [0.0, 3.0], [0.0, 4.0]])
        >>> found = fidelity(rows_RD, encode(rows_RD, codec="binary1"))
        >>> found.share, round(found.rmse, 3), round(found.cosine, 3), found.recall
        (0.2916666666666667, 1.472, 0.707, 1.0)
    """

    nbytes: int
    share: float
    rmse: float
    cosine: float
    recall: float


@torch.no_grad()
def fidelity(rows_RD: Tensor, coded: Coded, *, num_neighbours: int = 10) -> Fidelity:
    """Compares a coded matrix to its rows, some rows at a time.

    Args:
        rows_RD: fp32, what was coded.
        coded: its form.
        num_neighbours: of the recall.

    Example:
        >>> rows_RD = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
        >>> found = fidelity(rows_RD, encode(rows_RD, codec="fp16"))
        >>> found.share, round(found.cosine, 4), found.recall > 0.99
        (0.5, 1.0, True)
    """
    num_rows = len(rows_RD)
    square, cosine, num_cosines, start = 0.0, 0.0, 0, 0
    for chunk in row_chunks(rows_RD):
        found = coded.take(torch.arange(start, start + len(chunk)))
        start += len(chunk)
        square += float((found - chunk).double().square().sum())
        own = chunk.norm(dim=1) > 0
        cosine += float(torch.nn.functional.cosine_similarity(found[own], chunk[own], dim=1, eps=1e-30).double().sum())
        num_cosines += int(own.sum())
    plain = 4 * rows_RD.numel()
    return Fidelity(
        nbytes=coded.nbytes(),
        share=coded.nbytes() / plain if plain else 1.0,
        rmse=(square / max(1, rows_RD.numel())) ** 0.5,
        cosine=cosine / num_cosines if num_cosines else 1.0,
        recall=_recall(rows_RD, coded, min(num_neighbours, num_rows - 1)),
    )


def _recall(rows_RD: Tensor, coded: Coded, num_neighbours: int) -> float:
    if num_neighbours < 1:
        return 1.0
    num_rows = len(rows_RD)
    queries_Q = torch.arange(min(_NUM_QUERIES, num_rows)) * num_rows // min(_NUM_QUERIES, num_rows)
    nearest = [_Nearest(rows_RD[queries_Q], queries_Q, num_neighbours) for _ in range(2)]
    start = 0
    for chunk in row_chunks(rows_RD, numbers=rows_RD.shape[1] << 14):  # 512 distances of each
        ids = torch.arange(start, start + len(chunk))
        start += len(chunk)
        for found, rows in zip(nearest, (chunk, coded.take(ids)), strict=True):
            found.meet(rows, ids)
    plain_QK, coded_QK = (found.ids_QK for found in nearest)
    return float((plain_QK[:, :, None] == coded_QK[:, None, :]).any(2).float().mean())


class _Nearest:
    """The nearest rows to some queries of all that were met."""

    def __init__(self, queries_QD: Tensor, own_Q: Tensor, num_neighbours: int) -> None:
        self.queries_QD, self.own_Q1 = queries_QD, own_Q[:, None]
        self.ids_QK = torch.empty(len(own_Q), 0, dtype=torch.int64)
        self.distances_QK = torch.empty(len(own_Q), 0)
        self.num_neighbours = num_neighbours

    def meet(self, rows_rD: Tensor, ids_r: Tensor) -> None:
        """Takes some rows in, by their numbers."""
        distances_Qr = torch.cdist(self.queries_QD, rows_rD, compute_mode="donot_use_mm_for_euclid_dist")
        distances_Qr = distances_Qr.masked_fill(self.own_Q1 == ids_r, float("inf"))
        distances = torch.cat([self.distances_QK, distances_Qr], dim=1)
        ids = torch.cat([self.ids_QK, ids_r.expand(len(distances), -1)], dim=1)
        self.distances_QK, order = distances.topk(min(self.num_neighbours, distances.shape[1]), dim=1, largest=False)
        self.ids_QK = ids.gather(1, order)
