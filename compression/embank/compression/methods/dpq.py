"""DPQ: product quantisation trained end to end with the table (Chen et al., ICML 2020)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from embank.compression.parts.quantiser import ProductQuantiser, choose_shape, restart_due
from embank.tables import LocalRows, Method, PackedTable, PhysicalTable, TableSpec, default_init


@dataclass(frozen=True, kw_only=True)
class DpqConfig:
    """Options of the quantised table.

    Args:
        num_codebooks: parts that a row is cut into, a divisor of the dim; None leaves it to the budget.
        num_codes: centroids per codebook; None leaves it to the budget.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic, not a field

    num_codebooks: int | None = None
    num_codes: int | None = None


class Dpq(Method):
    """A plain table in training, of which every part passes through its nearest centroid; codes and centroids are
    served.

    Training takes more memory than the plain table, serving far less. Codes are found anew in every forward pass and at
    packing, so none is stale and ids that training never met have one.

    Raises:
        BudgetError: the budget does not hold the smallest codes and centroids.
        ConfigError: a number of codebooks that does not divide the dim.

    Source: section 2.3 of the paper, the variant with Euclidean distance; see `ProductQuantiser` for what differs.
    """

    Config = DpqConfig
    asks_once: ClassVar[bool] = True
    whole_rows: ClassVar[bool] = True

    def __init__(self, spec: TableSpec) -> None:
        super().__init__(spec)
        options: DpqConfig = self.options()
        shape = choose_shape(
            spec,
            num_codebooks=options.num_codebooks,
            num_codes=options.num_codes,
            num_tail_codes=options.num_codes,
            head_share=1.0,
        )
        self.quantiser = ProductQuantiser(spec, shape)
        self.physical = (
            PhysicalTable(
                name=spec.name,
                num_embeddings=spec.num_embeddings,
                embedding_dim=spec.embedding_dim,
                init=default_init(spec),
            ),
        )

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        return (ids_N,)

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        quantised_ND: Tensor = self.quantiser(rows[0], None, counts_use=self.learns)
        return quantised_ND

    def combine_distinct(self, rows: tuple[Tensor, ...], places_LN: Tensor, side: Tensor | None) -> Tensor:
        return self.quantiser.distinct(rows[0], places_LN[0], None, counts_use=self.learns)

    def extra_loss(self) -> Tensor | None:
        return self.quantiser.loss()

    def forget_loss(self) -> None:
        self.quantiser.forget()

    @classmethod
    def after_step(cls, methods: Sequence[Self], rows: LocalRows, *, step: int, num_steps: int) -> None:
        if restart_due(step, num_steps):
            for method in methods:
                method.quantiser.restart(rows, method.spec, step=step)

    def pack(self, rows: Mapping[str, Tensor]) -> PackedTable:
        return self.quantiser.pack(rows[self.spec.name])
