"""IPNN: a deep network over the embeddings and the inner products of all pairs of fields."""

import torch
from torch import Tensor

from embank.ctr_models.layers.fields import Fields
from embank.ctr_models.layers.mlp import MLP, Activation, squeeze_logits
from embank.ctr_models.layers.pairs import PairProducts
from embank.ctr_models.network import Inputs, Network, check_dropout, check_positive, require_fields
from embank.tables import option_class


@option_class
class IPNNConfig:
    """Hyper-parameters of the inner-product network.

    Args:
        hidden_units: hidden layers (three, as in the paper's section IV-B; the width is the later literature's).
        activation: of the hidden layers.
        dropout: after each hidden layer (0.5 in the paper).
        batch_norm: normalise before each activation.
    """

    hidden_units: tuple[int, ...] = (400, 400, 400)
    activation: Activation = "relu"
    dropout: float = 0.0
    batch_norm: bool = False

    def __post_init__(self) -> None:
        check_positive("hidden_units", self.hidden_units)
        check_dropout(self.dropout)


class IPNN(Network):
    """Logit = deep network over [all fields, all inner products <v_i, v_j> with i < j].

    Source: Qu et al. 2016 (Product-based Neural Networks), section III-B. The paper factorises the first layer's
    weights over the products to save time; we keep them whole, as FuxiCTR does. Numeric inputs are fields x_i * v_i
    (the paper has none).
    """

    Config = IPNNConfig

    def __init__(self, config: IPNNConfig, *, inputs: Inputs) -> None:
        super().__init__(config, inputs=inputs)
        require_fields(inputs, model="ipnn", instead="fnn")
        self.fields = Fields(inputs)
        self.pairs = PairProducts(self.fields.num_fields)
        self.deep = MLP(
            self.fields.flat_width + self.pairs.num_pairs,
            config.hidden_units,
            out_features=1,
            activation=config.activation,
            dropout=config.dropout,
            batch_norm=config.batch_norm,
        )

    def forward(self, dense_BI: Tensor, embeddings_BE: Tensor, first_order_BF: Tensor) -> Tensor:
        """Logits [B]; the first-order columns are not read."""
        fields_BFD = self.fields(dense_BI, embeddings_BE)
        signals_BW = torch.cat([self.fields.flat(fields_BFD, embeddings_BE), self.pairs(fields_BFD)], dim=1)
        return squeeze_logits(self.deep(signals_BW))

    def readers(self) -> dict[str, Tensor]:
        return {"deep": self.fields.embedding_columns(self.deep.first_weight)}
