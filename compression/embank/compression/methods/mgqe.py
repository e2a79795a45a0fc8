"""MGQE: product quantisation in which hot ids have more codes to choose from (Kang et al., WWW 2020 companion)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from embank.compression.parts.quantiser import ProductQuantiser, choose_shape, restart_due
from embank.tables import ConfigError, LocalRows, Method, PackedTable, PhysicalTable, TableSpec, default_init
from embank.tables.method.options import refuse_wrong_types


@dataclass(frozen=True, kw_only=True)
class MgqeConfig:
    """Options of the quantised table.

    Args:
        num_codebooks: parts that a row is cut into, a divisor of the dim; None leaves it to the budget.
        num_codes: centroids per codebook, all of which head ids may use; None leaves it to the budget.
        num_tail_codes: how many of them other ids may use, the first ones; None takes a quarter.
        head_share: share of ids, by rank, that are head ids.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic, not a field

    num_codebooks: int | None = None
    num_codes: int | None = None
    num_tail_codes: int | None = None
    head_share: float = 0.1

    def __post_init__(self) -> None:
        refuse_wrong_types(self)
        if not 0 < self.head_share <= 1:
            raise ConfigError(f"head_share is {self.head_share}; it is a share of the ids and lies in (0, 1]")


class Mgqe(Method):
    """DPQ whose tail ids choose among the first few centroids of the same codebooks, so that their codes take fewer
    bits.

    Ids are ranked by frequency when data is prepared, so the head is a range of ids and needs no flag. Training takes
    more memory than the plain table, serving far less. Codes are found anew in every forward pass and at packing, so
    none is stale and ids that training never met have one.

    Raises:
        BudgetError: the budget does not hold the smallest codes and centroids.
        ConfigError: a number of codebooks that does not divide the dim.

    Source: section 3 of the paper, the variant with shared centroids and fewer codes for the tail; see
    `ProductQuantiser` for what differs in quantisation. The VLDB'24 benchmark of Zhang et al. keeps 4 bytes per id for
    the head flag and codes from each row's last training step.
    """

    Config = MgqeConfig
    asks_once: ClassVar[bool] = True
    whole_rows: ClassVar[bool] = True

    def __init__(self, spec: TableSpec) -> None:
        super().__init__(spec)
        options: MgqeConfig = self.options()
        shape = choose_shape(
            spec,
            num_codebooks=options.num_codebooks,
            num_codes=options.num_codes,
            num_tail_codes=options.num_tail_codes,
            head_share=options.head_share,
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

    def side(self, ids_N: Tensor) -> Tensor | None:
        return ids_N < self.quantiser.shape.num_head

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        quantised_ND: Tensor = self.quantiser(rows[0], side, counts_use=self.learns)
        return quantised_ND

    def combine_distinct(self, rows: tuple[Tensor, ...], places_LN: Tensor, side: Tensor | None) -> Tensor:
        return self.quantiser.distinct(rows[0], places_LN[0], side, counts_use=self.learns)

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
