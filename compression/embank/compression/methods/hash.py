"""The hashing trick: fewer rows than ids, several ids to a row (Weinberger et al., ICML 2009)."""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from embank.compression.budget.floors import size_within
from embank.compression.fitting.means import Means
from embank.tables import ConfigError, Held, Method, TableSpec, Traits, option_class, own_table
from embank.tables.ids.hashing import hash_rows, salt64
from embank.tables.ids.mixing import hash_words
from embank.tables.method.together import Array, Rule, Together

_SALT_NBYTES = 8


@option_class
class HashConfig:
    """Options of the hashed table.

    Args:
        num_rows: rows that are kept; None takes what the budget allows, or without a budget one row per id.
    """

    num_rows: int | None = None


class Hash(Method):
    """Ids share rows by a 64-bit hash, salted by the table's name: stable across processes, machines and versions.

    Unlike the usual `id % rows`, neighbouring ids (which after ranking by frequency are the hot ones) don't form a
    pattern, and two tables don't collide alike.

    Raises:
        BudgetError: the budget does not hold one row and the salt.
        ConfigError: fewer than 1 row, both a budget and a number of rows, or neither where there is no vocabulary.

    Example:
        >>> table = build_table(method="hash", num_embeddings=1000, embedding_dim=8, budget=0.1)
        >>> table.nbytes("serving") / table.spec.plain_nbytes
        0.09925
    """

    Config = HashConfig
    traits = Traits(takes_token_ids=True, fitting=Means())
    held = Held(facts=("num_rows",), on_host=("salt",))
    salt: Tensor

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        self.num_rows = self._num_rows(self.options)
        self.register_buffer("salt", torch.tensor(salt64("hash", spec.name)), persistent=False)
        self.physical = (own_table(spec, num_rows=self.num_rows),)

    def _num_rows(self, options: HashConfig) -> int:
        spec, row_nbytes = self.spec, 4 * self.spec.embedding_dim
        if options.num_rows is None and not spec.has_vocabulary:
            raise ConfigError(
                f"table '{spec.name}' has no vocabulary (its ids are hashes of tokens), so its number of rows must be "
                "said; give num_rows=..."
            )
        return size_within(
            spec,
            num_rows=options.num_rows,
            default=spec.num_embeddings,
            room=lambda nbytes: (nbytes - _SALT_NBYTES) // row_nbytes,
            needs="one row and its salt",
            floor_nbytes=row_nbytes + _SALT_NBYTES,
        )

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        return (hash_rows(ids_N, num_rows=self.num_rows, salt=self.salt),)

    @classmethod
    def together(cls, spines: Sequence[Self]) -> Together:
        num_rows_J1 = np.array([[spine.num_rows] for spine in spines], dtype=np.uint64)
        salt_J1 = torch.stack([spine.salt for spine in spines]).unsqueeze(1).numpy().view(np.uint64)

        def address(ids_JB: Array) -> tuple[Array, None]:
            return hash_words(ids_JB.view(np.uint64), num_rows=num_rows_J1, salt=salt_J1).view(np.int64), None

        rules = [Rule("hash", spine.num_rows, int(spine.salt)) for spine in spines]
        return Together(address=address, tops=[spine.num_rows for spine in spines], rules=rules)
