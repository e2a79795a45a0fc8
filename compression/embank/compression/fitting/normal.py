"""Weighted least squares without a matrix: conjugate gradients on the normal equations (Hestenes and Stiefel, 1952)."""

from collections.abc import Callable

import torch
from torch import Tensor

_RESIDUAL = 1e-9
"""Of the right-hand side's norm, at which a solution is taken as it is: fp32 rows hold no more."""


def conjugate_gradients(
    normal: Callable[[Tensor], Tensor],
    right_RD: Tensor,
    start_RD: Tensor,
    *,
    diagonal_R1: Tensor,
    num_steps: int = 200,
) -> Tensor:
    """The x nearest to a start with `normal(x) = right`, for a symmetric `normal` without negative eigenvalues.

    Each step makes the squared error smaller, so that a few of them do no harm.

    Args:
        normal: `x -> A^T W A x`.
        right_RD: `A^T W v`.
        start_RD: to begin with; what `normal` maps to 0 of it stays.
        diagonal_R1: about the diagonal of `normal`, by which steps are scaled; rows with 0 stay.
        num_steps: at most.

    Example:
        >>> matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> right, start = torch.tensor([[3.0], [4.0]]), torch.zeros(2, 1)
        >>> found = conjugate_gradients(lambda x: matrix @ x, right, start, diagonal_R1=matrix.diag()[:, None])
        >>> found.round(decimals=4)
        tensor([[1.],
                [1.]])
    """
    scale_R1 = torch.where(diagonal_R1 > 0, 1 / torch.where(diagonal_R1 > 0, diagonal_R1, 1.0), 0.0)
    found_RD = start_RD.clone()
    residual_RD = right_RD - normal(found_RD)
    scaled_RD = residual_RD * scale_R1
    direction_RD, square = scaled_RD.clone(), float((residual_RD * scaled_RD).sum())
    goal = max(square, float((right_RD * right_RD * scale_R1).sum())) * _RESIDUAL**2
    for _ in range(num_steps):
        if square <= goal:
            break
        image_RD = normal(direction_RD)
        curvature = float((direction_RD * image_RD).sum())
        if curvature <= 0:  # rounding: there is nothing left to gain
            break
        found_RD += square / curvature * direction_RD
        residual_RD -= square / curvature * image_RD
        scaled_RD = residual_RD * scale_R1
        before, square = square, float((residual_RD * scaled_RD).sum())
        direction_RD = scaled_RD + square / before * direction_RD
    return found_RD


def sum_by(numbers_K: Tensor, values_K: Tensor, *, num: int) -> Tensor:
    """Sums of values [K, ...] by their numbers, [num, ...].

    Example:
        >>> sum_by(torch.tensor([0, 2, 0]), torch.tensor([1.0, 2.0, 3.0]), num=3)
        tensor([4., 0., 2.])
    """
    return torch.zeros(num, *values_K.shape[1:], dtype=values_K.dtype).index_add_(0, numbers_K, values_K)
