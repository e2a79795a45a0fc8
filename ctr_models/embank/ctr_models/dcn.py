"""DCN: cross layers with one vector each, beside a deep network."""

import torch
from torch import Tensor

from embank.ctr_models.layers.cross import VectorCross
from embank.ctr_models.layers.fields import FlatInputs
from embank.ctr_models.layers.mlp import MLP, Activation, make_linear, squeeze_logits
from embank.ctr_models.network import Inputs, Network, check_dropout, check_positive
from embank.tables import option_class


@option_class
class DCNConfig:
    """Hyper-parameters of DCN.

    Args:
        num_cross_layers: cross layers (6 in the paper's best Criteo run, 3 in FuxiCTR).
        hidden_units: hidden layers of the deep part (two of 1024 in that run); empty for cross layers only.
        activation: of the hidden layers.
        dropout: after each hidden layer.
        batch_norm: normalise before each activation (the paper does).
        embed_numeric: give each numeric input a learned vector (FuxiCTR) instead of one raw column (paper).
    """

    num_cross_layers: int = 3
    hidden_units: tuple[int, ...] = (400, 400, 400)
    activation: Activation = "relu"
    dropout: float = 0.0
    batch_norm: bool = False
    embed_numeric: bool = False

    def __post_init__(self) -> None:
        check_positive("num_cross_layers", (self.num_cross_layers,))
        check_positive("hidden_units", self.hidden_units)
        check_dropout(self.dropout)


class DCN(Network):
    """A linear layer over cross layers and deep network side by side.

    Source: Wang et al. 2017 (Deep & Cross Network), equations 1 to 5.
    """

    Config = DCNConfig

    def __init__(self, config: DCNConfig, *, inputs: Inputs) -> None:
        super().__init__(config, inputs=inputs)
        self.flat = FlatInputs(inputs, embed_numeric=config.embed_numeric)
        width = self.flat.width
        self.cross = VectorCross(width, config.num_cross_layers)
        self.deep = None
        if config.hidden_units:
            self.deep = MLP(
                width,
                config.hidden_units,
                activation=config.activation,
                dropout=config.dropout,
                batch_norm=config.batch_norm,
            )
        self.out = make_linear(width + (self.deep.out_features if self.deep is not None else 0), 1)

    def forward(self, dense_BI: Tensor, embeddings_BE: Tensor, first_order_BF: Tensor) -> Tensor:
        """Logits [B]; the first-order columns are not read."""
        flat_BW = self.flat(dense_BI, embeddings_BE)
        out_BW: Tensor = self.cross(flat_BW)
        if self.deep is not None:
            out_BW = torch.cat([out_BW, self.deep(flat_BW)], dim=1)
        return squeeze_logits(self.out(out_BW))

    def readers(self) -> dict[str, Tensor]:
        layers = {"cross": self.cross.first_weight}
        if self.deep is not None:
            layers["deep"] = self.deep.first_weight
        return {name: self.flat.embedding_columns(weight) for name, weight in layers.items()}
