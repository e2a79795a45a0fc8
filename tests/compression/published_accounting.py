"""What the published benchmark of compressed tables chooses: one hyper-parameter for all tables, from a share of their
floats.

Zhang, Zhao, Miao, Shao, Liu, Yang, Cui, "Experimental Analysis of Large-scale Learnable Vector Storage Compression",
PVLDB 17(4), 2023, and its code in Hetu (`tools/EmbeddingMemoryCompression`). For comparisons with that benchmark only:
the methods here choose for each table, count every byte, and keep the budget that these rules may exceed.

A table is compressed only where that makes it smaller. `rate` is the number of floats over that of the plain tables.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from embank.compression.methods.tt_rec import ceil_root
from embank.tables import BudgetError


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A hyper-parameter for all tables, and what it leads to.

    Args:
        value: the hyper-parameter.
        num_compressed: tables that it makes smaller; the others stay plain.
        rate: floats over those of the plain tables, as the benchmark counts them.
    """

    value: int
    num_compressed: int
    rate: float


def _choice(value: int, *, plain: Sequence[int], compressed: Sequence[int]) -> Choice:
    kept = [min(sizes) for sizes in zip(plain, compressed, strict=True)]
    smaller = sum(small < size for small, size in zip(compressed, plain, strict=True))
    return Choice(value=value, num_compressed=smaller, rate=sum(kept) / sum(plain))


def _largest(plain: Sequence[int], size: Callable[[int, int], int], *, rate: float, most: int, method: str) -> Choice:
    """The largest value whose floats fit; `size` gives those of table i at a value, and grows with it."""

    def chosen(value: int) -> Choice:
        return _choice(value, plain=plain, compressed=[size(i, value) for i in range(len(plain))])

    value = bisect_right(range(1, most + 1), rate, key=lambda value: chosen(value).rate)
    if value < 1:
        raise BudgetError(
            f"the published rule for '{method}' has its floor at {chosen(1).rate:.6g}; the rate is {rate}"
        )
    return chosen(value)


# CompoEmb: one divisor for all tables.


def compositional(num_embeddings: Sequence[int], *, rate: float) -> Choice:
    """The divisor whose size is nearest to the rate, which it may exceed by what rounding adds.

    Example:
        >>> compositional([1000, 50], rate=0.1)
        Choice(value=14, num_compressed=2, rate=0.09904761904761905)
    """
    choices = [_compositional_at(num_embeddings, divisor) for divisor in range(1, math.isqrt(sum(num_embeddings)) + 1)]
    return min(choices, key=lambda choice: abs(choice.rate - rate))


def compositional_floor(num_embeddings: Sequence[int]) -> Choice:
    """The divisor of the fewest rows."""
    choices = [_compositional_at(num_embeddings, divisor) for divisor in range(1, math.isqrt(sum(num_embeddings)) + 1)]
    return min(choices, key=lambda choice: choice.rate)


def _compositional_at(num_embeddings: Sequence[int], divisor: int) -> Choice:
    rows = [-(-num // divisor) + divisor for num in num_embeddings]
    return _choice(divisor, plain=num_embeddings, compressed=rows)


# TT-Rec: one rank for all tables, not capped by their shapes.


def tt_rec(num_embeddings: Sequence[int], *, embedding_dim: int, rate: float) -> Choice:
    """The largest rank up to 1,000 that fits.

    Raises:
        BudgetError: rank 1 does not.
    """
    dims = tt_rec_dims(embedding_dim)
    rows = [tt_rec_rows(num) for num in num_embeddings]

    def size(i: int, rank: int) -> int:
        first, middle, last = (n * q for n, q in zip(rows[i], dims, strict=True))
        return rank * (first + middle * rank + last)

    return _largest([num * embedding_dim for num in num_embeddings], size, rate=rate, most=1000, method="tt_rec")


def tt_rec_dims(embedding_dim: int) -> tuple[int, int, int]:
    """Factors of a dim that is a power of two, doubled from the last to the first: 16 = 2 x 2 x 4.

    Raises:
        ValueError: any other dim, or less than 8; the published rule for others is another one.
    """
    if embedding_dim < 8 or embedding_dim & (embedding_dim - 1):
        raise ValueError(f"embedding_dim is {embedding_dim}; use a power of two from 8 on")
    doublings = embedding_dim.bit_length() - 1
    first, middle, last = (2 ** ((doublings + i) // 3) for i in range(3))
    return first, middle, last


def tt_rec_rows(num_embeddings: int) -> tuple[int, int, int]:
    """Row factors, the smallest first."""
    large = ceil_root(num_embeddings, 3)
    middle = math.ceil(math.sqrt(num_embeddings / large))
    return math.ceil(num_embeddings / large / middle), middle, large


# DHE: one width for the decoders of all tables, 1,024 hashes and five hidden layers.


def dhe(num_embeddings: Sequence[int], *, embedding_dim: int, rate: float) -> Choice:
    """The largest width that fits. Statistics of batch norm are not counted, nor hash constants.

    Raises:
        BudgetError: width 1 does not.
    """
    plain = [num * embedding_dim for num in num_embeddings]

    def size(i: int, width: int) -> int:
        return (1024 + 1) * width + 4 * width * (width + 1) + (embedding_dim + 1) * width + 10 * width

    return _largest(plain, size, rate=rate, most=math.isqrt(sum(plain)), method="dhe")


# ROBE: one array for all tables.


def robe(num_embeddings: Sequence[int], *, embedding_dim: int, rate: float) -> int:
    """Floats of the array.

    Example:
        >>> robe([1000, 50], embedding_dim=16, rate=0.1)
        1680
    """
    return math.floor(sum(num_embeddings) * embedding_dim * rate)
