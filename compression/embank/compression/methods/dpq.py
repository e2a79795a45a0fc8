"""DPQ: product quantisation trained end to end with the table (Chen et al., ICML 2020)."""

from dataclasses import field

from embank.compression.parts.quantiser import CodeShape, QuantisedRows, choose_shape, codebook_choices
from embank.tables import option_class


@option_class
class DpqConfig:
    """Options of the quantised table.

    Args:
        num_codebooks: parts that a row is cut into, a divisor of the dim; None leaves it to the budget.
        num_codes: centroids per codebook; None leaves it to the budget.
    """

    num_codebooks: int | None = field(default=None, metadata={"choices": codebook_choices})
    num_codes: int | None = None


class Dpq(QuantisedRows):
    """A plain table in training, of which every part passes through its nearest centroid; codes and centroids are
    served.

    Training takes more memory than the plain table, serving far less. Codes are found anew in every forward pass and at
    packing, so none is stale and ids that training never met have one.

    Raises:
        BudgetError: the budget does not hold the smallest codes and centroids.
        ConfigError: a number of codebooks that does not divide the dim.

    Source: section 2.3 of the paper, the variant with Euclidean distance; see `ProductQuantiser` for what differs.

    Example:
        >>> table = build_table(method="dpq", num_embeddings=1000, embedding_dim=8, budget=0.2)
        >>> table.nbytes("serving") / table.spec.plain_nbytes
        0.18825
    """

    Config = DpqConfig

    def shape(self) -> CodeShape:
        options: DpqConfig = self.options
        return choose_shape(
            self.spec,
            num_codebooks=options.num_codebooks,
            num_codes=options.num_codes,
            num_tail_codes=options.num_codes,
            head_share=1.0,
        )
