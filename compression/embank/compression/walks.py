"""Ways through the rows that a process holds, in bounded memory. What methods know of where rows are is here alone."""

from collections.abc import Iterator

import torch
from torch import Tensor

from embank.tables import LocalRows

ENTRIES_PER_CHUNK = 1 << 22


def row_chunks(rows_RD: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Views of some rows at a time, each with the place of its first row."""
    size = max(1, ENTRIES_PER_CHUNK // rows_RD.shape[1])
    for start in range(0, rows_RD.shape[0], size):
        yield start, rows_RD[start : start + size]


def numbered_chunks(rows: LocalRows, table: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows of a table that are held here, some at a time, each with its number in the table: int64 [r], fp32 [r, D].

    Sums over these, added over all processes, count every row of the table once.
    """
    first_row = rows.first_row(table)
    for start, chunk in row_chunks(rows[table]):
        yield torch.arange(first_row + start, first_row + start + chunk.shape[0]), chunk


def fetch(rows: LocalRows, table: str, ids_N: Tensor) -> Tensor:
    """A few rows [N, D] of a table wherever they are held. All processes must call it with the same ids."""
    held = rows[table]
    places_N = ids_N - rows.first_row(table)
    is_here_N = (places_N >= 0) & (places_N < held.shape[0])
    found_ND = held.new_zeros(ids_N.numel(), held.shape[1])
    found_ND[is_here_N] = held[places_N[is_here_N]]
    return rows.sum(found_ND)
