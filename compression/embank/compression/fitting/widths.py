"""Fits of narrow rows and a projection: the truncated singular value decomposition.

Rows r [N, d] times a projection P [d, D] make the least weighted squared error where the rows of P are the d
eigenvectors of `sum_i w_i v_i v_i^T` with the largest eigenvalues, and `r_i = P v_i` (Eckart and Young, 1936; a row is
free once P is, so weights enter through P alone). With a bias, vectors are taken less their weighted mean (principal
components).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from embank.compression.fitting.means import chunks
from embank.tables import ConfigError, CurrentRows, Fitted, Fitting, NewRows, OwnRows, Wanted


class NarrowSvd(Fitting):
    """Of rows of a width and one projection (`NarrowRows`): exact. Ids without a vector keep their logical row, as far
    as the new projection has it.

    Example:
        >>> table = build_table(method="uniform_dim", num_embeddings=100, embedding_dim=8, budget=0.5)
        >>> table.fit(torch.randn(100, 3) @ torch.randn(3, 8)).error < 1e-5  # its rows have 3 columns
        True
    """

    def fit(self, methods: Sequence[Any], wanted: Sequence[Wanted], rows: CurrentRows, *, seed: int) -> Fitted:
        (method,), (own,) = methods, wanted
        name, before = method.spec.name, method.widening.weight
        if before is None:
            return OwnRows().fit(methods, wanted, rows, seed=seed)
        projection_dD = principal_rows(second_moments(own), method.dim)
        values = rows.gathered(name, torch.arange(method.spec.num_embeddings))
        values = values @ (before.detach().cpu() @ projection_dD.T)
        values[own.ids_K] = own.vectors_KD @ projection_dD.T
        new = NewRows(numbers_U=torch.arange(len(values)), values_Uw=values)
        return Fitted(rows={name: new}, dense={name: {"widening.weight": projection_dD}})


class WidthSvd(Fitting):
    """Of a table whose width is searched (AutoDim): once it is chosen, principal components and their mean. While it is
    searched, the logits of the widths become the squared errors that each leaves, so that the choice within the budgets
    of all tables leaves the least in all.

    Example:
        >>> table = build_table(method="autodim", num_embeddings=100, embedding_dim=8, budget=0.8)
        >>> table.fit(torch.randn(100, 4) @ torch.randn(4, 8) + 3).error < 1e-5  # its rows have 4 columns
        True
    """

    def fit(self, methods: Sequence[Any], wanted: Sequence[Wanted], rows: CurrentRows, *, seed: int) -> Fitted:
        (method,), (own,) = methods, wanted
        name = method.spec.name
        if method.spec.stage == 0:
            raise ConfigError(
                f"table '{name}': method '{method.spec.method}' still searches its width, with rows of every candidate "
                "normalised by the batch, which can't be fitted; embank.tables.fit_tables chooses the width by the "
                "vectors and fits what is served"
            )
        (width,) = method.widths
        projection = method.projections[0]
        bias_D = mean(own)
        weight_cD = principal_rows(second_moments(own, mean_D=bias_D), width)
        table = method.physical[0].name
        values = rows.gathered(table, torch.arange(method.spec.num_embeddings))
        before_ND = values @ projection.weight.detach().cpu() + projection.bias.detach().cpu()
        values = (before_ND - bias_D.float()) @ weight_cD.T
        values[own.ids_K] = (own.vectors_KD.double() - bias_D).float() @ weight_cD.T
        new = NewRows(numbers_U=torch.arange(len(values)), values_Uw=values)
        dense = {"projections.0.weight": weight_cD, "projections.0.bias": bias_D.float()}
        return Fitted(rows={table: new}, dense={name: dense})

    def guide(self, methods: Sequence[Any], wanted: Sequence[Wanted], rows: CurrentRows, *, seed: int) -> Fitted:
        (method,), (own,) = methods, wanted
        kept_D = torch.linalg.eigvalsh(second_moments(own, mean_D=mean(own))).flip(0).clamp(min=0).cumsum(0)
        lost_C = kept_D[-1] - kept_D[torch.tensor(method.widths) - 1]
        return Fitted(rows={}, dense={method.spec.name: {"logits": -lost_C.float()}})


def mean(wanted: Wanted) -> Tensor:
    """The weighted mean of the vectors, float64 [D]."""
    weights_K = wanted.weights_K.double()
    mean_D: Tensor = weights_K @ wanted.vectors_KD.double() / weights_K.sum()
    return mean_D


def second_moments(wanted: Wanted, *, mean_D: Tensor | None = None) -> Tensor:
    """`sum_i w_i v_i v_i^T` of vectors, less their mean if it is given: float64 [D, D]."""
    dim = wanted.vectors_KD.shape[1]
    total_DD = torch.zeros(dim, dim, dtype=torch.float64)
    for _, vectors_kD, weights_k in chunks(wanted, width=dim):
        centred_kD = vectors_kD if mean_D is None else vectors_kD - mean_D
        total_DD += centred_kD.T @ (centred_kD * weights_k[:, None])
    return total_DD


def principal_rows(moments_DD: Tensor, num: int) -> Tensor:
    """The eigenvectors of the largest eigenvalues as rows, fp32 [num, D]."""
    _, vectors_DD = torch.linalg.eigh(moments_DD)
    rows_dD: Tensor = vectors_DD.flip(1)[:, :num].T.float().contiguous()
    return rows_dD
