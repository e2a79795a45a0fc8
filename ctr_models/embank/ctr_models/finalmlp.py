"""FinalMLP: two deep networks on differently gated inputs, fused by a bilinear form."""

import torch
from torch import Tensor, nn

from embank.ctr_models.layers.fields import FlatInputs
from embank.ctr_models.layers.mlp import MLP, Activation, make_linear, squeeze_logits
from embank.ctr_models.network import Inputs, Network, check_dropout, check_positive
from embank.tables import option_class
from embank.tables.errors import ConfigError
from embank.tables.wording import did_you_mean


@option_class
class FinalMLPConfig:
    """Hyper-parameters of FinalMLP.

    Args:
        hidden_units_1: hidden layers of the first stream.
        hidden_units_2: hidden layers of the second stream.
        activation: of the hidden layers.
        dropout_1: after each hidden layer of the first stream.
        dropout_2: after each hidden layer of the second stream.
        batch_norm: normalise before each activation, in both streams.
        num_heads: blocks of the bilinear fusion (k in the paper); divides the last layer of both streams.
        feature_gating: weight the inputs of each stream by a gate (section 3.2).
        gate_hidden_units: hidden layers of the gates.
        gate_context_1: categorical fields that steer the first gate (the paper: the user's); empty for a learned
            constant.
        gate_context_2: categorical fields that steer the second gate (the paper: the item's); empty for a learned
            constant.
        embed_numeric: give each numeric input a learned vector (FuxiCTR) instead of one raw column.
    """

    hidden_units_1: tuple[int, ...] = (400, 400, 400)
    hidden_units_2: tuple[int, ...] = (400, 400, 400)
    activation: Activation = "relu"
    dropout_1: float = 0.0
    dropout_2: float = 0.0
    batch_norm: bool = False
    num_heads: int = 1
    feature_gating: bool = True
    gate_hidden_units: tuple[int, ...] = (64,)
    gate_context_1: tuple[str, ...] = ()
    gate_context_2: tuple[str, ...] = ()
    embed_numeric: bool = False

    def __post_init__(self) -> None:
        check_positive("num_heads", (self.num_heads,))
        check_positive("gate_hidden_units", self.gate_hidden_units)
        check_dropout(self.dropout_1, name="dropout_1")
        check_dropout(self.dropout_2, name="dropout_2")
        for key in ("hidden_units_1", "hidden_units_2"):
            units: tuple[int, ...] = getattr(self, key)
            check_positive(key, units)
            if not units:
                raise ConfigError(f"model.{key} is empty. Name at least one layer.")
            if units[-1] % self.num_heads:
                raise ConfigError(
                    f"model.{key} ends with {units[-1]}, which model.num_heads {self.num_heads} does not divide. "
                    f"Use {self.num_heads * max(1, round(units[-1] / self.num_heads))}."
                )


class FeatureGate(nn.Module):
    """Weights in (0, 2) for every input column, from the embeddings of some fields or from a learned constant.

    The constant starts at random: from zeros, as in FuxiCTR, no gradient passes the gate's ReLU and only its last bias
    ever learns. The fields' embeddings are those of the tables; FuxiCTR trains separate ones for the gates.

    Source: Mao et al. 2023 (FinalMLP), equations 3 to 5.

    Args:
        inputs: the batch's description.
        width: number of input columns to weight.
        context: fields that steer the gate.
        hidden_units: hidden layers of the gate.
    """

    def __init__(self, inputs: Inputs, *, width: int, context: tuple[str, ...], hidden_units: tuple[int, ...]) -> None:
        super().__init__()
        self.columns = [_columns_of(name, inputs) for name in context]
        constant_dim = inputs.common_dim or 16
        self.constant = None if context else nn.Parameter(torch.randn(1, constant_dim))
        in_features = sum(stop - start for start, stop in self.columns) if context else constant_dim
        self.gate = MLP(in_features, hidden_units, out_features=width)

    def forward(self, flat_BW: Tensor, embeddings_BE: Tensor) -> Tensor:
        """Weight the columns: [B, W] to [B, W]."""
        context: Tensor | None = self.constant
        if context is None:
            context = torch.cat([embeddings_BE[:, start:stop] for start, stop in self.columns], dim=1)
        return flat_BW * (2.0 * torch.sigmoid(self.gate(context)))

    def constant_gate(self) -> Tensor | None:
        """The weights [1, W] of the columns where no field steers them."""
        return None if self.constant is None else 2.0 * torch.sigmoid(self.gate(self.constant))


class BilinearFusion(nn.Module):
    """w_x . x + w_y . y + sum over heads of x_h^T W_h y_h + bias. Source: Mao et al. 2023 (FinalMLP), equations 6 to 9.

    Args:
        x_width: columns of the first stream's output; divisible by `num_heads`.
        y_width: columns of the second stream's output; divisible by `num_heads`.
        num_heads: blocks.
    """

    def __init__(self, x_width: int, y_width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.x_linear = make_linear(x_width, 1)
        self.y_linear = make_linear(y_width, 1, bias=False)
        weight = torch.empty(num_heads, x_width // num_heads, y_width // num_heads)
        for head in weight:
            nn.init.xavier_normal_(head)
        self.weight = nn.Parameter(weight)

    def forward(self, x_BX: Tensor, y_BY: Tensor) -> Tensor:
        """Fuse: [B, X] and [B, Y] to [B]."""
        num_rows = x_BX.shape[0]
        x_HBX = x_BX.view(num_rows, self.num_heads, self.weight.shape[1]).transpose(0, 1)
        y_HBY = y_BY.view(num_rows, self.num_heads, self.weight.shape[2]).transpose(0, 1)
        bilinear_B = (torch.bmm(x_HBX, self.weight) * y_HBY).sum(dim=(0, 2))
        return squeeze_logits(self.x_linear(x_BX) + self.y_linear(y_BY)) + bilinear_B


class FinalMLP(Network):
    """Logit = bilinear fusion of two deep networks, each on inputs weighted by a gate of its own.

    Source: Mao et al. 2023 (FinalMLP: An Enhanced Two-Stream MLP Model for CTR Prediction), section 3.
    """

    Config = FinalMLPConfig

    def __init__(self, config: FinalMLPConfig, *, inputs: Inputs) -> None:
        super().__init__(config, inputs=inputs)
        self.flat = FlatInputs(inputs, embed_numeric=config.embed_numeric)
        self.gates = nn.ModuleList()
        if config.feature_gating:
            for context in (config.gate_context_1, config.gate_context_2):
                gate = FeatureGate(
                    inputs, width=self.flat.width, context=context, hidden_units=config.gate_hidden_units
                )
                self.gates.append(gate)
        self.stream_1 = self._make_stream(config, config.hidden_units_1, config.dropout_1)
        self.stream_2 = self._make_stream(config, config.hidden_units_2, config.dropout_2)
        self.fusion = BilinearFusion(config.hidden_units_1[-1], config.hidden_units_2[-1], config.num_heads)

    def _make_stream(self, config: FinalMLPConfig, hidden_units: tuple[int, ...], dropout: float) -> MLP:
        return MLP(
            self.flat.width,
            hidden_units,
            activation=config.activation,
            dropout=dropout,
            batch_norm=config.batch_norm,
        )

    def forward(self, dense_BI: Tensor, embeddings_BE: Tensor, first_order_BF: Tensor) -> Tensor:
        """Logits [B]; the first-order columns are not read."""
        flat_BW = self.flat(dense_BI, embeddings_BE)
        x_BW, y_BW = flat_BW, flat_BW
        if self.gates:
            x_BW, y_BW = (gate(flat_BW, embeddings_BE) for gate in self.gates)
        logits_B: Tensor = self.fusion(self.stream_1(x_BW), self.stream_2(y_BW))
        return logits_B

    def readers(self) -> dict[str, Tensor]:
        """The first layers of the streams; none of a stream whose gate depends on the batch."""
        layers = {}
        for place, stream in enumerate((self.stream_1, self.stream_2)):
            gate = None
            if self.gates:
                gating = self.gates[place]
                assert isinstance(gating, FeatureGate)
                gate = gating.constant_gate()
                if gate is None:
                    continue
            weight = stream.first_weight if gate is None else stream.first_weight * gate
            layers[f"stream {place + 1}"] = self.flat.embedding_columns(weight)
        return layers


def _columns_of(name: str, inputs: Inputs) -> tuple[int, int]:
    """First and last-plus-one embedding column of a field."""
    if name not in inputs.names:
        raise ConfigError(
            f"model.gate_context_1 and gate_context_2 name fields, and '{name}' is "
            f"none.{did_you_mean(name, inputs.names)} "
            f"There are: {', '.join(inputs.names)}."
        )
    position = inputs.names.index(name)
    start = sum(inputs.dims[:position])
    return start, start + inputs.dims[position]
