"""Rows by the chunk: what a codec makes of a table of many GB takes little more memory than its result."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

import torch
from torch import Tensor

NUMBERS_PER_CHUNK = 1 << 20
NUMBERS_IN_MEMORY = 1 << 26


def row_chunks(rows_RD: Tensor, *, multiple: int = 1, numbers: int = NUMBERS_PER_CHUNK) -> Iterator[Tensor]:
    """Consecutive rows, [r, D]: about so many numbers each.

    Args:
        rows_RD: any.
        multiple: of rows; only the last chunk may have another number.
        numbers: of a chunk.

    Example:
        >>> [len(chunk) for chunk in row_chunks(torch.zeros(10, 2), multiple=3, numbers=8)]
        [3, 3, 3, 1]
    """
    size = max(1, numbers // max(1, rows_RD.shape[1]) // multiple) * multiple
    for start in range(0, len(rows_RD), size):
        yield rows_RD[start : start + size]


def spread(rows_RD: Tensor, *, num_rows: int) -> Tensor:
    """At most so many rows, spread evenly; all of them as they are.

    Example:
        >>> spread(torch.arange(10.0)[:, None], num_rows=3).T
        tensor([[0., 3., 6.]])
    """
    num = min(num_rows, len(rows_RD))
    return rows_RD if num == len(rows_RD) else rows_RD[torch.arange(num) * len(rows_RD) // num]


def intermediate(num_rows: int, dim: int) -> Tensor:
    """Room for fp32 [R, D] on the way to codes. Of more than a quarter of a GiB it is a file without a name in the
    folder of temporary files, whose pages the system may take back, if there is room for one.

    Example:
        >>> intermediate(3, 2).shape
        torch.Size([3, 2])
    """
    if num_rows * dim > NUMBERS_IN_MEMORY:
        with contextlib.suppress(OSError), tempfile.NamedTemporaryFile() as file:
            os.posix_fallocate(file.fileno(), 0, 4 * num_rows * dim)  # a page that finds no room later would kill
            return torch.from_file(file.name, shared=True, size=num_rows * dim, dtype=torch.float32).view(num_rows, dim)
    return torch.empty(num_rows, dim)
