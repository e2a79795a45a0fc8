"""MGQE: product quantisation in which hot ids have more codes to choose from (Kang et al., WWW 2020 companion)."""

from dataclasses import field

from torch import Tensor

from embank.compression.parts.quantiser import CodeShape, QuantisedRows, choose_shape, codebook_choices
from embank.tables import ConfigError, option_class
from embank.tables.method.options import refuse_wrong_types


@option_class
class MgqeConfig:
    """Options of the quantised table.

    Args:
        num_codebooks: parts that a row is cut into, a divisor of the dim; None leaves it to the budget.
        num_codes: centroids per codebook, all of which head ids may use; None leaves it to the budget.
        num_tail_codes: how many of them other ids may use, the first ones; None takes a quarter.
        head_share: share of ids, by rank, that are head ids.
    """

    num_codebooks: int | None = field(default=None, metadata={"choices": codebook_choices})
    num_codes: int | None = None
    num_tail_codes: int | None = None
    head_share: float = field(default=0.1, metadata={"choices": (0.05, 0.1, 0.2)})

    def __post_init__(self) -> None:
        refuse_wrong_types(self)
        if not 0 < self.head_share <= 1:
            raise ConfigError(f"head_share is {self.head_share}; it is a share of the ids and lies in (0, 1]")


class Mgqe(QuantisedRows):
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

    Example:
        >>> table = build_table(method="mgqe", num_embeddings=1000, embedding_dim=8, budget=0.2)
        >>> table.nbytes("serving") / table.spec.plain_nbytes
        0.19525
    """

    Config = MgqeConfig

    def shape(self) -> CodeShape:
        options: MgqeConfig = self.options
        return choose_shape(
            self.spec,
            num_codebooks=options.num_codebooks,
            num_codes=options.num_codes,
            num_tail_codes=options.num_tail_codes,
            head_share=options.head_share,
        )

    def side(self, ids_N: Tensor) -> Tensor | None:
        return ids_N < self.quantiser.shape.num_head
