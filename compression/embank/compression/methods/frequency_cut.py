"""The frequency cut: rows for the most frequent ids, one row for all others. The baseline that learned methods must
beat.

On Criteo 80% of all ids occur once and carry next to no signal, so this is stronger than it looks.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from embank.compression.fitting.means import Means
from embank.compression.parts.ranked import num_rows_within, refuse_unranked
from embank.tables import Held, Method, TableSpec, Traits, option_class, own_table
from embank.tables.method.together import Rule, Together


@option_class
class FrequencyCutConfig:
    """Options of the frequency cut.

    Args:
        num_rows: rows that are kept, the shared one included; None takes what the budget allows, or without a budget
            one row per id.
    """

    num_rows: int | None = None


class FrequencyCut(Method):
    """Ids 0 .. K - 1 have rows of their own; the rarer ones read and train row 0, the unknown value's.

    It is the table that preparing the data with a higher `min_count` would give, chosen by bytes instead: rare ids
    count as unknown, and the unknown row learns from them what an unseen id will need. Ids are ranked by frequency, so
    the K most frequent ones are a prefix and nothing is held besides the rows.

    Raises:
        BudgetError: the budget does not hold one row.
        ConfigError: both a budget and a number of rows, or counts by which the ids are not ranked.

    Example:
        >>> table = build_table(method="frequency_cut", num_embeddings=1000, embedding_dim=8, budget=0.1)
        >>> table.nbytes("serving") / table.spec.plain_nbytes
        0.1
    """

    Config = FrequencyCutConfig
    traits = Traits(fitting=Means())
    held = Held(facts=("num_rows",))

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        self.num_rows = num_rows_within(spec, num_rows=self.options.num_rows, constant_nbytes=0)
        refuse_unranked(spec, num_private=self.num_rows)
        self.physical = (own_table(spec, num_rows=self.num_rows),)

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        return (cut(ids_N, num_rows=self.num_rows),)

    @classmethod
    def together(cls, spines: Sequence[Self]) -> Together:
        num_rows_J1 = np.array([[spine.num_rows] for spine in spines])
        return Together(
            address=lambda ids_JB: (ids_JB * (ids_JB < num_rows_J1), None),
            tops=[spine.num_rows for spine in spines],
            rules=[Rule("cut", spine.num_rows) for spine in spines],
        )


def cut(ids_N: Tensor, *, num_rows: int) -> Tensor:
    """Rows [N] of ids: their own below `num_rows`, else row 0."""
    return torch.where(ids_N < num_rows, ids_N, 0)
