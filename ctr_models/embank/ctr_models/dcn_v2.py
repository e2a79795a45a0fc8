"""DCN-V2: cross layers with full or low-rank matrices, beside or below a deep network."""

from typing import Literal

import torch
from torch import Tensor, nn

from embank.ctr_models.layers.cross import LowRankCross, MatrixCross, MixtureCross
from embank.ctr_models.layers.fields import FlatInputs
from embank.ctr_models.layers.mlp import MLP, Activation, make_linear, squeeze_logits
from embank.ctr_models.network import Inputs, Network, check_dropout, check_positive
from embank.tables import option_class
from embank.tables.errors import ConfigError


@option_class
class DCNv2Config:
    """Hyper-parameters of DCN-V2.

    Args:
        structure: "parallel" puts the deep network beside the cross layers, "stacked" on top of them,
            "stacked_parallel" one in each place, "cross_only" nowhere.
        num_cross_layers: cross layers.
        low_rank: rank of the cross matrices; None for full ones (the paper finds a quarter of the width about as good).
        num_experts: low-rank experts per cross layer; 1 is the plain low-rank form without tanh.
        hidden_units: hidden layers of the deep network (of each, if there are two).
        activation: of the hidden layers.
        dropout: after each hidden layer.
        batch_norm: normalise before each activation.
        embed_numeric: give each numeric input a learned vector (as FuxiCTR does) instead of one raw column (as the
            paper does).
    """

    structure: Literal["parallel", "stacked", "stacked_parallel", "cross_only"] = "parallel"
    num_cross_layers: int = 3
    low_rank: int | None = None
    num_experts: int = 1
    hidden_units: tuple[int, ...] = (400, 400, 400)
    activation: Activation = "relu"
    dropout: float = 0.0
    batch_norm: bool = False
    embed_numeric: bool = False

    def __post_init__(self) -> None:
        check_positive("num_cross_layers", (self.num_cross_layers,))
        check_positive("num_experts", (self.num_experts,))
        check_positive("hidden_units", self.hidden_units)
        check_dropout(self.dropout)
        if self.low_rank is not None:
            check_positive("low_rank", (self.low_rank,))
        elif self.num_experts > 1:
            raise ConfigError(
                f"model.num_experts is {self.num_experts}, but experts are low-rank. Set model.low_rank, e.g. 32."
            )
        if not self.hidden_units and self.structure != "cross_only":
            raise ConfigError(
                f"model.structure is {self.structure}, but model.hidden_units is empty. Name layers or use structure "
                "cross_only."
            )


class DCNv2(Network):
    """A linear layer over cross layers and deep network.

    Source: Wang et al. 2021 (DCN V2), sections 3.2 to 3.5. Numeric inputs are raw columns, as there.
    """

    Config = DCNv2Config

    def __init__(self, config: DCNv2Config, *, inputs: Inputs) -> None:
        super().__init__(config, inputs=inputs)
        self.flat = FlatInputs(inputs, embed_numeric=config.embed_numeric)
        width = self.flat.width
        self.cross = _make_cross(config, width)
        self.beside = _make_deep(config, width) if config.structure in ("parallel", "stacked_parallel") else None
        self.above = _make_deep(config, width) if config.structure in ("stacked", "stacked_parallel") else None
        out_width = width if self.above is None else self.above.out_features
        if self.beside is not None:
            out_width += self.beside.out_features
        self.out = make_linear(out_width, 1)

    def forward(self, dense_BI: Tensor, embeddings_BE: Tensor, first_order_BF: Tensor) -> Tensor:
        """Logits [B]; the first-order columns are not read."""
        flat_BW = self.flat(dense_BI, embeddings_BE)
        out_BW: Tensor = self.cross(flat_BW)
        if self.above is not None:
            out_BW = self.above(out_BW)
        if self.beside is not None:
            out_BW = torch.cat([out_BW, self.beside(flat_BW)], dim=1)
        return squeeze_logits(self.out(out_BW))

    def readers(self) -> dict[str, Tensor]:
        layers = {"cross": _first_weight(self.cross)}
        if self.beside is not None:
            layers["deep"] = self.beside.first_weight
        return {name: self.flat.embedding_columns(weight) for name, weight in layers.items()}


def _first_weight(cross: nn.Module) -> Tensor:
    """Weights [O, W] by which the first cross layer reads its input before it multiplies."""
    assert isinstance(cross, MatrixCross | LowRankCross | MixtureCross)
    return cross.first_weight


def _make_cross(config: DCNv2Config, width: int) -> nn.Module:
    if config.low_rank is None:
        return MatrixCross(width, config.num_cross_layers)
    if config.num_experts > 1:
        return MixtureCross(width, config.num_cross_layers, rank=config.low_rank, num_experts=config.num_experts)
    return LowRankCross(width, config.num_cross_layers, rank=config.low_rank)


def _make_deep(config: DCNv2Config, width: int) -> MLP:
    return MLP(
        width, config.hidden_units, activation=config.activation, dropout=config.dropout, batch_norm=config.batch_norm
    )
