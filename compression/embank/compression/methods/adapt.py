"""AdaptEmb: private rows for frequent ids, shared rows for the others (Adaptive Embedding of Alibaba's DeepRec).

DeepRec describes it as a feature of the system, not in a paper; it is method 7 of Zhang et al., "Experimental Analysis
of Large-scale Learnable Vector Storage Compression", PVLDB 17(4), 2023.
"""

import torch
from torch import Tensor

from embank.compression.fitting.means import Means
from embank.compression.parts.ranked import num_rows_within, refuse_unranked
from embank.tables import ConfigError, Held, Method, TableSpec, Traits, option_class, own_table
from embank.tables.ids.hashing import hash_rows, salt64

_CONSTANT_NBYTES = 8
"""The layout, int64."""

_NUM_BITS = 40
"""Low bits of a layout: the number of private rows. The next one says whether id 0 shares; the rest is of the table's
name."""


@option_class
class AdaptConfig:
    """Options of AdaptEmb.

    Args:
        num_rows: rows that are kept, private and shared; None takes what the budget allows, or without a budget one row
            per id.
        private: share of these rows that is private, in [0, 1]; None finds it from the counts (see `best_num_private`),
            and takes one half where there are none. At least one row is shared while there are fewer rows than ids.
    """

    num_rows: int | None = None
    private: float | None = None


class Adapt(Method):
    """One physical table: first the private rows of the F most frequent ids, then S rows that the rarer ids share by a
    hash.

    Id 0, the unknown value, counts as the most frequent one, unless counts say that training never sees it: then it
    shares.

    Where it differs from the public implementation (Hetu's EMC):

    * It keeps a remap of 4 bytes per id, outside its accounting: at dim 16 its "1%" table holds 7.25%. Ids are ranked
      by frequency here, so nothing is held but the rows and one number, the *layout*: F, and the salt of the hash.
    * It shares by the order in which rare ids are met. Rows by rank modulo S would do the same here, but then features
      that are ranked alike (a user and their postal code) share rows alike, and nothing tells two such users apart. A
      hash differs by table.
    * It sets the private share by hand. Here the counts decide.

    Raises:
        BudgetError: the budget does not hold one row and the layout.
        ConfigError: both a budget and a number of rows, a private share outside [0, 1], or counts by which the ids are
            not ranked.

    Example:
        >>> table = build_table(method="adapt", num_embeddings=1000, embedding_dim=8, budget=0.1)
        >>> table.nbytes("serving") / table.spec.plain_nbytes
        0.09925
    """

    Config = AdaptConfig
    traits = Traits(fitting=Means())
    held = Held(facts=("num_rows", "num_private", "first"), uncounted=("layout",), on_host=("layout",))
    layout: Tensor

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        options: AdaptConfig = self.options
        self.num_rows = num_rows_within(spec, num_rows=options.num_rows, constant_nbytes=_CONSTANT_NBYTES)
        self.first = 1 if spec.counts is not None and spec.counts[0] == 0 else 0
        self.num_private = _num_private(spec, options, num_rows=self.num_rows, first=self.first)
        if self.num_private < self.num_rows:
            layout = layout_of(spec.name, num_private=self.num_private, first=self.first)
            self.register_buffer("layout", torch.tensor(layout), persistent=False)
        refuse_unranked(spec, num_private=self.num_private + self.first)
        self.physical = (own_table(spec, num_rows=self.num_rows),)

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        if self.num_private == self.num_rows:
            return (ids_N,)
        num_shared = self.num_rows - self.num_private
        shared_N = self.num_private + hash_rows(ids_N, num_rows=num_shared, salt=self.layout)
        own_N = ids_N - self.first if self.first else ids_N
        is_private_N = own_N < self.num_private
        if self.first:
            is_private_N &= own_N >= 0
        return (torch.where(is_private_N, own_N, shared_N),)


def layout_of(name: str, *, num_private: int, first: int) -> int:
    """Which ids have rows of their own, and the salt by which the others share, as one int64.

    Args:
        name: of the table.
        num_private: F.
        first: the first id with a row of its own; 0, or 1 if id 0 shares.
    """
    high = salt64("adapt", name) >> (_NUM_BITS + 1)
    return (high << (_NUM_BITS + 1)) | (first << _NUM_BITS) | num_private


def layout_parts(layout: int) -> tuple[int, int]:
    """The number of private rows and the first id that has one, from a layout."""
    return layout & ((1 << _NUM_BITS) - 1), layout >> _NUM_BITS & 1


def best_num_private(counts: Tensor, *, num_rows: int) -> int:
    """The number of private rows F whose lookups meet the least traffic of other ids.

    A private id has its row to itself. The traffic of the others, C(F) lookups, is spread over R - F rows by a hash, so
    that a lookup of id i meets (C(F) - c_i) / (R - F) lookups of other ids in its row on average. Summed over all
    lookups that is (C(F)^2 - Q(F)) / (R - F), Q(F) the sum of the squared counts, and it is computed for every F.
    Frequent ids get rows of their own until the rows that are left are too few for what they have to bear.

    Traffic is what counts, not ids: by the mean number of ids in a row, tails of many ids that nobody looks up keep all
    the rows.

    Args:
        counts: int64 [N], ranked, of the ids that may have rows of their own.
        num_rows: R, at most N.

    Returns:
        F in 0 .. R - 1; the smallest of the best.
    """
    counts_N = counts.double()
    shared_F, squares_F = (values.flip(0).cumsum(0).flip(0)[:num_rows] for values in (counts_N, counts_N**2))
    met_F = (shared_F**2 - squares_F) / torch.arange(num_rows, 0, -1, dtype=torch.float64)
    return int(met_F.argmin())


def _num_private(spec: TableSpec, options: AdaptConfig, *, num_rows: int, first: int) -> int:
    if options.private is not None and not 0 <= options.private <= 1:
        raise ConfigError(
            f"table '{spec.name}' has private {options.private}; it is a share of the rows and lies in [0, 1]"
        )
    if num_rows == spec.num_embeddings:
        return num_rows
    if options.private is None and spec.counts is not None:
        return best_num_private(spec.counts[first:], num_rows=num_rows)
    share = 0.5 if options.private is None else options.private
    return min(num_rows - 1, int(share * num_rows))
