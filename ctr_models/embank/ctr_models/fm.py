"""Factorization machine: a weight per id, and an inner product for each pair of fields."""

from typing import ClassVar

from torch import Tensor

from embank.ctr_models.layers.fields import Fields, FirstOrder
from embank.ctr_models.network import Inputs, Network, require_fields
from embank.tables import option_class
from embank.tables.errors import ConfigError


def pairwise_sum(fields_BFD: Tensor) -> Tensor:
    """Sum of <v_i, v_j> over all pairs of fields i < j, in time linear in F: [B, F, D] to [B].

    Not `torchrec.modules.deepfm.FactorizationMachine`: that one flattens fields and dims before it sums, so its result
    also holds products between different columns of the embeddings, which Rendle's equation 1 does not have.

    Source: Rendle 2010, lemma 3.1.
    """
    total_BD = fields_BFD.sum(dim=1)
    return 0.5 * (total_BD.square().sum(dim=1) - fields_BFD.square().sum(dim=(1, 2)))


@option_class
class FMConfig:
    """A factorization machine has no hyper-parameters besides its dim, which the tables set."""


class FM(Network):
    """Logit = linear part + sum over pairs of fields of their embeddings' inner product.

    Source: Rendle 2010 (Factorization Machines), equation 1. A numeric input x_i is a field x_i * v_i, as there.

    Raises:
        ConfigError: fewer than two fields, so that there is no pair and the embeddings would never be trained.
    """

    Config = FMConfig
    first_order: ClassVar[bool] = True

    def __init__(self, config: FMConfig, *, inputs: Inputs) -> None:
        super().__init__(config, inputs=inputs)
        require_fields(inputs, model="fm", instead="lr")
        if inputs.num_fields + inputs.num_dense < 2:
            raise ConfigError(
                f"model 'fm' multiplies pairs of fields, but '{inputs.names[0]}' is the only one. Add a feature or "
                "use lr."
            )
        self.linear = FirstOrder(inputs)
        self.fields = Fields(inputs)

    def forward(self, dense_BI: Tensor, embeddings_BE: Tensor, first_order_BF: Tensor) -> Tensor:
        """Logits [B]."""
        linear_B: Tensor = self.linear(dense_BI, first_order_BF)
        return linear_B + pairwise_sum(self.fields(dense_BI, embeddings_BE))
