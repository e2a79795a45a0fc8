"""Hash embeddings: a row is a sum of k hashed rows, weighted by k numbers of the id's own.

Svenstrup, Hansen, Winther, "Hash Embeddings for Efficient Word Representations", NeurIPS 2017.

Its rows may be shared by several features, see `embank.compression.parts.multiplexed`.

Legend: k hashes, B rows that are hashed into, N ids.
"""

from collections.abc import Sequence
from dataclasses import field

from torch import Tensor

from embank.compression.budget.floors import refuse_below_one
from embank.compression.fitting.sums import WeightedRows
from embank.compression.parts.multiplexed import SALT_NBYTES, hashed_rows, lookup_salts
from embank.compression.parts.shared_rows import SharedRowsAllocation, num_shared_rows, shared_rows
from embank.tables import Held, Method, RowInit, TableSpec, Traits, option_class, own_table
from embank.tables.method.options import options_of


@option_class
class HashEmbeddingConfig:
    """Options of hash embeddings.

    Args:
        num_hashes: k, rows that are summed for an id; 2 as in the paper's experiments.
        num_rows: B; None takes what the budget leaves beside the importances, or a quarter of the ids without one.
        table: features that give the same name (and dim and number of rows) read the same rows; importances stay each
            feature's. `HashEmbedding.allocate` sets the rows from a budget for all features; without them, under a
            budget of its own, a feature has rows of its own.
    """

    num_hashes: int = field(default=2, metadata={"choices": (2, 3, 4)})
    num_rows: int | None = None
    table: str | None = None


def _options(spec: TableSpec) -> HashEmbeddingConfig:
    return options_of(spec, HashEmbeddingConfig)


def _fixed_nbytes(spec: TableSpec) -> int:
    """Bytes of the importances and the salts."""
    return (4 * spec.num_embeddings + SALT_NBYTES) * _options(spec).num_hashes


class HashEmbedding(Method):
    """`sum_i importance[x, i] * rows[hash_i(x)]` over k hashes (the paper's section 2).

    Ids that collide in one hash differ in the others, and an id may learn which of its rows to trust: the importance of
    one that a hot id dominates goes to zero.

    Differences from the paper: every id has importances of its own, where the paper hashes ids into buckets for them as
    well (its `D_1`), since ids are numbered here; the importances are not appended to the row. They start at k**-0.5
    with a small spread, so that the sum starts as spread as its rows.

    Its floor is high, as every id has k numbers: k / embedding_dim of the plain table, and one row.

    Raises:
        BudgetError: the budget does not hold the importances, the salts and one row.
        ConfigError: fewer than 1 hash, both a budget and a number of rows, or shared rows of no known number.

    Example:
        >>> table = build_table(method="hash_embedding", num_embeddings=1000, embedding_dim=8, budget=0.4)
        >>> {name: tuple(rows.shape) for name, rows in table.collection.weights().items()}
        {'table/rows': (149, 8), 'table/importances': (1000, 2)}
        >>> table.nbytes("serving") / table.spec.plain_nbytes
        0.3995
    """

    Config = HashEmbeddingConfig
    traits = Traits(
        allocation=SharedRowsAllocation(options=_options, fixed_nbytes=_fixed_nbytes), fitting=WeightedRows()
    )
    held = Held(facts=("num_rows",), on_host=("salts",))
    salts: Tensor

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        options: HashEmbeddingConfig = self.options
        refuse_below_one(spec, num_hashes=options.num_hashes)
        needs = f"{options.num_hashes} numbers per id, as many salts and one row"
        self.num_rows = num_shared_rows(spec, options, fixed_nbytes=_fixed_nbytes(spec), needs=needs)
        salts = lookup_salts("hash_embedding", spec.name, options.num_hashes)
        self.register_buffer("salts", salts, persistent=False)
        shared = shared_rows(spec, options, num_rows=self.num_rows)
        init = RowInit(kind="normal", scale=0.01, mean=options.num_hashes**-0.5)
        importances = own_table(spec, name=f"{spec.name}/importances", width=options.num_hashes, init=init)
        self.physical = (*[shared] * options.num_hashes, importances)

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        return (*hashed_rows(ids_N, sizes=[self.num_rows] * len(self.salts), salts=self.salts), ids_N)

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        *hashed, importance_Nk = rows
        return weighted(hashed, importance_Nk)


def weighted(rows: Sequence[Tensor], importance_Nk: Tensor) -> Tensor:
    """Sum of k rows [N, D] by their weights."""
    out_ND = rows[0] * importance_Nk[:, :1]
    for i, row_ND in enumerate(rows[1:], start=1):
        out_ND = out_ND + row_ND * importance_Nk[:, i : i + 1]
    return out_ND
