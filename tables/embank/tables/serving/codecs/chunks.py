"""Rows by the chunk: what a codec makes of a table of many GB takes little more memory than its result."""

from collections.abc import Iterator

from torch import Tensor

NUMBERS_PER_CHUNK = 1 << 20


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
