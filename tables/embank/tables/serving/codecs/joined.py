"""Matrices that lie in one piece of memory, as those of a bundle's file do: rows of all of them in one call.

Legend: K matrices, R_k rows of one, W numbers of a row, B ids of each, N = B K.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


_FEW = 512
"""Ids of each matrix up to which one call for all of them is faster than a call for each: beyond, the rows of one after
the other stay in a core's cache."""


def joint_or_each(
    joint: Callable[[Tensor], Tensor], each: Sequence[Callable[[Tensor], Tensor]]
) -> Callable[[Tensor], Tensor]:
    """What takes rows [B K, D] of ids [K, B] the faster way.

    Args:
        joint: takes all at once.
        each: takes rows [B, D] of ids [B] of one matrix.
    """

    def taken(rows_KB: Tensor) -> Tensor:
        if rows_KB.shape[1] <= _FEW:
            return joint(rows_KB)
        return torch.stack([take(rows_B) for take, rows_B in zip(each, rows_KB, strict=True)], dim=1).flatten(0, 1)

    return taken


def place_of(rows_RW: Tensor) -> tuple[int, int, int]:
    """What matrices have in common whose rows one matrix can give: memory, width, and where in a row of it they
    begin."""
    width = rows_RW.shape[1]
    return rows_RW.untyped_storage().data_ptr(), width, int(rows_RW.storage_offset()) % max(width, 1)


class Joined:
    """Several matrices of one place (`place_of`) as one.

    Between them may lie others, whose numbers this matrix shows as well, and nobody asks for.

    Args:
        matrices: [R_k, W] each, W at least 1.

    Attributes:
        rows: [R, W], from the first row of any to the last one.
        first_K1: the first row of each.

    Example:
        >>> memory = torch.arange(12.0)
        >>> joined = Joined([memory[8:].view(2, 2), memory[:4].view(2, 2)])
        >>> joined.rows.index_select(0, joined.places(torch.tensor([[1], [0]])))
        tensor([[10., 11.],
                [ 0.,  1.]])
    """

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        width, starts = matrices[0].shape[1], [int(matrix.storage_offset()) for matrix in matrices]
        ends = [start + matrix.numel() for start, matrix in zip(starts, matrices, strict=True)]
        first = min(starts)
        self.rows = matrices[0].as_strided(((max(ends) - first) // width, width), (width, 1), first)
        self.first_K1 = torch.tensor([[(start - first) // width] for start in starts])

    def places(self, rows_KB: Tensor) -> Tensor:
        """Rows [N] of the one matrix for rows of each: those of the first id of all matrices come first."""
        return (rows_KB + self.first_K1).t().flatten()
