"""Wide & Deep: a linear model and a deep network, trained together."""

from typing import ClassVar

from torch import Tensor

from embank.ctr_models.layers.fields import FirstOrder, FlatInputs
from embank.ctr_models.layers.mlp import MLP, Activation, squeeze_logits
from embank.ctr_models.network import Inputs, Network, check_dropout, check_positive
from embank.tables import option_class


@option_class
class WDLConfig:
    """Hyper-parameters of Wide & Deep.

    Args:
        hidden_units: hidden layers of the deep part (the paper's figure 4).
        activation: of the hidden layers.
        dropout: after each hidden layer.
        batch_norm: normalise before each activation.
        embed_numeric: give each numeric input of the deep part a learned vector (FuxiCTR) instead of one raw column
            (paper).
    """

    hidden_units: tuple[int, ...] = (1024, 512, 256)
    activation: Activation = "relu"
    dropout: float = 0.0
    batch_norm: bool = False
    embed_numeric: bool = False

    def __post_init__(self) -> None:
        check_positive("hidden_units", self.hidden_units)
        check_dropout(self.dropout)


class WDL(Network):
    """Logit = linear part over ids and numeric inputs + deep network over the concatenated embeddings.

    Source: Cheng et al. 2016 (Wide & Deep), equation 3. The wide part has a weight per id; the paper's hand-made cross
    products are features to prepare, as in FuxiCTR. One optimizer for both parts is the caller's choice (the paper:
    FTRL for the wide one).
    """

    Config = WDLConfig
    first_order: ClassVar[bool] = True

    def __init__(self, config: WDLConfig, *, inputs: Inputs) -> None:
        super().__init__(config, inputs=inputs)
        self.linear = FirstOrder(inputs)
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
        """Logits [B]."""
        linear_B: Tensor = self.linear(dense_BI, first_order_BF)
        return linear_B + squeeze_logits(self.deep(self.flat(dense_BI, embeddings_BE)))

    def readers(self) -> dict[str, Tensor]:
        return {"deep": self.flat.embedding_columns(self.deep.first_weight)}
