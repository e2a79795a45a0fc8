"""Rows that are nearly another row become that row: `dedup`.

Method `dedup` merges blocks while it trains and trains on; this codec merges rows of any trained table.

Source: Zhou et al., "Serving deep learning models with deduplication from relational databases" (PVLDB 15(10), 2022),
section 4: candidates by locality-sensitive hashing with p-stable projections (Datar et al., SoCG 2004). There what
collides often enough is merged; here a row is merged only when it is near by its own numbers, so that the loss has a
bound.

Legend: K rows that are kept.
"""

from typing import Self

import torch
from torch import Tensor

from embank.compression.parts.bits import code_bits, pack_values, read_values
from embank.tables import Held, encode
from embank.tables.ids.hashing import generator_of
from embank.tables.serving.codecs.chunks import row_chunks
from embank.tables.serving.codecs.composite import Composite

_PERCENT = 10
_ROUNDS, _PROJECTIONS, _WIDTH = 8, 4, 4.0
"""With these two rows at the largest distance that is merged are met with probability .98."""


class DedupRows(Composite):
    """Rows that are kept, held by another codec, and for each row the number of the one that stands for it.

    A row stands for another if they differ, in the root mean square over columns, by at most 10% of the standard
    deviation of all numbers, or by as many percent as the codec's number says. The first one stays: the most frequent,
    where ids are ranked.

    Example:
        >>> rows_RD = torch.tensor([[1.0, 2.0], [5.0, 6.0], [1.01, 2.0], [1.0, 2.0]])
        >>> coded = encode(rows_RD, codec="dedup")
        >>> coded.take(torch.arange(4)).tolist(), coded.nbytes()
        ([[1.0, 2.0], [5.0, 6.0], [1.0, 2.0], [1.0, 2.0]], 17)
    """

    held = Held(facts=("parts", "bits"), sizes=("bits",))
    arguments = ("number", "inner")
    map: Tensor

    def __init__(self, rows_RD: Tensor, *, percent: int, inner: str) -> None:
        super().__init__()
        rows_RD = rows_RD.detach()
        kept_K, number_R = torch.unique(_stand_ins(rows_RD, share=percent / 100), return_inverse=True)
        self.bits = code_bits(max(1, len(kept_K)))
        self.hold("kept", encode(rows_RD[kept_K], codec=inner))
        self.register_buffer("map", pack_values(number_R, bits=self.bits))

    @classmethod
    def encode(cls, rows_RD: Tensor, *, number: int = _PERCENT, inner: str = "fp32") -> Self:
        return cls(rows_RD, percent=number, inner=inner)

    def take(self, rows_N: Tensor) -> Tensor:
        return self.part("kept").take(read_values(self.map, rows_N, bits=self.bits))


def _stand_ins(rows_RD: Tensor, *, share: float) -> Tensor:
    """For each row the one that stands for it, int64 [R]."""
    num_rows, dim = rows_RD.shape
    stand_in_R = torch.arange(num_rows)
    if not rows_RD.numel():
        return stand_in_R
    if torch.equal(*rows_RD.aminmax()):
        return torch.zeros_like(stand_in_R)  # all numbers are one
    mean = sum(float(chunk.double().sum()) for chunk in row_chunks(rows_RD)) / rows_RD.numel()
    squares = sum(float((chunk.double() - mean).square().sum()) for chunk in row_chunks(rows_RD))
    deviation = (squares / rows_RD.numel()) ** 0.5
    radius = share * deviation * dim**0.5
    stands_R = torch.zeros(num_rows, dtype=torch.bool)  # for another row already, which must stay as near to its own
    left = stand_in_R
    for turn in range(_ROUNDS):
        leader = _leaders(_buckets(rows_RD, left, width=_WIDTH * radius, turn=turn), left)
        pairs_L2 = torch.stack([left, leader], dim=1)
        distances = [(rows_RD[p[:, 0]] - rows_RD[p[:, 1]]).double().norm(dim=1) for p in row_chunks(pairs_L2)]
        near = torch.cat(distances) <= radius
        merged = near & (leader != left) & ~stands_R[left]
        stand_in_R[left[merged]] = leader[merged]
        stands_R[leader[merged]] = True
        left = left[~merged]
    return stand_in_R


def _buckets(rows_RD: Tensor, left: Tensor, *, width: float, turn: int) -> Tensor:
    """A number for each row that is left; near rows are likely to share it."""
    generator = generator_of(turn, "dedup")
    directions_DP = torch.randn(rows_RD.shape[1], _PROJECTIONS, dtype=torch.float64, generator=generator)
    shifts_P = torch.rand(_PROJECTIONS, dtype=torch.float64, generator=generator)
    mixers_P = torch.randint(1 << 62, (_PROJECTIONS,), generator=generator) | 1
    numbers = []
    for chunk in row_chunks(left[:, None], numbers=1 << 16):
        cells = (rows_RD[chunk[:, 0]].double() @ directions_DP / width + shifts_P).floor().long()
        numbers.append((cells * mixers_P).sum(1))  # wraps around, which is as good as any
    return torch.cat(numbers)


def _leaders(bucket: Tensor, left: Tensor) -> Tensor:
    """The first row of each row's bucket."""
    kinds, kind = torch.unique(bucket, return_inverse=True)
    first = torch.full_like(kinds, int(left.max())).scatter_reduce(0, kind, left, "amin")
    return first[kind]
