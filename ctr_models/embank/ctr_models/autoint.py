"""AutoInt: multi-head self-attention over the fields, optionally with a deep network beside it (AutoInt+)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embank.ctr_models.layers.fields import Fields
from embank.ctr_models.layers.mlp import MLP, Activation, make_linear, squeeze_logits
from embank.ctr_models.network import Inputs, Network, check_dropout, check_positive, require_fields
from embank.tables import option_class
from embank.tables.errors import ConfigError


@option_class
class AutoIntConfig:
    """Hyper-parameters of AutoInt; the defaults are those of the paper's section 5.1.4.

    Args:
        num_layers: interacting layers.
        num_heads: attention heads per layer.
        attention_dim: columns of all heads together (the paper: two heads of 32).
        residual: add the layer's projected input before the activation (equation 8).
        scale: divide the scores by the root of a head's columns (not in the paper).
        layer_norm: normalise before the activation (not in the paper).
        hidden_units: hidden layers of the deep part of AutoInt+; empty for AutoInt.
        activation: of those hidden layers.
        dropout: of the attention weights, and after each hidden layer.
        batch_norm: normalise before each activation of the deep part.
    """

    num_layers: int = 3
    num_heads: int = 2
    attention_dim: int = 64
    residual: bool = True
    scale: bool = False
    layer_norm: bool = False
    hidden_units: tuple[int, ...] = ()
    activation: Activation = "relu"
    dropout: float = 0.0
    batch_norm: bool = False

    def __post_init__(self) -> None:
        check_positive("num_layers", (self.num_layers,))
        check_positive("num_heads", (self.num_heads,))
        check_positive("attention_dim", (self.attention_dim,))
        check_positive("hidden_units", self.hidden_units)
        check_dropout(self.dropout)
        if self.attention_dim % self.num_heads:
            raise ConfigError(
                f"model.attention_dim is {self.attention_dim}, which {self.num_heads} heads do not divide. "
                f"Use {self.num_heads * max(1, round(self.attention_dim / self.num_heads))}."
            )


class InteractingLayer(nn.Module):
    """relu(attention of each field to all fields + W_res x). Source: Song et al. 2019 (AutoInt), equations 5 to 8.

    Not `nn.MultiheadAttention`: that one has an output projection and biases, and its output is as wide as its input.
    Queries, keys, values and residual come from one product.

    Args:
        in_features: columns of a field.
        config: the model's hyper-parameters.
    """

    def __init__(self, in_features: int, config: AutoIntConfig) -> None:
        super().__init__()
        self.num_heads, self.width = config.num_heads, config.attention_dim
        self.dropout = config.dropout
        self.scale = (self.width // self.num_heads) ** -0.5 if config.scale else 1.0
        self.num_projections = 4 if config.residual else 3
        weights = [nn.init.xavier_normal_(torch.empty(self.width, in_features)) for _ in range(self.num_projections)]
        self.weight = nn.Parameter(torch.cat(weights))
        self.norm = nn.LayerNorm(self.width) if config.layer_norm else None

    def forward(self, fields_BFD: Tensor) -> Tensor:
        """Attend: [B, F, D] to [B, F, A]."""
        num_rows, num_fields, _ = fields_BFD.shape
        projected = F.linear(fields_BFD, self.weight)
        query, key, value, *residual = projected.view(num_rows, num_fields, self.num_projections, self.width).unbind(2)
        heads = (num_rows, num_fields, self.num_heads, self.width // self.num_heads)
        attended_BHFE = F.scaled_dot_product_attention(
            query.view(heads).transpose(1, 2),
            key.view(heads).transpose(1, 2),
            value.view(heads).transpose(1, 2),
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
        )
        out_BFA = attended_BHFE.transpose(1, 2).reshape(num_rows, num_fields, self.width)
        if residual:
            out_BFA = out_BFA + residual[0]
        if self.norm is not None:
            out_BFA = self.norm(out_BFA)
        return F.relu(out_BFA)


class AutoInt(Network):
    """Logit = linear layer over the attended fields (+ deep network over the fields, in AutoInt+).

    Source: Song et al. 2019 (AutoInt), section 4. FuxiCTR projects the residual only where the widths differ; the paper
    always does, and so do we. Numeric inputs are fields x_i * v_i (section 4.3).
    """

    Config = AutoIntConfig

    def __init__(self, config: AutoIntConfig, *, inputs: Inputs) -> None:
        super().__init__(config, inputs=inputs)
        require_fields(inputs, model="autoint", instead="dcn")
        self.fields = Fields(inputs)
        widths = [self.fields.dim] + [config.attention_dim] * (config.num_layers - 1)
        self.layers = nn.Sequential(*(InteractingLayer(width, config) for width in widths))
        self.out = make_linear(self.fields.num_fields * config.attention_dim, 1)
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
        """Logits [B]; the first-order columns are not read."""
        fields_BFD = self.fields(dense_BI, embeddings_BE)
        logits_B = squeeze_logits(self.out(self.layers(fields_BFD).flatten(1)))
        if self.deep is not None:
            logits_B = logits_B + squeeze_logits(self.deep(self.fields.flat(fields_BFD, embeddings_BE)))
        return logits_B

    def readers(self) -> dict[str, Tensor]:
        return {} if self.deep is None else {"deep": self.fields.embedding_columns(self.deep.first_weight)}
