"""DeepFM: a factorization machine and a deep network side by side on the same embeddings."""

from typing import ClassVar

from torch import Tensor

from embank.ctr_models.fm import pairwise_sum
from embank.ctr_models.layers.fields import Fields, FirstOrder
from embank.ctr_models.layers.mlp import MLP, Activation, squeeze_logits
from embank.ctr_models.network import Inputs, Network, check_dropout, check_positive, require_fields
from embank.tables import option_class


@option_class
class DeepFMConfig:
    """Hyper-parameters of DeepFM.

    Args:
        hidden_units: hidden layers of the deep part (the paper's section 3.1.3 settles on three of 400).
        activation: of the hidden layers.
        dropout: after each hidden layer (0.5 in the paper, 0 in FuxiCTR).
        batch_norm: normalise before each activation.
    """

    hidden_units: tuple[int, ...] = (400, 400, 400)
    activation: Activation = "relu"
    dropout: float = 0.0
    batch_norm: bool = False

    def __post_init__(self) -> None:
        check_positive("hidden_units", self.hidden_units)
        check_dropout(self.dropout)


class DeepFM(Network):
    """Logit = linear part + factorization machine + deep network over all fields.

    Source: Guo et al. 2017 (DeepFM), equations 1 to 4. Numeric inputs are fields x_i * v_i for both parts, as in the
    paper and in FuxiCTR. Not `torchrec.modules.deepfm.DeepFM`, which is no more than a concatenation before a module of
    the caller's.
    """

    Config = DeepFMConfig
    first_order: ClassVar[bool] = True

    def __init__(self, config: DeepFMConfig, *, inputs: Inputs) -> None:
        super().__init__(config, inputs=inputs)
        require_fields(inputs, model="deepfm", instead="dcn")
        self.linear = FirstOrder(inputs)
        self.fields = Fields(inputs)
        self.deep = MLP(
            self.fields.flat_width,
            config.hidden_units,
            out_features=1,
            activation=config.activation,
            dropout=config.dropout,
            batch_norm=config.batch_norm,
        )

    def forward(self, dense_BI: Tensor, embeddings_BE: Tensor, first_order_BF: Tensor) -> Tensor:
        """Logits [B]."""
        fields_BFD = self.fields(dense_BI, embeddings_BE)
        linear_B: Tensor = self.linear(dense_BI, first_order_BF)
        return (
            linear_B + pairwise_sum(fields_BFD) + squeeze_logits(self.deep(self.fields.flat(fields_BFD, embeddings_BE)))
        )

    def readers(self) -> dict[str, Tensor]:
        return {"deep": self.fields.embedding_columns(self.deep.first_weight)}
