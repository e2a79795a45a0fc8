"""The rows that a process holds, some at a time, in bounded memory. What methods know of where rows are is here
alone."""

from collections.abc import Iterator

import torch
from torch import Tensor

from embank.tables import LocalRows

ENTRIES_PER_CHUNK = 1 << 22


def row_chunks(rows_RD: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Views of some rows at a time, each with the position of its first row."""
    size = max(1, ENTRIES_PER_CHUNK // rows_RD.shape[1])
    for start in range(0, rows_RD.shape[0], size):
        yield start, rows_RD[start : start + size]


def numbered_chunks(rows: LocalRows, table: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows of a table that are held here, some at a time, each with its number in the table: int64 [r], fp32 [r,
    D], on the host.

    Sums over these, added over all processes, count every row of the table once.
    """
    if not rows.is_counted(table):
        return
    for start, held in row_chunks(rows[table]):
        chunk = held.cpu()
        numbers_r = rows.row_numbers(table, start, start + chunk.shape[0])
        is_row_r = numbers_r >= 0
        yield (numbers_r, chunk) if bool(is_row_r.all()) else (numbers_r[is_row_r], chunk[is_row_r])


def fetch(rows: LocalRows, table: str, ids_N: Tensor) -> Tensor:
    """A few rows [N, D] of a table wherever they are held. All processes must call it with the same ids."""
    rows_ND = torch.zeros(ids_N.numel(), rows[table].shape[1], dtype=torch.float32)
    if rows.is_counted(table):
        held, local = rows.find(table, ids_N)
        rows_ND[held] = rows[table][local].cpu()
    return rows.sum(rows_ND)  # zeros wherever another process has the row
