"""A method that is not linear in its rows, for tests of what the registry's linear methods don't reach."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from embank.tables import Method, PhysicalTable, RowInit, TableSpec


@dataclass(frozen=True, kw_only=True)
class ProductConfig:
    """No options."""


class Product(Method):
    """Row of a quotient times row of a remainder, times a trained scale: several lookups and a dense parameter."""

    Config = ProductConfig
    divisor = 7

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        quotients = -(-spec.num_embeddings // self.divisor)
        init = RowInit(scale=0.5, mean=0.5)
        self.physical = tuple(
            PhysicalTable(name=f"{spec.name}/{part}", num_embeddings=n, embedding_dim=spec.embedding_dim, init=init)
            for part, n in (("quotient", quotients), ("remainder", self.divisor))
        )
        self.scale = nn.Parameter(torch.ones(spec.embedding_dim))

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        return ids_N // self.divisor, ids_N % self.divisor

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        return rows[0] * rows[1] * self.scale
