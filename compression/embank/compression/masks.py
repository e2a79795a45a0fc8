"""Masks over the entries of a table, one bit each: what a search keeps, for the training after it."""

from collections.abc import Callable

import torch
from torch import Tensor

from embank.compression.bits import packed_nbytes, read_values
from embank.compression.walks import numbered_chunks
from embank.tables import LocalRows, TableSpec


def find_mask(spec: TableSpec, rows: LocalRows, *, keep: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The mask of a whole table, from the rows that each process holds.

    Args:
        spec: the table, whose physical table has its name.
        rows: the rows held here.
        keep: rows [r, D] and their numbers [r] in the table, to bool [r, D].

    Returns:
        uint8 [ceil(N * D / 8)], bit row * D + column.
    """
    dim = spec.embedding_dim
    stream = torch.zeros(packed_nbytes(spec.num_embeddings * dim, 1), dtype=torch.uint8)
    for numbers_r, chunk_rD in numbered_chunks(rows, spec.name):
        kept = numbers_r[:, None] * dim + torch.arange(dim)
        kept = kept[keep(chunk_rD, numbers_r)]
        bits = (1 << (kept & 7)).to(torch.uint8)
        stream.index_add_(0, kept >> 3, bits)  # no entry comes twice, so adding is setting
    return rows.sum(stream)


def mask_of(stream: Tensor, ids_N: Tensor, *, dim: int) -> Tensor:
    """The mask of some rows, bool [N, D]."""
    entries_ND = ids_N[:, None] * dim + torch.arange(dim, device=ids_N.device)
    return read_values(stream, entries_ND, bits=1).bool()
