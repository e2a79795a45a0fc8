"""AdaptEmb: private rows for frequent ids, shared rows for the others (Adaptive Embedding of Alibaba's DeepRec).

DeepRec describes it as a feature of the system, not in a paper; it is method 7 of Zhang et al., "Experimental Analysis of
Large-scale Learnable Vector Storage Compression", PVLDB 17(4), 2023.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from embank.compression.ranked import num_rows_within, refuse_unranked
from embank.tables import ConfigError, Method, PackedTable, PhysicalTable, TableSpec, default_init
from embank.tables.hashing import hash_rows, salt64

_CONSTANT_NBYTES = 16
"""The number of private rows and the salt, int64."""


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Options of AdaptEmb.

    Args:
        num_rows: rows that are kept, private and shared; None takes what the budget allows, or without a budget one row per id.
        private: share of these rows that is private, in [0, 1]; None finds it from the counts (see `best_num_private`), and
            takes one half where there are none. At least one row is shared while there are fewer rows than ids.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic, not a field

    num_rows: int | None = None
    private: float | None = None


class Adapt(Method):
    """One physical table: first the private rows of ids 0 .. F - 1, then S rows that the rarer ids share by a hash.

    Where it differs from the public implementation (Hetu's EMC):

    * It keeps a remap of 4 bytes per id, outside its accounting: at dim 16 its "1%" table holds 7.25%. Ids are ranked
      by frequency here, so nothing is held but the rows, F and the salt.
    * It shares by the order in which rare ids are met. Rows by rank modulo S would do the same here, but then features that are ranked
      alike (a user and their postal code) share rows alike, and nothing tells two such users apart. A hash differs by table.
    * It sets the private share by hand. Here the counts decide.

    Raises:
        BudgetError: the budget does not hold one row and the constants.
        ConfigError: both a budget and a number of rows, a private share outside [0, 1], or counts by which the ids are not ranked.
    """

    Config = AdaptConfig
    linear: ClassVar[bool] = True

    def __init__(self, spec: TableSpec) -> None:
        super().__init__(spec)
        options: AdaptConfig = self.options()
        num_rows = num_rows_within(spec, num_rows=options.num_rows, constant_nbytes=_CONSTANT_NBYTES)
        self.num_private = _num_private(spec, options, num_rows=num_rows)
        self.num_shared = num_rows - self.num_private
        self.salt = salt64("adapt", spec.name)
        refuse_unranked(spec, num_private=self.num_private)
        self.physical = (
            PhysicalTable(
                name=spec.name, num_embeddings=num_rows, embedding_dim=spec.embedding_dim, init=default_init(spec)
            ),
        )

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        return (private_or_shared(ids_N, num_private=self.num_private, num_shared=self.num_shared, salt=self.salt),)

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        return rows[0]

    def pack(self, rows: Mapping[str, Tensor]) -> PackedTable:
        return PackedAdapt(rows[self.spec.name], num_private=self.num_private, salt=self.salt)


class PackedAdapt(PackedTable):
    """The rows, how many of them are private, and the salt of the others."""

    uncounted: ClassVar[tuple[str, ...]] = ("num_private", "salt")
    rows: Tensor
    num_private: Tensor
    salt: Tensor

    def __init__(self, rows_RD: Tensor, *, num_private: int, salt: int) -> None:
        super().__init__()
        self.register_buffer("rows", rows_RD.detach())
        if num_private < rows_RD.shape[0]:
            self.register_buffer("num_private", torch.tensor(num_private))
            self.register_buffer("salt", torch.tensor(salt))

    def lookup(self, ids_N: Tensor) -> Tensor:
        if "num_private" not in self._buffers:
            return self.rows[ids_N]
        num_private = int(self.num_private)
        num_shared = self.rows.shape[0] - num_private
        return self.rows[private_or_shared(ids_N, num_private=num_private, num_shared=num_shared, salt=int(self.salt))]


def private_or_shared(ids_N: Tensor, *, num_private: int, num_shared: int, salt: int) -> Tensor:
    """Rows [N] of ids: their own below `num_private`, else one of the `num_shared` rows after these, by a hash."""
    if num_shared == 0:
        return ids_N
    return torch.where(ids_N < num_private, ids_N, num_private + hash_rows(ids_N, num_rows=num_shared, salt=salt))


def best_num_private(counts: Tensor, *, num_rows: int) -> int:
    """The number of private rows F whose lookups meet the least traffic of other ids.

    A private id has its row to itself. The traffic of the others, C(F) lookups, is spread over R - F rows by a hash, so that a lookup of
    id i meets (C(F) - c_i) / (R - F) lookups of other ids in its row on average. Summed over all lookups that is
    (C(F)^2 - Q(F)) / (R - F), Q(F) the sum of the squared counts, and it is computed for every F. Frequent ids get rows of their own
    until the rows that are left are too few for what they have to bear.

    Traffic is what counts, not ids: by the mean number of ids in a row, tails of many ids that nobody looks up keep all the rows.

    Args:
        counts: int64 [N], ranked.
        num_rows: R, fewer than N.

    Returns:
        F in 0 .. R - 1; the smallest of the best.
    """
    counts_N = counts.double()
    shared_F, squares_F = (values.flip(0).cumsum(0).flip(0)[:num_rows] for values in (counts_N, counts_N**2))
    met_F = (shared_F**2 - squares_F) / torch.arange(num_rows, 0, -1, dtype=torch.float64)
    return int(met_F.argmin())


def _num_private(spec: TableSpec, options: AdaptConfig, *, num_rows: int) -> int:
    if options.private is not None and not 0 <= options.private <= 1:
        raise ConfigError(
            f"table '{spec.name}' has private {options.private}; it is a share of the rows and lies in [0, 1]"
        )
    if num_rows == spec.num_embeddings:
        return num_rows
    if options.private is None and spec.counts is not None:
        return best_num_private(spec.counts, num_rows=num_rows)
    share = 0.5 if options.private is None else options.private
    return min(num_rows - 1, int(share * num_rows))
