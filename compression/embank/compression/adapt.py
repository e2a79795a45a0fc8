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

_CONSTANT_NBYTES = 8
"""The number of private rows, int64."""


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
    """One physical table: first the private rows of ids 0 .. F - 1, then S rows that the rarer ids share by rank modulo S.

    Where it differs from the public implementation (Hetu's EMC):

    * It keeps a remap of 4 bytes per id, outside its accounting: at dim 16 its "1%" table holds 7.25%. Ids are ranked
      by frequency here, so nothing is held but the rows and F.
    * It shares by the order in which rare ids are met. Rank modulo S is a spread without any randomness: the S rows have equal numbers
      of ids (within one) *and* each has one id of every stretch of S ranks, so the lookups are balanced too. A hash
      would put 37% of the rows' worth of the most frequent shared ids on top of each other.
    * It sets the private share by hand. Here the counts decide.

    Raises:
        BudgetError: the budget does not hold one row and the constant.
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
        refuse_unranked(spec, num_private=self.num_private)
        self.physical = (
            PhysicalTable(
                name=spec.name, num_embeddings=num_rows, embedding_dim=spec.embedding_dim, init=default_init(spec)
            ),
        )

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        return (private_or_shared(ids_N, num_private=self.num_private, num_shared=self.num_shared),)

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        return rows[0]

    def pack(self, rows: Mapping[str, Tensor]) -> PackedTable:
        return PackedAdapt(rows[self.spec.name], num_private=self.num_private)


class PackedAdapt(PackedTable):
    """The rows and how many of them are private."""

    uncounted: ClassVar[tuple[str, ...]] = ("num_private",)
    rows: Tensor
    num_private: Tensor

    def __init__(self, rows_RD: Tensor, *, num_private: int) -> None:
        super().__init__()
        self.register_buffer("rows", rows_RD.detach())
        if num_private < rows_RD.shape[0]:
            self.register_buffer("num_private", torch.tensor(num_private))

    def lookup(self, ids_N: Tensor) -> Tensor:
        if "num_private" not in self._buffers:
            return self.rows[ids_N]
        num_private = int(self.num_private)
        num_shared = self.rows.shape[0] - num_private
        return self.rows[private_or_shared(ids_N, num_private=num_private, num_shared=num_shared)]


def private_or_shared(ids_N: Tensor, *, num_private: int, num_shared: int) -> Tensor:
    """Rows [N] of ids: their own below `num_private`, else one of the `num_shared` rows after these, by rank."""
    if num_shared == 0:
        return ids_N
    return torch.where(ids_N < num_private, ids_N, num_private + (ids_N - num_private) % num_shared)


def best_num_private(counts: Tensor, *, num_rows: int) -> int:
    """The number of private rows F that leaves a lookup the least company.

    A lookup of a private id has its row to itself; one of the others shares it with (N - F) / (R - F) ids. The mean over all lookups,
    P(F) + (1 - P(F)) (N - F) / (R - F) with P(F) the share of lookups that go to private ids, is computed for every F.
    Many private rows leave few for the tail, few leave frequent ids in company: the counts say what weighs more.

    Args:
        counts: int64 [N], ranked.
        num_rows: R, fewer than N.

    Returns:
        F in 0 .. R - 1; the smallest of the best.
    """
    lookups = counts.double().cumsum(0)
    private_F = torch.arange(num_rows, dtype=torch.float64)
    share_F = torch.cat([lookups.new_zeros(1), lookups[: num_rows - 1]]) / lookups[-1].clamp(min=1)
    company_F = share_F + (1 - share_F) * (counts.numel() - private_F) / (num_rows - private_F)
    return int(company_F.argmin())


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
