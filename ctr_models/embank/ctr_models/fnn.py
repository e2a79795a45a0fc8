"""FNN: a deep network over the concatenated embeddings."""

from torch import Tensor

from embank.ctr_models.layers.fields import FlatInputs
from embank.ctr_models.layers.mlp import MLP, Activation, squeeze_logits
from embank.ctr_models.network import Inputs, Network, check_dropout, check_positive
from embank.tables import option_class


@option_class
class FNNConfig:
    """Hyper-parameters of FNN.

    Args:
        hidden_units: hidden layers (the diamond shape that the paper finds best).
        activation: of the hidden layers (tanh in the paper; ReLU trains better from scratch).
        dropout: after each hidden layer.
        batch_norm: normalise before each activation.
        embed_numeric: give each numeric input a learned vector (FuxiCTR) instead of one raw column.
    """

    hidden_units: tuple[int, ...] = (200, 300, 100)
    activation: Activation = "relu"
    dropout: float = 0.0
    batch_norm: bool = False
    embed_numeric: bool = False

    def __post_init__(self) -> None:
        check_positive("hidden_units", self.hidden_units)
        check_dropout(self.dropout)


class FNN(Network):
    """Logit = deep network over all inputs side by side.

    Source: Zhang, Du and Wang 2016 (Deep Learning over Multi-field Categorical Data), section 2.1. The paper pre-trains
    the embeddings with a factorization machine and appends its first-order weight to each; here they are trained from
    scratch with the rest, as in FuxiCTR's DNN, so the weight is one more column of the embedding.
    """

    Config = FNNConfig

    def __init__(self, config: FNNConfig, *, inputs: Inputs) -> None:
        super().__init__(config, inputs=inputs)
        self.flat = FlatInputs(inputs, embed_numeric=config.embed_numeric)
        self.deep = MLP(
            self.flat.width,
            config.hidden_units,
            out_features=1,
            activation=config.activation,
            dropout=config.dropout,
            batch_norm=config.batch_norm,
        )

    def forward(self, dense_BI: Tensor, embeddings_BE: Tensor, first_order_BF: Tensor) -> Tensor:
        """Logits [B]; the first-order columns are not read."""
        return squeeze_logits(self.deep(self.flat(dense_BI, embeddings_BE)))

    def readers(self) -> dict[str, Tensor]:
        return {"deep": self.flat.embedding_columns(self.deep.first_weight)}
