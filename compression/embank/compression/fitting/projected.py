"""Fits of hashed rows that a learned matrix projects: Unified Embedding whose lookups are not the embedding dim."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from embank.compression.fitting.means import Means
from embank.compression.fitting.normal import conjugate_gradients, sum_by
from embank.compression.fitting.sums import FEW_STEPS, FEW_TURNS, Turns, all_rows, current
from embank.tables import CurrentRows, Fitted, PhysicalTable, Wanted, physical_tables


class ProjectedRows(Means):
    """Of Unified Embedding. Without a projection each number of a logical row is a stored one: weighted means. With
    one, `sum_l row_l P_l`, in turn the rows by conjugate gradients, and of each table its matrices by least squares;
    tables that read the same rows together.

    Example:
        >>> options = method_class("unified").Config(width=4, lookups=1, rows=30)
        >>> table = build_table(method="unified", num_embeddings=10, embedding_dim=6, options=options)
        >>> table.fit(torch.randn(10, 4) @ torch.randn(4, 6)).error < 0.7
        True
    """

    def fit(self, methods: Sequence[Any], wanted: Sequence[Wanted], rows: CurrentRows, *, seed: int) -> Fitted:
        if not any(method.has_projection for method in methods):
            return super().fit(methods, wanted, rows, seed=seed)
        tables = list(dict.fromkeys(table for method in methods for table in physical_tables(method)))
        firsts = dict(
            zip(tables, torch.tensor([0, *(t.num_embeddings for t in tables)]).cumsum(0).tolist(), strict=False)
        )
        x_Rw = torch.cat([current(rows, table) for table in tables])
        readers = [_Reader.of(method, own, firsts) for method, own in zip(methods, wanted, strict=True)]
        turns, square = Turns(FEW_TURNS), float("inf")
        while turns.go_on(square):
            x_Rw = conjugate_gradients(
                lambda x: torch.stack([one.back(one.weights_K1 * one.looked_up(x), len(x)) for one in readers]).sum(0),
                torch.stack([one.back(one.weights_K1 * one.vectors_KD, len(x_Rw)) for one in readers]).sum(0),
                x_Rw,
                diagonal_R1=torch.stack([one.diagonal(len(x_Rw)) for one in readers]).sum(0),
                num_steps=FEW_STEPS,
            )
            for one in readers:
                one.solve_matrices(x_Rw)
            square = sum(one.square(x_Rw) for one in readers)
        parts = torch.split(x_Rw, [table.num_embeddings for table in tables])
        return Fitted(
            rows={table.name: all_rows(part) for table, part in zip(tables, parts, strict=True)},
            dense={
                method.spec.name: {"projection": one.matrices_lwD.float()}
                for method, one in zip(methods, readers, strict=True)
                if method.has_projection
            },
        )


@dataclass
class _Reader:
    """A table that reads rows by several lookups, each times a matrix; without a projection the matrices place the
    lookups side by side."""

    numbers_LK: list[Tensor]
    matrices_lwD: Tensor
    learns: bool
    vectors_KD: Tensor
    weights_K1: Tensor

    @classmethod
    def of(cls, method: Any, wanted: Wanted, firsts: dict[PhysicalTable, int]) -> "_Reader":
        addressed = zip(method.physical, method.address(wanted.ids_K), strict=True)
        num, width, dim = len(method.physical), method.physical[0].embedding_dim, method.spec.embedding_dim
        learned = method.projection.detach().cpu().double() if method.has_projection else None
        matrices = torch.eye(dim, dtype=torch.float64).view(num, width, dim) if learned is None else learned
        return cls(
            numbers_LK=[row_K + firsts[table] for table, row_K in addressed],
            matrices_lwD=matrices,
            learns=learned is not None,
            vectors_KD=wanted.vectors_KD.double(),
            weights_K1=wanted.weights_K.double()[:, None],
        )

    def looked_up(self, x_Rw: Tensor) -> Tensor:
        """Logical rows [K, D]."""
        found_KD = torch.zeros_like(self.vectors_KD)
        for number_K, matrix_wD in zip(self.numbers_LK, self.matrices_lwD, strict=True):
            found_KD += x_Rw[number_K] @ matrix_wD
        return found_KD

    def back(self, rows_KD: Tensor, num: int) -> Tensor:
        """What `looked_up` is transposed: [R, w]."""
        parts = zip(self.numbers_LK, self.matrices_lwD, strict=True)
        return torch.stack([sum_by(number_K, rows_KD @ matrix_wD.T, num=num) for number_K, matrix_wD in parts]).sum(0)

    def diagonal(self, num: int) -> Tensor:
        """The weights of the ids that read each row, [R, 1]."""
        return torch.stack([sum_by(number_K, self.weights_K1, num=num) for number_K in self.numbers_LK]).sum(0)

    def square(self, x_Rw: Tensor) -> float:
        """The weighted squared error."""
        return float((self.weights_K1 * (self.looked_up(x_Rw) - self.vectors_KD).square()).sum())

    def solve_matrices(self, x_Rw: Tensor) -> None:
        """The matrices that are nearest, for rows as they are."""
        if not self.learns:
            return
        rows_KW = torch.cat([x_Rw[number_K] for number_K in self.numbers_LK], dim=1)
        gram_WW = rows_KW.T @ (self.weights_K1 * rows_KW)
        ridge_WW = 1e-9 * gram_WW.trace().clamp(min=1e-30) / len(gram_WW) * torch.eye(len(gram_WW), dtype=torch.float64)
        before_WD = self.matrices_lwD.flatten(0, 1)
        right_WD = rows_KW.T @ (self.weights_K1 * self.vectors_KD) + ridge_WW @ before_WD
        self.matrices_lwD = torch.linalg.solve(gram_WW + ridge_WW, right_WD).view_as(self.matrices_lwD)
