"""Fits of rows on a grid of whole numbers: each to the nearest point of its own grid."""

from collections.abc import Sequence
from typing import Any

import torch

from embank.compression.parts.grid import clamp_codes, fitting_exponents, high_codes, power_of_two
from embank.tables import CurrentRows, Fitted, Fitting, NewRows, Wanted

_SMALLEST_STEP = 2.0**-100
_SHARES = torch.linspace(0.7, 1.0, 13, dtype=torch.float64)


class PowersOfTwo(Fitting):
    """Of `low_precision`: the step is the smallest power of two with which the row fits, as it is in training.

    Example:
        >>> table = build_table(method="low_precision", num_embeddings=10, embedding_dim=4)
        >>> table.fit(torch.rand(10, 4)).error < 0.01
        True
    """

    def fit(self, methods: Sequence[Any], wanted: Sequence[Wanted], rows: CurrentRows, *, seed: int) -> Fitted:
        (method,), (own,) = methods, wanted
        high_K1 = high_codes(own.ids_K, num_wide=method.num_wide)
        step_K1 = power_of_two(fitting_exponents(own.vectors_KD, high_K1))
        values_KD = (own.vectors_KD / step_K1).round() * step_K1
        return Fitted(rows={method.spec.name: NewRows(numbers_U=own.ids_K, values_Uw=values_KD)})


class Steps(Fitting):
    """Of ALPT: of each row the step with the least squared error among some, from the one with which the row's largest
    number just fits down to 0.7 of it, where the largest ones are clipped and the others are rounded more finely.

    Example:
        >>> table = build_table(method="alpt", num_embeddings=10, embedding_dim=4)
        >>> table.fit(torch.rand(10, 4)).error < 0.01
        True
    """

    def fit(self, methods: Sequence[Any], wanted: Sequence[Wanted], rows: CurrentRows, *, seed: int) -> Fitted:
        (method,), (own,) = methods, wanted
        vectors_KD, high_K1 = own.vectors_KD, high_codes(own.ids_K, num_wide=method.num_wide)
        whole_K1 = (vectors_KD.abs().amax(1, keepdim=True) / high_K1).clamp(min=_SMALLEST_STEP)
        best_KX, least_K1 = torch.empty(0), torch.full_like(whole_K1, float("inf"))
        for share in _SHARES.flip(0).tolist():
            step_K1 = whole_K1 * share
            values_KD = clamp_codes((vectors_KD / step_K1).round(), high_K1) * step_K1
            square_K1 = (values_KD - vectors_KD).square().sum(1, keepdim=True)
            found_KX = torch.cat([values_KD, step_K1], dim=1)
            best_KX = torch.where(square_K1 < least_K1, found_KX, best_KX) if best_KX.numel() else found_KX
            least_K1 = torch.minimum(least_K1, square_K1)
        return Fitted(rows={method.spec.name: NewRows(numbers_U=own.ids_K, values_Uw=best_KX)})
