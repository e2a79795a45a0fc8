"""Fits of rows that are sums or products of shared rows: compositional embeddings, hash embeddings, MEmCom.

Each is linear in some of its numbers once the others are held. So these are found in turn, each turn by least squares
with the others as they are: the squared error never grows (alternating least squares). It begins with the rows that the
table has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from embank.compression.fitting.normal import conjugate_gradients, sum_by
from embank.tables import CurrentRows, Fitted, Fitting, NewRows, PhysicalTable, Wanted

_TURNS = 30
FEW_TURNS, FEW_STEPS = 8, 10
_LEAST_GAIN = 1e-6
"""Share of the squared error; a turn that gains less is the last one."""


@dataclass(frozen=True)
class Lookups:
    """What the ids of all tables that share rows look up, one after the other, in float64.

    Args:
        rows_L: for each lookup, the rows of each id, int64 [K].
        tables_L: the physical table of each lookup.
        vectors_KD, weights_K1: what is wanted.
    """

    rows_L: list[Tensor]
    tables_L: list[PhysicalTable]
    vectors_KD: Tensor
    weights_K1: Tensor

    @classmethod
    def of(cls, methods: Sequence[Any], wanted: Sequence[Wanted], *, num: int) -> "Lookups":
        """The first `num` lookups of methods of one class, whose tables agree."""
        addressed = [method.address(own.ids_K)[:num] for method, own in zip(methods, wanted, strict=True)]
        return cls(
            rows_L=[torch.cat(parts) for parts in zip(*addressed, strict=True)],
            tables_L=list(methods[0].physical[:num]),
            vectors_KD=torch.cat([own.vectors_KD for own in wanted]).double(),
            weights_K1=torch.cat([own.weights_K for own in wanted]).double()[:, None],
        )

    def current(self, rows: CurrentRows) -> dict[PhysicalTable, Tensor]:
        """The rows of each table as they are now."""
        return {table: current(rows, table) for table in dict.fromkeys(self.tables_L)}

    def taken(self, values: dict[PhysicalTable, Tensor]) -> list[Tensor]:
        """What each lookup gives, [K, width]."""
        return [values[table][row_K] for table, row_K in zip(self.tables_L, self.rows_L, strict=True)]

    def square(self, found_KD: Tensor) -> float:
        """The weighted squared error of logical rows."""
        return float((self.weights_K1 * (found_KD - self.vectors_KD).square()).sum())

    def solve_rows(self, values: dict[PhysicalTable, Tensor], factors_L: Sequence[Tensor], *, num_steps: int) -> None:
        """The rows with which `sum_l factor_l * row_l` is nearest, in place; `factors_L` are [K, 1]."""
        sizes = [table.num_embeddings for table in values]
        firsts = first_rows(list(values))
        numbers_L = [row_K + firsts[table] for table, row_K in zip(self.tables_L, self.rows_L, strict=True)]

        def back(rows_KD: Tensor) -> Tensor:
            total = torch.zeros(sum(sizes), rows_KD.shape[1], dtype=torch.float64)
            for number_K, factor_K1 in zip(numbers_L, factors_L, strict=True):
                total.index_add_(0, number_K, factor_K1 * rows_KD)
            return total

        def normal(x_RD: Tensor) -> Tensor:
            found_KD = torch.zeros_like(self.vectors_KD)
            for number_K, factor_K1 in zip(numbers_L, factors_L, strict=True):
                found_KD += factor_K1 * x_RD[number_K]
            return back(self.weights_K1 * found_KD)

        diagonal = sum(
            sum_by(number_K, self.weights_K1 * factor_K1.square(), num=sum(sizes))
            for number_K, factor_K1 in zip(numbers_L, factors_L, strict=True)
        )
        assert isinstance(diagonal, Tensor)
        found = conjugate_gradients(
            normal,
            back(self.weights_K1 * self.vectors_KD),
            torch.cat(list(values.values())),
            diagonal_R1=diagonal,
            num_steps=num_steps,
        )
        values.update(zip(list(values), torch.split(found, sizes), strict=True))


def first_rows(tables: Sequence[PhysicalTable]) -> dict[PhysicalTable, int]:
    """Where the rows of each table begin, when they lie one after the other."""
    sizes = torch.tensor([0, *(table.num_embeddings for table in tables)])
    return dict(zip(tables, sizes.cumsum(0).tolist(), strict=False))


def current(rows: CurrentRows, table: PhysicalTable) -> Tensor:
    """All rows of a table as they are, float64."""
    return rows.gathered(table.name, torch.arange(table.num_embeddings)).double()


def all_rows(values: Tensor) -> NewRows:
    """Every row of a physical table."""
    return NewRows(numbers_U=torch.arange(len(values)), values_Uw=values.float())


class Turns:
    """Says when another turn gains too little."""

    def __init__(self, num: int) -> None:
        self.left, self.last = num, float("inf")

    def go_on(self, square: float) -> bool:
        """Whether another turn is worth it, after one that has left a squared error."""
        gains = self.last == float("inf") or self.last - square > _LEAST_GAIN * square
        self.left, self.last = self.left - 1, square
        return gains and self.left > 0


class PartitionedRows(Fitting):
    """Of compositional embeddings. Sums are one least-squares problem, the same for each column: exact. Of products,
    the rows of one partition have each number on its own once the other partitions are held, `p = sum w v c / sum w
    c**2` with c the product of the others: for two partitions this is the power iteration to the best matrix of rank 1
    of each column, laid out by remainder and quotient.

    Example:
        >>> options = method_class("compositional").Config(divisor=5)
        >>> table = build_table(method="compositional", num_embeddings=20, embedding_dim=3, options=options)
        >>> ids = torch.arange(20)
        >>> rows_4D, rows_5D = torch.rand(4, 3), torch.rand(5, 3)
        >>> table.fit(rows_4D[ids % 4] * rows_5D[ids // 4]).error < 1e-5
        True
    """

    def fit(self, methods: Sequence[Any], wanted: Sequence[Wanted], rows: CurrentRows, *, seed: int) -> Fitted:
        lookups = Lookups.of(methods, wanted, num=len(methods[0].physical))
        values = lookups.current(rows)
        if methods[0].how == "sum":
            ones = torch.ones(len(lookups.vectors_KD), 1, dtype=torch.float64)
            lookups.solve_rows(values, [ones] * len(lookups.rows_L), num_steps=200)
        else:
            self._multiply(lookups, values)
        return Fitted(rows={table.name: all_rows(own) for table, own in values.items()})

    def _multiply(self, lookups: Lookups, values: dict[PhysicalTable, Tensor]) -> None:
        turns, square = Turns(_TURNS), float("inf")
        while turns.go_on(square):
            for own, (table, row_K) in enumerate(zip(lookups.tables_L, lookups.rows_L, strict=True)):
                others = [part for other, part in enumerate(lookups.taken(values)) if other != own]
                factor_KD = torch.stack(others).prod(0)
                weighted_KD = lookups.weights_K1 * factor_KD
                num = table.num_embeddings
                above_RD = sum_by(row_K, weighted_KD * lookups.vectors_KD, num=num)
                below_RD = sum_by(row_K, weighted_KD * factor_KD, num=num)
                is_read_RD = below_RD > 0
                values[table] = torch.where(
                    is_read_RD, above_RD / torch.where(is_read_RD, below_RD, 1.0), values[table]
                )
            square = lookups.square(torch.stack(lookups.taken(values)).prod(0))


class ScaledRows(Fitting):
    """Of MEmCom, `row * multiplier + bias`: ids that share a row are a matrix whose best approximation of rank 1 is
    asked for (with a bias: plus one number for each id). In turn rows, `sum w m (v - b) / sum w m**2`, and of each id
    its multiplier and bias, by the least squares of its vector on its row and on ones.

    Example:
        >>> options = method_class("memcom").Config(num_rows=5)
        >>> table = build_table(method="memcom", num_embeddings=20, embedding_dim=3, options=options)
        >>> ids = torch.arange(20)
        >>> table.fit(torch.randn(5, 3)[ids % 5] * (1 + torch.rand(20, 1))).error < 1e-5
        True
    """

    def fit(self, methods: Sequence[Any], wanted: Sequence[Wanted], rows: CurrentRows, *, seed: int) -> Fitted:
        lookups = Lookups.of(methods, wanted, num=1)
        (table,), (row_K,) = lookups.tables_L, lookups.rows_L
        shared_RD = current(rows, table)
        per_id = _per_id(methods, wanted, rows)
        ids_K = per_id.ids_K
        multiplier_K1 = per_id.values[0][ids_K]
        bias_K1 = per_id.values[1][ids_K] if len(per_id.values) > 1 else torch.zeros_like(multiplier_K1)
        vectors_KD, weights_K1 = lookups.vectors_KD, lookups.weights_K1
        turns, square = Turns(_TURNS), float("inf")
        while turns.go_on(square):
            weighted_K1 = weights_K1 * multiplier_K1
            above_RD = sum_by(row_K, weighted_K1 * (vectors_KD - bias_K1), num=len(shared_RD))
            below_R1 = sum_by(row_K, weighted_K1 * multiplier_K1, num=len(shared_RD))
            shared_RD = torch.where(below_R1 > 0, above_RD / torch.where(below_R1 > 0, below_R1, 1.0), shared_RD)
            own_KD = shared_RD[row_K]
            has_bias = len(per_id.values) > 1
            centre_K1 = own_KD.mean(1, keepdim=True) if has_bias else torch.zeros_like(multiplier_K1)
            square_K1 = (own_KD - centre_K1).square().sum(1, keepdim=True)
            slope_K1 = ((own_KD - centre_K1) * vectors_KD).sum(1, keepdim=True)
            multiplier_K1 = torch.where(
                square_K1 > 0, slope_K1 / torch.where(square_K1 > 0, square_K1, 1.0), multiplier_K1
            )
            if has_bias:
                bias_K1 = vectors_KD.mean(1, keepdim=True) - multiplier_K1 * centre_K1
            square = lookups.square(own_KD * multiplier_K1 + bias_K1)
        per_id.values[0][ids_K] = multiplier_K1
        if len(per_id.values) > 1:
            per_id.values[1][ids_K] = bias_K1
        return Fitted(rows={table.name: all_rows(shared_RD), **per_id.new_rows()})


class WeightedRows(Fitting):
    """Of hash embeddings, `sum_i importance_i row_i`: in turn the shared rows by conjugate gradients, and of each id
    its k importances by the least squares of its vector on its k rows.

    Example:
        >>> options = method_class("hash_embedding").Config(num_rows=50)
        >>> table = build_table(method="hash_embedding", num_embeddings=40, embedding_dim=3, options=options)
        >>> table.fit(torch.randn(40, 3)).error < 0.1
        True
    """

    def fit(self, methods: Sequence[Any], wanted: Sequence[Wanted], rows: CurrentRows, *, seed: int) -> Fitted:
        num = len(methods[0].physical) - 1
        lookups = Lookups.of(methods, wanted, num=num)
        values = lookups.current(rows)
        per_id = _per_id(methods, wanted, rows, first=num)
        importance_Kk = per_id.values[0][per_id.ids_K]
        turns, square = Turns(FEW_TURNS), float("inf")
        while turns.go_on(square):
            lookups.solve_rows(values, [part[:, None] for part in importance_Kk.unbind(1)], num_steps=FEW_STEPS)
            rows_KkD = torch.stack(lookups.taken(values), dim=1)
            importance_Kk = _nearest_weights(rows_KkD, lookups.vectors_KD, importance_Kk)
            square = lookups.square(torch.einsum("kl,kld->kd", importance_Kk, rows_KkD))
        per_id.values[0][per_id.ids_K] = importance_Kk
        new = {table.name: all_rows(own) for table, own in values.items()}
        return Fitted(rows={**new, **per_id.new_rows()})


def _nearest_weights(rows_KkD: Tensor, vectors_KD: Tensor, before_Kk: Tensor) -> Tensor:
    """Of each id the k weights of its rows that are nearest to its vector, and among these to what they were."""
    gram_Kkk = rows_KkD @ rows_KkD.transpose(1, 2)
    ridge_K1 = 1e-9 * gram_Kkk.diagonal(dim1=1, dim2=2).sum(1, keepdim=True).clamp(min=1e-30)
    right_Kk = torch.einsum("kld,kd->kl", rows_KkD, vectors_KD) + ridge_K1 * before_Kk
    solved: Tensor = torch.linalg.solve(gram_Kkk + torch.diag_embed(ridge_K1.expand_as(before_Kk)), right_Kk)
    return solved


@dataclass(frozen=True)
class _PerId:
    """Tables with a row for each id, of all methods, one after the other.

    Args:
        ids_K: rows of what is wanted.
        values: float64 [N, width] for each kind of table.
        tables: of each kind, those of the methods in order.
    """

    ids_K: Tensor
    values: list[Tensor]
    tables: list[list[PhysicalTable]]

    def new_rows(self) -> dict[str, NewRows]:
        found: dict[str, NewRows] = {}
        for values, tables in zip(self.values, self.tables, strict=True):
            parts = torch.split(values, [table.num_embeddings for table in tables])
            found |= {table.name: all_rows(part) for table, part in zip(tables, parts, strict=True)}
        return found


def _per_id(methods: Sequence[Any], wanted: Sequence[Wanted], rows: CurrentRows, *, first: int = 1) -> _PerId:
    """The tables from lookup `first` on."""
    kinds = [list(kind) for kind in zip(*(method.physical[first:] for method in methods), strict=True)]
    starts = torch.tensor([0, *(table.num_embeddings for table in kinds[0])]).cumsum(0).tolist()
    ids = [own.ids_K + start for own, start in zip(wanted, starts, strict=False)]
    values = [torch.cat([current(rows, table) for table in kind]) for kind in kinds]
    return _PerId(torch.cat(ids), values, kinds)
