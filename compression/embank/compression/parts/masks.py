"""Masks over the entries of a table, one bit each: what a search keeps, for the training after it."""

from collections.abc import Callable

import torch
from torch import Tensor

from embank.compression.parts.bits import packed_nbytes
from embank.compression.parts.row_chunks import numbered_chunks
from embank.tables import LocalRows, TableSpec

_WORD_BITS = 32
"""Columns that are read at once."""


def find_mask(
    rows: LocalRows, table: str, *, shape: tuple[int, int], keep: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The mask of a whole table, from the rows that each process holds.

    Args:
        rows: the rows held here.
        table: the physical table.
        shape: rows of the table, and width W of the mask: its dim, or 1 for a mask over rows.
        keep: rows [r, D] and their numbers [r] in the table, to bool [r, W].

    Returns:
        uint8 [ceil(R * W / 8)], bit row * W + column.
    """
    num_rows, width = shape
    stream = torch.zeros(packed_nbytes(num_rows * width, 1), dtype=torch.uint8)
    for numbers_r, chunk_rD in numbered_chunks(rows, table):
        entries_rW = numbers_r[:, None] * width + torch.arange(width)
        kept = entries_rW[keep(chunk_rD, numbers_r)]
        stream.index_add_(0, kept >> 3, (1 << (kept & 7)).byte())  # no entry comes twice, so adding is setting
    return rows.sum(stream)


def entry_mask(rows: LocalRows, spec: TableSpec, *, keep: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The mask of the entries of a plain table; see `find_mask`."""
    return find_mask(rows, spec.name, shape=(spec.num_embeddings, spec.embedding_dim), keep=keep)


def mask_of(stream: Tensor, ids_N: Tensor, *, dim: int) -> Tensor:
    """The mask of some rows, bool [N, D].

    Example:
        >>> mask_of(torch.tensor([0b00111010], dtype=torch.uint8), torch.tensor([0, 1]), dim=4)
        tensor([[False,  True, False,  True],
                [ True,  True, False, False]])
    """
    starts = torch.arange(0, dim, _WORD_BITS, device=ids_N.device)
    first_bit_NW = ids_N[:, None] * dim + starts
    first_byte_NW, shift_NW = first_bit_NW >> 3, first_bit_NW & 7
    word_NW = torch.zeros_like(first_bit_NW)
    # 32 columns and up to 7 bits before them fit into one int64, so a word is read at once, as `read_values` does it.
    for i in range((min(dim, _WORD_BITS) + 14) // 8):
        word_NW |= stream[(first_byte_NW + i).clamp_(max=stream.numel() - 1)].long() << (8 * i)
    # Each word is shifted to its first column, then once more for each column; what the last word has after `dim` goes.
    bits = (word_NW >> shift_NW)[:, :, None] >> torch.arange(min(dim, _WORD_BITS), device=ids_N.device)
    return (bits & 1).bool().flatten(1)[:, :dim]
