"""xDeepFM: a linear part, a compressed interaction network, and a deep network."""

from typing import ClassVar

from torch import Tensor

from embank.ctr_models.layers.cin import CompressedInteraction
from embank.ctr_models.layers.fields import Fields, FirstOrder
from embank.ctr_models.layers.mlp import MLP, Activation, make_linear, squeeze_logits
from embank.ctr_models.network import Inputs, Network, check_dropout, check_positive, require_fields
from embank.tables import option_class
from embank.tables.errors import ConfigError


@option_class
class XDeepFMConfig:
    """Hyper-parameters of xDeepFM.

    Args:
        cin_units: feature maps of each layer of the interaction network. Its cost grows with their product: the paper
            uses three layers of 100 to 200 on GPUs, FuxiCTR's default is three of 16.
        hidden_units: hidden layers of the deep part (two of 400 in the paper's section 4.1.4); empty for none.
        activation: of the hidden layers.
        dropout: after each hidden layer (0.5 in the paper).
        batch_norm: normalise before each activation.
    """

    cin_units: tuple[int, ...] = (16, 16, 16)
    hidden_units: tuple[int, ...] = (400, 400)
    activation: Activation = "relu"
    dropout: float = 0.0
    batch_norm: bool = False

    def __post_init__(self) -> None:
        check_positive("cin_units", self.cin_units)
        check_positive("hidden_units", self.hidden_units)
        check_dropout(self.dropout)
        if not self.cin_units:
            raise ConfigError("model.cin_units is empty. Name at least one layer, or use model wdl.")


class XDeepFM(Network):
    """Logit = linear part + compressed interaction network + deep network.

    Source: Lian et al. 2018 (xDeepFM), equations 6 to 9, with the identity as the interaction network's activation, as
    the paper settles on. FuxiCTR's interaction layers have a bias in addition. Numeric inputs are fields x_i * v_i.
    """

    Config = XDeepFMConfig
    first_order: ClassVar[bool] = True

    def __init__(self, config: XDeepFMConfig, *, inputs: Inputs) -> None:
        super().__init__(config, inputs=inputs)
        require_fields(inputs, model="xdeepfm", instead="wdl")
        self.linear = FirstOrder(inputs)
        self.fields = Fields(inputs)
        self.interaction = CompressedInteraction(self.fields.num_fields, config.cin_units)
        self.interaction_out = make_linear(sum(config.cin_units), 1, bias=False)
        self.deep = None
        if config.hidden_units:
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
        logits_B: Tensor = self.linear(dense_BI, first_order_BF)
        logits_B = logits_B + squeeze_logits(self.interaction_out(self.interaction(fields_BFD)))
        if self.deep is not None:
            logits_B = logits_B + squeeze_logits(self.deep(self.fields.flat(fields_BFD, embeddings_BE)))
        return logits_B

    def readers(self) -> dict[str, Tensor]:
        return {} if self.deep is None else {"deep": self.fields.embedding_columns(self.deep.first_weight)}
