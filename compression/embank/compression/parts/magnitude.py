"""Pruning by magnitude to a byte budget: one exact threshold over all tables of a method, in two passes.

The bits of a non-negative float, read as an integer, are in the order of the floats. So the k-th largest magnitude is
found by
a radix select: a histogram of the upper 16 bits, then one of the lower 16 bits within the bin that holds the answer.
Only histograms cross processes, and no copy of a table is made.
"""

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from embank.compression.budget.floors import refuse_both, refuse_small_budget
from embank.compression.parts.row_chunks import numbered_chunks
from embank.compression.parts.sparse import max_nonzeros, sparse_nbytes
from embank.tables import ConfigError, LocalRows, TableSpec

_BINS = 1 << 16

Transform = Callable[[Tensor, Tensor], Tensor]
"""Rows [r, D] and their numbers [r] in the table, to rows."""


class Pruned(Protocol):
    """A method whose table is pruned.

    Attributes:
        nbytes: serving bytes that it brings to the pool; None where it has no limit.
    """

    spec: TableSpec

    @property
    def nbytes(self) -> int | None: ...


Magnitudes = Callable[[], Iterator[Tensor]]
"""Non-negative fp32 values of one table, a part of the table at a time; may be called several times."""


def magnitudes(rows: LocalRows, table: str, transform: Transform | None = None) -> Magnitudes:
    """The absolute values of a table's entries.

    Args:
        rows: the rows held by this process.
        table: the physical table.
        transform: applied to some rows [r, D], given with their numbers [r] in the table, before taking absolute
            values.
    """

    def chunks() -> Iterator[Tensor]:
        for numbers_r, chunk_rD in numbered_chunks(rows, table):
            yield (chunk_rD if transform is None else transform(chunk_rD, numbers_r)).abs()

    return chunks


def cut(tables: Sequence[Magnitudes], *, fits: Callable[[Tensor], Tensor], total: Callable[[Tensor], Tensor]) -> float:
    """The smallest positive threshold such that keeping what is at or above it fits. Zeros are never kept.

    Entries that are equal to each other are kept or dropped together.

    Args:
        tables: T tables.
        fits: int64 [T, M], entries kept of each table for M thresholds, to bool [M]. Keeping fewer must fit whenever
            keeping more does, and keeping none must fit.
        total: sums a tensor over all processes.
    """
    coarse = total(_histograms(tables, lambda bits: bits >> 16))
    first, above_T = _first_fitting(coarse, fits, torch.zeros(len(tables), dtype=torch.int64))
    if first == 0:
        return _float_of(1)
    bin_ = first - 1  # keeping all of it is too much, keeping none of it is not
    fine = total(_histograms(tables, lambda bits: bits[bits >> 16 == bin_] & (_BINS - 1)))
    return _float_of((bin_ << 16) + _first_fitting(fine, fits, above_T)[0])


def _histograms(tables: Sequence[Magnitudes], key: Callable[[Tensor], Tensor]) -> Tensor:
    counts = torch.zeros(len(tables), _BINS, dtype=torch.int64)
    for count, chunks in zip(counts, tables, strict=True):
        for chunk in chunks():
            bits = chunk.reshape(-1).view(torch.int32)
            count += torch.bincount(key(bits), minlength=_BINS).cpu()
            zeros = key(bits.new_zeros(1)).cpu()  # counted and taken off again, which is quicker than leaving them out
            count[zeros] -= bits.numel() - int(bits.count_nonzero())
    return counts


def _first_fitting(counts: Tensor, fits: Callable[[Tensor], Tensor], above_T: Tensor) -> tuple[int, Tensor]:
    """The first of some bins such that keeping the entries in and above it fits, and how many these are.

    Args:
        counts: int64 [T, bins], entries in each bin.
        fits: see `cut`.
        above_T: entries above all bins.
    """
    up_to = counts.cumsum(1)
    all_T = above_T + up_to[:, -1]

    def kept(first: int) -> Tensor:
        return all_T - up_to[:, first - 1] if first else all_T

    def is_fitting(first: int) -> bool:
        return bool(fits(kept(first)[:, None]))

    first = bisect_left(range(counts.shape[1]), True, key=is_fitting)
    return first, kept(first)


def _float_of(bits: int) -> float:
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))


def allowed_nbytes(spec: TableSpec, *, density: float | None) -> int:
    """Serving bytes of a table that is pruned entry by entry.

    Args:
        spec: its budget decides, or where there is none the density.
        density: share of entries that is kept; None keeps all.

    Raises:
        BudgetError: the budget does not hold one entry.
        ConfigError: both a budget and a density, or a density outside (0, 1].
    """
    num_entries = spec.num_embeddings * spec.embedding_dim
    if density is not None:
        refuse_both(spec, density=density)
        if not 0 < density <= 1:
            raise ConfigError(
                f"table '{spec.name}' has density {density}; it is the share of entries kept and lies in (0, 1]"
            )
        return int(sparse_nbytes(num_entries, torch.tensor(math.ceil(density * num_entries))))
    if spec.budget is None:
        return spec.plain_nbytes
    floor = int(sparse_nbytes(num_entries, torch.tensor(1)))
    refuse_small_budget(spec, needs="one entry and its place", floor_nbytes=floor)
    return math.floor(spec.budget * spec.plain_nbytes)


def cut_to_bytes(
    specs: Sequence[TableSpec], tables: Sequence[Magnitudes], *, nbytes: int, total: Callable[[Tensor], Tensor]
) -> float:
    """The threshold above which all tables together, each in its best sparse form, take at most some bytes."""

    def fits(kept_TM: Tensor) -> Tensor:
        entries = [spec.num_embeddings * spec.embedding_dim for spec in specs]
        sizes = [sparse_nbytes(size, kept) for size, kept in zip(entries, kept_TM, strict=True)]
        return torch.stack(sizes).sum(0) <= nbytes

    return cut(tables, fits=fits, total=total)


def common_cut(
    methods: Sequence[Pruned], rows: LocalRows, *, transforms: Sequence[Transform | None] | None = None
) -> float:
    """The threshold that fits the pool of some tables' bytes.

    Args:
        methods: of the tables.
        rows: the rows held by this process.
        transforms: for each table what its entries are measured by, see `magnitudes`.
    """
    pairs = zip(methods, transforms or [None] * len(methods), strict=True)
    tables = [magnitudes(rows, method.spec.name, transform) for method, transform in pairs]
    nbytes = sum(method.nbytes or 0 for method in methods)
    return cut_to_bytes([method.spec for method in methods], tables, nbytes=nbytes, total=rows.sum)


def cut_to_count(tables: Sequence[Magnitudes], *, count: int, total: Callable[[Tensor], Tensor]) -> float:
    """The threshold above which at most `count` entries remain in all tables together."""
    as_one = [lambda: itertools.chain.from_iterable(chunks() for chunks in tables)]
    return cut(as_one, fits=lambda kept_TM: kept_TM[0] <= count, total=total)


def kept_by_bytes(spec: TableSpec, nbytes: int) -> int:
    """Entries of a table that some bytes hold."""
    return max_nonzeros(spec.num_embeddings * spec.embedding_dim, nbytes)
