"""Fits of product codes: k-means in every part of the rows (Lloyd, 1982; Jégou, Douze, Schmid, 2011), with weights, and
with fewer centroids to choose from for ids outside the head."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from embank.compression.codecs.codes import nearest_codes
from embank.compression.fitting.normal import sum_by
from embank.tables import CurrentRows, Fitted, OwnRows, Wanted
from embank.tables.ids.hashing import generator_of

_SAMPLE = 1 << 16
_STEPS = 30


class Centroids(OwnRows):
    """Of `dpq` and `mgqe`: rows become the vectors, as training holds them, and centroids what is nearest to them: in
    turn each part goes to its nearest centroid among those that its id may use, and each centroid to the weighted mean
    of its parts. One that nothing chooses goes to the part that is farthest from its own. 65,536 ids at most decide,
    the heaviest ones for one half and others spread evenly.

    Example:
        >>> options = method_class("dpq").Config(num_codebooks=2, num_codes=4)
        >>> table = build_table(method="dpq", num_embeddings=100, embedding_dim=4, options=options)
        >>> parts_4w = torch.randn(4, 2)  # rows of four parts
        >>> rows_ND = torch.cat([parts_4w[torch.arange(100) % 4], parts_4w[torch.arange(100) // 25]], dim=1)
        >>> table.fit(rows_ND).error < 1e-6
        True
    """

    def fit(self, methods: Sequence[Any], wanted: Sequence[Wanted], rows: CurrentRows, *, seed: int) -> Fitted:
        (method,), (own,) = methods, wanted
        shape, name = method.quantiser.shape, method.spec.name
        sample = _sample(own)
        centroids = weighted_k_means(
            sample.vectors_KD,
            sample.weights_K,
            sample.ids_K < shape.num_head,
            shape=tuple(method.quantiser.centroids.shape),
            num_tail_codes=shape.num_tail_codes,
            generator=generator_of(seed, "fit codes", name),
        )
        plain = super().fit(methods, wanted, rows, seed=seed)
        return Fitted(rows=plain.rows, dense={name: {"quantiser.centroids": centroids}})


def _sample(wanted: Wanted) -> Wanted:
    num = len(wanted.ids_K)
    if num <= _SAMPLE:
        return wanted
    half = _SAMPLE // 2
    chosen = torch.unique(torch.cat([wanted.weights_K.topk(half).indices, torch.arange(half) * num // half]))
    return Wanted(ids_K=wanted.ids_K[chosen], vectors_KD=wanted.vectors_KD[chosen], weights_K=wanted.weights_K[chosen])


def weighted_k_means(
    rows_KD: Tensor,
    weights_K: Tensor,
    is_head_K: Tensor,
    *,
    shape: tuple[int, ...],
    num_tail_codes: int,
    generator: torch.Generator,
) -> Tensor:
    """Centroids fp32 [C, codes, w].

    Args:
        rows_KD: fp32.
        weights_K: how much each counts.
        is_head_K: which rows choose among all centroids; the others among the first `num_tail_codes`.
        shape: C, codes and w.
        num_tail_codes: see `is_head_K`.
        generator: of the rows to begin with.
    """
    num_books, num_codes, width = shape
    parts_KCw = rows_KD.view(len(rows_KD), num_books, width)
    waited_K = torch.empty(len(rows_KD), dtype=torch.float64).exponential_(generator=generator) / weights_K
    order = waited_K.argsort()  # drawn by weight, without replacement
    head = order[is_head_K[order]] if bool(is_head_K.any()) else order
    num_tail = min(num_tail_codes, num_codes)
    drawn = torch.cat([_cycled(order, num_tail), _cycled(head.flip(0), num_codes - num_tail)])
    centroids = parts_KCw[drawn].transpose(0, 1).contiguous()
    for _ in range(_STEPS):
        codes_KC = nearest_codes(rows_KD, centroids, is_head_K, num_tail_codes=num_tail_codes)
        moved = torch.empty_like(centroids)
        for book in range(num_books):
            moved[book] = _means(
                parts_KCw[:, book], weights_K, codes_KC[:, book], is_head_K, before=centroids[book], num_tail=num_tail
            )
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids


def _cycled(order: Tensor, num: int) -> Tensor:
    """The first so many, over and over where there are fewer."""
    return order[torch.arange(num) % len(order)]


def _means(
    parts_Kw: Tensor, weights_K: Tensor, codes_K: Tensor, is_head_K: Tensor, *, before: Tensor, num_tail: int
) -> Tensor:
    """The centroids of one book, moved to the means of their parts."""
    weights = weights_K.double()
    total = sum_by(codes_K, weights, num=len(before))
    sums = sum_by(codes_K, weights[:, None] * parts_Kw.double(), num=len(before))
    moved = torch.where(total[:, None] > 0, sums / total.clamp(min=1e-300)[:, None], before.double()).float()
    empty = (total == 0).nonzero()[:, 0].tolist()
    if not empty:
        return moved
    far_K = (parts_Kw - moved[codes_K]).square().sum(1) * weights_K
    for code in empty:
        allowed_K = far_K if code < num_tail else far_K * is_head_K
        taken = int(allowed_K.argmax())
        if allowed_K[taken] > 0:
            moved[code] = parts_Kw[taken]
            far_K[taken] = 0
    return moved
