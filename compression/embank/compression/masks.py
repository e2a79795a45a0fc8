"""Masks over the entries of a table, one bit each: what a search keeps, for the training after it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from embank.compression.bits import pack_values, packed_nbytes, read_values
from embank.compression.walks import row_chunks
from embank.tables import LocalRows, TableSpec


def find_mask(spec: TableSpec, rows: LocalRows, *, keep: Callable[[Tensor, int], Tensor]) -> Tensor:
    """The mask of a whole table, from the rows that each process holds.

    Args:
        spec: the table, whose physical table has its name.
        rows: the rows held here.
        keep: rows [r, D] and the first one's number in the table, to bool [r, D].

    Returns:
        uint8 [ceil(N * D / 8)], bit row * D + column.
    """
    dim = spec.embedding_dim
    stream = torch.zeros(packed_nbytes(spec.num_embeddings * dim, 1), dtype=torch.uint8)
    first_row = rows.first_row(spec.name)
    for start, chunk in row_chunks(rows[spec.name]):
        entry = (first_row + start) * dim
        bits = F.pad(keep(chunk, first_row + start).reshape(-1), (entry % 8, 0))
        octets = pack_values(bits, bits=1)
        stream[entry // 8 : entry // 8 + octets.numel()] |= octets
    return rows.sum(stream)  # the parts have no bit in common


def mask_of(stream: Tensor, ids_N: Tensor, *, dim: int) -> Tensor:
    """The mask of some rows, bool [N, D]."""
    entries_ND = ids_N[:, None] * dim + torch.arange(dim, device=ids_N.device)
    return read_values(stream, entries_ND, bits=1).bool()
