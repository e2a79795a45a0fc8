"""DLRM: a bottom network for the numeric inputs, inner products of all pairs, a top network."""

from typing import Literal

import torch
from torch import Tensor

from embank.ctr_models.layers.fields import FieldAlignment
from embank.ctr_models.layers.mlp import MLP, Activation, num_pad_columns, squeeze_logits
from embank.ctr_models.layers.pairs import PairProducts
from embank.ctr_models.network import Inputs, Network, check_dropout, check_positive, require_fields
from embank.tables import option_class
from embank.tables.errors import ConfigError


@option_class
class DLRMConfig:
    """Hyper-parameters of DLRM; the defaults are those of the Criteo runs of facebookresearch/dlrm.

    Args:
        bottom: hidden layers for the numeric inputs. A last layer with the tables' dim follows by itself.
        top: hidden layers over the interactions. A last layer of one unit follows by itself.
        activation: of all layers of both networks, the bottom's last one included, but not of the logit.
        dropout: after each hidden layer of both networks (none in the paper).
        batch_norm: normalise the hidden layers of both networks (none in the paper).
        interaction: "dot" for inner products of all pairs, "cat" for the fields side by side.
    """

    bottom: tuple[int, ...] = (512, 256, 64)
    top: tuple[int, ...] = (512, 256)
    activation: Activation = "relu"
    dropout: float = 0.0
    batch_norm: bool = False
    interaction: Literal["dot", "cat"] = "dot"

    def __post_init__(self) -> None:
        check_positive("bottom", self.bottom)
        check_positive("top", self.top)
        check_dropout(self.dropout)


class DLRM(Network):
    """Top network over the bottom's output and the inner products of all pairs of fields, the bottom's output being one
    of them.

    Without numeric inputs there is no bottom network and the interactions are those of the embeddings alone, as in
    FuxiCTR.

    Source: Naumov et al. 2019 (arXiv:1906.00091), section 2. Same function as `torchrec.models.dlrm.DLRM`, whose
    modules we do not use: they have no dropout or batch norm, need a numeric input, and their interaction's backward
    costs several times ours (layers/pairs.py).

    Raises:
        ConfigError: no categorical field, or a single one and no numeric input, so that there is no pair.
    """

    Config = DLRMConfig

    def __init__(self, config: DLRMConfig, *, inputs: Inputs) -> None:
        super().__init__(config, inputs=inputs)
        require_fields(inputs, model="dlrm", instead="dcn")
        if config.interaction == "dot" and inputs.num_fields == 1 and not inputs.num_dense:
            raise ConfigError(
                f"model 'dlrm' multiplies pairs of fields, but '{inputs.names[0]}' is the only input. "
                "Add a feature or set model.interaction to cat."
            )
        self.alignment = FieldAlignment(inputs.dims, padded_dim=inputs.padded_dim)
        dim = self.alignment.dim
        self.num_fields = inputs.num_fields + (1 if inputs.num_dense else 0)
        self.bottom = None
        if inputs.num_dense:
            self.bottom = _make_mlp(config, inputs.num_dense, config.bottom, dim, out_activation=config.activation)
        self.pairs = PairProducts(self.num_fields) if config.interaction == "dot" else None
        self.num_pad = num_pad_columns(self._top_width(dim))
        self.top = _make_mlp(config, self._top_width(dim), config.top, 1)

    def _top_width(self, dim: int) -> int:
        if self.pairs is None:
            return self.alignment.flat_width + (dim if self.bottom is not None else 0)
        num_pairs: int = self.pairs.num_pairs
        return num_pairs + (dim if self.bottom is not None else 0)

    def forward(self, dense_BI: Tensor, embeddings_BE: Tensor, first_order_BF: Tensor) -> Tensor:
        """Logits [B]; the first-order columns are not read."""
        fields_BFD: Tensor = self.alignment(embeddings_BE)
        wide_BW = self.alignment.flat(fields_BFD, embeddings_BE) if self.pairs is None else fields_BFD.flatten(1)
        bottom_BD: Tensor | None = None
        if self.bottom is not None:
            bottom_BD = self.bottom(dense_BI)
            wide_BW = torch.cat([bottom_BD, wide_BW], dim=1)
        if self.pairs is not None:
            wide_BW = self.pairs(wide_BW.view(wide_BW.shape[0], self.num_fields, self.alignment.dim))
            if bottom_BD is not None:
                # The zero columns that the top's first product wants come at no cost here.
                zeros = wide_BW.new_zeros(wide_BW.shape[0], self.num_pad)
                wide_BW = torch.cat([bottom_BD, wide_BW, zeros], dim=1)
        return squeeze_logits(self.top(wide_BW))

    def readers(self) -> dict[str, Tensor]:
        """The top network's first layer over the fields side by side; none over inner products."""
        if self.pairs is not None:
            return {}
        return {"top": self.alignment.embedding_columns(self.top.first_weight[:, -self.alignment.flat_width :])}


def _make_mlp(
    config: DLRMConfig,
    in_features: int,
    hidden_units: tuple[int, ...],
    out_features: int,
    *,
    out_activation: Activation = "identity",
) -> MLP:
    return MLP(
        in_features,
        hidden_units,
        out_features=out_features,
        activation=config.activation,
        out_activation=out_activation,
        dropout=config.dropout,
        batch_norm=config.batch_norm,
    )
