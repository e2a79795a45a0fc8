"""Fits of methods whose logical rows are stored numbers, some shared: hashed, cut, blocked and masked rows.

Where number (i, d) of the table is a stored number p times a fixed factor f (1, a sign, a mask), the weighted sum of
squares falls apart into one sum for each stored number, `sum w (v - f p)**2` over the places that read it. Its least is
at `p = sum w f v / sum w f**2`: for factors of 1 the weighted mean.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from embank.tables import (
    CurrentRows,
    Fitted,
    Fitting,
    Method,
    NewRows,
    OwnRows,
    PhysicalTable,
    Wanted,
    physical_tables,
)
from embank.tables.method.base import combination

_NUMBERS_PER_CHUNK = 1 << 20


class Means(Fitting):
    """Each stored number becomes the weighted mean of what is wanted where it is read. Exact.

    What reads what is asked of the method itself: over rows that hold their own number, `combine` gives the stored
    number that is read, times its factor, and over ones the factor. So the method must give each number of a logical
    row from one stored number at most. Stored numbers that nothing reads stay.

    Example:
        >>> table = build_table(method="frequency_cut", num_embeddings=4, embedding_dim=2, budget=0.5)
        >>> vectors_ND = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 4.0], [4.0, 2.0]])  # id 0 shares with ids 2 and 3
        >>> report = table.fit(vectors_ND)
        >>> table.lookup(torch.arange(4))
        tensor([[2., 2.],
                [1., 1.],
                [2., 2.],
                [2., 2.]])
    """

    def fit(self, methods: Sequence[Method], wanted: Sequence[Wanted], rows: CurrentRows, *, seed: int) -> Fitted:
        if len(methods) == 1 and _is_own(methods[0], wanted[0].ids_K):
            return OwnRows().fit(methods, wanted, rows, seed=seed)
        tables = list(dict.fromkeys(table for method in methods for table in physical_tables(method)))
        sizes = [table.num_embeddings * table.embedding_dim for table in tables]
        firsts = dict(zip(tables, torch.tensor([0, *sizes]).cumsum(0).tolist(), strict=False))
        above, below = torch.zeros(2, sum(sizes), dtype=torch.float64)
        for method, own in zip(methods, wanted, strict=True):
            for ids_k, vectors_kD, weights_k in chunks(own, width=method.spec.embedding_dim):
                numbers_kD, factors_kD = _read(method, ids_k, firsts)
                weighted_kD = weights_k[:, None] * factors_kD
                above.index_add_(0, numbers_kD.reshape(-1), (weighted_kD * vectors_kD).reshape(-1))
                below.index_add_(0, numbers_kD.reshape(-1), (weighted_kD * factors_kD).reshape(-1))
        parts = zip(tables, torch.split(above, sizes), torch.split(below, sizes), strict=True)
        return Fitted(rows={table.name: _quotients(table, a, b, rows) for table, a, b in parts})


def _is_own(method: Method, ids_K: Tensor) -> bool:
    """Whether each id has a row, which is its logical row."""
    if len(method.physical) != 1 or combination(method) != "side by side" or method.side(ids_K[:1]) is not None:
        return False
    table, spec = method.physical[0], method.spec
    is_as_large = (table.num_embeddings, table.embedding_dim) == (spec.num_embeddings, spec.embedding_dim)
    return is_as_large and torch.equal(method.address(ids_K)[0], ids_K)


def chunks(wanted: Wanted, *, width: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Ids, vectors and weights, some at a time, in float64."""
    size = max(1, _NUMBERS_PER_CHUNK // max(1, width))
    parts = zip(*(torch.split(part, size) for part in (wanted.ids_K, wanted.vectors_KD, wanted.weights_K)), strict=True)
    return ((ids, vectors.double(), weights.double()) for ids, vectors, weights in parts)


def _read(method: Method, ids_k: Tensor, firsts: dict[PhysicalTable, int]) -> tuple[Tensor, Tensor]:
    """The stored number behind each number of some logical rows, int64 [k, D], and its factor, float64 [k, D]; number 0
    with factor 0 where there is none."""
    side = method.side(ids_k)
    lookups = list(zip(method.physical, method.address(ids_k), strict=True))
    numbered = tuple(
        (firsts[table] + 1.0 + row_k[:, None] * table.embedding_dim + torch.arange(table.embedding_dim)).double()
        for table, row_k in lookups
    )
    found_kD = method.combine(numbered, side)
    factors_kD = method.combine(tuple(torch.ones_like(rows) for rows in numbered), side)
    assert isinstance(found_kD, Tensor)
    assert isinstance(factors_kD, Tensor)
    is_read_kD = factors_kD != 0
    numbers_kD = torch.where(is_read_kD, found_kD / torch.where(is_read_kD, factors_kD, 1.0) - 1, 0.0)
    return numbers_kD.round().long(), factors_kD


def _quotients(table: PhysicalTable, above: Tensor, below: Tensor, rows: CurrentRows) -> NewRows:
    """The rows of which some number is read."""
    width = table.embedding_dim
    above_Rw, below_Rw = above.view(-1, width), below.view(-1, width)
    numbers_U = (below_Rw > 0).any(1).nonzero()[:, 0]
    above_Uw, below_Uw = above_Rw[numbers_U], below_Rw[numbers_U]
    is_read_Uw = below_Uw > 0
    values_Uw = (above_Uw / torch.where(is_read_Uw, below_Uw, 1.0)).float()
    if not bool(is_read_Uw.all()):
        values_Uw = torch.where(is_read_Uw, values_Uw, rows.gathered(table.name, numbers_U))
    return NewRows(numbers_U=numbers_U, values_Uw=values_Uw)
