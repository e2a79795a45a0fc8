"""One table on its own: train it, look rows up, measure and pack it. Handy for studies and for tests."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from embank.tables import (
    DataError,
    GivenRows,
    ImportedRows,
    PackedTable,
    RowOptimizer,
    TableCollection,
    TableSpec,
    fit_tables,
    registered_methods,
)
from embank.tables.collections.ids import check_ids, int64_ids
from embank.tables.collections.stages import finished
from embank.tables.collections.training import refuse_unfinished
from embank.tables.method.modes import evaluating

METHODS = frozenset(registered_methods())
"""Names of all registered methods, those of other installed packages included."""


class Table:
    """A single logical table with the interface `lookup`, `nbytes`, `pack`; `collection`, of this one table, is what
    trains it.

    A method of several stages stands in its last one, as if the ones before had been trained for zero steps.

    Example:
        >>> table = build_table(method="mgqe", num_embeddings=1000, embedding_dim=8, budget=0.25)
        >>> table.collection.begin(num_steps=1)  # `collection` is what trains it
        >>> table.nbytes("training") > table.nbytes("serving")
        True
    """

    def __init__(self, spec: TableSpec, *, seed: int, optimizer: RowOptimizer | None = None) -> None:
        self.feature = spec.feature_names[0]
        self.spec = replace(spec, feature_names=[self.feature])
        self.collection = finished(TableCollection([self.spec], seed=seed, backend="torch", optimizer=optimizer))

    def lookup(self, ids_N: Tensor) -> Tensor:
        """Logical rows [N, D] for ids int64 [N] in evaluation mode: without a graph, and leaving everything as it is.

        Raises:
            DataError: ids that are not integers, or not one after the other.
            IdRangeError: (an IndexError) an id outside the table, by its name.
        """
        features = KeyedJaggedTensor(
            keys=[self.feature], values=_listed(ids_N), lengths=torch.ones(ids_N.numel(), dtype=torch.int32)
        )
        with evaluating(self.collection):
            rows_ND: Tensor = self.collection(features).values()
        return rows_ND

    def fit(self, vectors: Any, *, ids: Any = None, weights: Any = None) -> ImportedRows:
        """Fits the table to vectors that others have trained, from its first stage on; see `fit_tables`.

        A method of several stages begins with the first one again, so that `collection` is another one afterwards.

        Args:
            vectors: [K, D], a tensor or a NumPy array.
            ids: int64 [K]; None for 0 .. K - 1.
            weights: [K], how much each id counts; None for equally much.

        Raises:
            ConfigError, DataError: see `Tables.import_rows`. Nothing has changed.

        Example:
            >>> table = build_table(method="mde", num_embeddings=1000, embedding_dim=8, budget=0.5)
            >>> vectors_ND = torch.randn(1000, 2) @ torch.randn(2, 8)  # of rank 2
            >>> table.fit(vectors_ND).error < 1e-5
            True
        """
        ids = torch.arange(len(vectors)) if ids is None else ids
        given = {self.spec.name: GivenRows(ids=ids, vectors=vectors, weights=weights)}
        is_staged = self.collection.specs[0].stage > 0
        first = self.collection.rebuilt([self.spec]) if is_staged else self.collection
        self.collection, report = fit_tables(first, given)
        return report[self.spec.name]

    def nbytes(self, kind: str = "serving") -> int:
        """Measured bytes: "serving" (the packed form) or "training" (optimizer state included)."""
        return self.collection.nbytes(kind)  # type: ignore[arg-type]

    def pack(self, *, codec: str = "fp32") -> "Packed":
        """The inference form: a snapshot, which later training leaves alone.

        Args:
            codec: how rows are held that the method does not code itself.

        Raises:
            ConfigError: there is no such codec, or rows alone can't be coded by it.
        """
        refuse_unfinished(self.collection)
        (packed,) = self.collection.packs(copied=True, codec=codec)
        return Packed(self.spec, packed)


class Packed:
    """A packed table that refuses ids out of range.

    Example:
        >>> packed = build_table(method="full", num_embeddings=10, embedding_dim=2).pack()
        >>> packed.lookup(torch.tensor([11]))
        Traceback (most recent call last):
            ...
        embank.tables.collections.ids.IdRangeError: feature 'table' has id 11, outside table 'table' of 10 ids (0
        .. 9); prepare the data with the vocabulary that the table was made for, or give the table more rows
    """

    def __init__(self, spec: TableSpec, table: PackedTable) -> None:
        self.spec = spec
        self.table = table

    def lookup(self, ids_N: Tensor) -> Tensor:
        """Logical rows [N, D] for ids int64 [N].

        Raises:
            DataError: ids that are not integers, or not one after the other.
            IdRangeError: (an IndexError) an id outside the table, by its name.
        """
        spec = self.spec
        ids_N = int64_ids(_listed(ids_N))
        check_ids(ids_N, table=spec.name, feature=spec.name, num_embeddings=spec.num_embeddings)
        return self.table.lookup(ids_N)

    def nbytes(self) -> int:
        """Bytes that are held."""
        return self.table.nbytes()


def _listed(ids_N: Tensor) -> Tensor:
    """The ids; DataError if they are no tensor [N]."""
    if isinstance(ids_N, Tensor) and ids_N.dim() == 1:
        return ids_N
    found = f"have shape {tuple(ids_N.shape)}" if isinstance(ids_N, Tensor) else f"are a {type(ids_N).__name__}"
    raise DataError(f"the ids {found}; give a tensor [N] of integers, torch.tensor([3, 5]) for example")


def build_table(
    *,
    method: str,
    num_embeddings: int,
    embedding_dim: int,
    budget: float | None = None,
    counts: Tensor | None = None,
    options: Any = None,
    seed: int = 0,
    name: str = "table",
) -> Table:
    """A table of one method, on the torch backend.

    Args:
        method: one of `METHODS`.
        num_embeddings: number of ids.
        embedding_dim: width of a logical row.
        budget: serving bytes / bytes of the plain fp32 table.
        counts: int64 [num_embeddings], occurrences in training, for methods that use them.
        options: the method's own configuration, an instance of its `Config`.
        seed: of the initial values.
        name: enters seeds, salts and messages.

    Raises:
        ConfigError: an unknown method, a bad size.
        BudgetError: the budget is below the method's floor.

    Example:
        >>> table = build_table(method="hash", num_embeddings=1000, embedding_dim=8, budget=0.1)
        >>> table.lookup(torch.tensor([3, 500])).shape
        torch.Size([2, 8])
        >>> table.nbytes("serving")
        3176
        >>> table.pack().nbytes()
        3176
        >>> build_table(method="full", num_embeddings=1000, embedding_dim=8, budget=0.1)
        Traceback (most recent call last):
            ...
        embank.tables.errors.BudgetError: table 'table': method 'full' keeps every row, its floor is budget 1.0
        (32,000 bytes); the budget is 0.1. Raise the budget, or use another method, such as 'hash'
    """
    spec = TableSpec(
        name=name,
        num_embeddings=num_embeddings,
        embedding_dim=embedding_dim,
        feature_names=[name],
        method=method,
        budget=budget,
        counts=counts,
        options=options,
    )
    return Table(spec, seed=seed)
