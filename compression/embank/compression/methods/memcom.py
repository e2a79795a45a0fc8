"""MEmCom: ids share rows, and each has a multiplier of its own.

Pansare, Katukuri, Arora, Cipollone, Shaik, Tokgozoglu, Venkataraman, "Learning Compressed Embeddings for On-Device
Inference", MLSys 2022.

Its rows may be shared by several features, see `embank.compression.parts.multiplexed`.
"""

from dataclasses import field

from torch import Tensor

from embank.compression.fitting.sums import ScaledRows
from embank.compression.parts.multiplexed import SALT_NBYTES, hashed_rows, lookup_salts
from embank.compression.parts.shared_rows import SharedRowsAllocation, num_shared_rows, shared_rows
from embank.tables import Held, Method, RowInit, TableSpec, Traits, option_class, own_table
from embank.tables.method.options import options_of


@option_class
class MemcomConfig:
    """Options of MEmCom.

    Args:
        num_rows: shared rows; None takes what the budget leaves beside the multipliers, or a quarter of the ids without
            one.
        bias: each id also has a number that is added to all elements of its row.
        table: features that give the same name (and dim and number of rows) read the same rows, at places of their own
            by a hash; multipliers and biases stay each feature's. `Memcom.allocate` sets the rows from a budget for all
            features; without them, under a budget of its own, a feature is hashed into rows of its own.
    """

    num_rows: int | None = None
    bias: bool = field(default=False, metadata={"choices": (False, True)})
    table: str | None = None


def _options(spec: TableSpec) -> MemcomConfig:
    return options_of(spec, MemcomConfig)


def _fixed_nbytes(spec: TableSpec) -> int:
    """Bytes of the multipliers, the biases and the salt, as far as there are any."""
    options = _options(spec)
    return 4 * spec.num_embeddings * (1 + options.bias) + (0 if options.table is None else SALT_NBYTES)


class Memcom(Method):
    """`row[x mod m] * multiplier[x]`, plus `bias[x]` if asked for.

    The paper's hash is the remainder. After ranking by frequency it is the right one: the m hottest ids get different
    rows, and each shares its row with colder ones alone. Multipliers start at 1 with a small spread, so rows start as
    spread as the plain table's; biases start at 0. Rows that features share are chosen by a hash salted with the
    feature's name instead, since remainders would put the hot ids of all features into the same rows.

    Its floor is high, as every id has a number of its own: 1 / embedding_dim of the plain table, and one row.

    Raises:
        BudgetError: the budget does not hold the multipliers and one row.
        ConfigError: both a budget and a number of rows, or shared rows of no known number.

    Example:
        >>> table = build_table(method="memcom", num_embeddings=1000, embedding_dim=8, budget=0.2)
        >>> {name: tuple(rows.shape) for name, rows in table.collection.weights().items()}
        {'table/rows': (75, 8), 'table/multipliers': (1000, 1)}
        >>> table.nbytes("serving") / table.spec.plain_nbytes
        0.2
    """

    Config = MemcomConfig
    traits = Traits(allocation=SharedRowsAllocation(options=_options, fixed_nbytes=_fixed_nbytes), fitting=ScaledRows())
    held = Held(facts=("num_rows", "num_per_id", "is_hashed"), on_host=("salts",))
    salts: Tensor

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        options: MemcomConfig = self.options
        needs = f"{'two numbers' if options.bias else 'a number'} per id and one row"
        self.num_rows = num_shared_rows(spec, options, fixed_nbytes=_fixed_nbytes(spec), needs=needs)
        self.num_per_id = 1 + options.bias
        self.is_hashed = options.table is not None
        if self.is_hashed:
            self.register_buffer("salts", lookup_salts("memcom", spec.name, 1), persistent=False)
        per_id = {"multipliers": RowInit(kind="normal", scale=0.01, mean=1.0), "biases": RowInit(scale=0.0)}
        own = [own_table(spec, name=f"{spec.name}/{kind}", width=1, init=init) for kind, init in per_id.items()]
        self.physical = (shared_rows(spec, options, num_rows=self.num_rows), *own[: self.num_per_id])

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        if self.is_hashed:
            (row_N,) = hashed_rows(ids_N, sizes=[self.num_rows], salts=self.salts)
        else:
            row_N = ids_N % self.num_rows
        return (row_N, *[ids_N] * self.num_per_id)

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        shared_ND, multiplier_N1, *bias_N1 = rows
        scaled_ND = shared_ND * multiplier_N1
        return scaled_ND + bias_N1[0] if bias_N1 else scaled_ND
