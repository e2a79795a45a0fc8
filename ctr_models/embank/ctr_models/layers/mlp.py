"""Multi-layer perceptron.

Not `torchrec.modules.mlp.MLP`: that one has neither dropout nor batch normalisation, and its `torch.relu` allocates a
second activation per layer; here ReLU works in place on what the linear layer has just written.
"""

from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Net = TypeVar("Net", bound=nn.Module)
Activation = Literal["relu", "leaky_relu", "prelu", "gelu", "silu", "tanh", "sigmoid", "identity"]


def make_activation(name: Activation) -> nn.Module:
    """Build an activation by name. ReLU is in place: give it a tensor that nobody else needs."""
    match name:
        case "relu":
            return nn.ReLU(inplace=True)
        case "leaky_relu":
            return nn.LeakyReLU()
        case "prelu":
            return nn.PReLU()
        case "gelu":
            return nn.GELU()
        case "silu":
            return nn.SiLU()
        case "tanh":
            return nn.Tanh()
        case "sigmoid":
            return nn.Sigmoid()
        case "identity":
            return nn.Identity()


class AlignedLinear(nn.Linear):
    """A linear layer whose products run on a width that is a multiple of 8.

    The gradient by the input, [B, O] x [O, W], runs at about two thirds of its speed when W is odd (DLRM on Criteo has
    W = 367), and tensor cores want multiples of 8 as well. Only the products see the zero columns: the parameters keep
    their true shape.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[B, W] to [B, O]. An input that already ends in its zero columns (`num_pad_columns`) is taken as it is."""
        num_pad = num_pad_columns(self.in_features)
        if input.shape[1] == self.in_features:
            input = F.pad(input, (0, num_pad))
        return F.linear(input, F.pad(self.weight, (0, num_pad)), self.bias)


class PaddedLinear(nn.Module):
    """What an `AlignedLinear` computes, its zero columns written down once: for a network that is not trained any more.

    Args:
        linear: whose weights are taken.
    """

    def __init__(self, linear: AlignedLinear) -> None:
        super().__init__()
        self.in_features, self.num_pad = linear.in_features, num_pad_columns(linear.in_features)
        self.weight = nn.Parameter(F.pad(linear.weight.detach(), (0, self.num_pad)), requires_grad=False)
        self.bias = linear.bias

    def forward(self, input: Tensor) -> Tensor:
        """[B, W] to [B, O], with the zero columns or without."""
        if input.shape[1] == self.in_features:
            input = F.pad(input, (0, self.num_pad))
        return F.linear(input, self.weight, self.bias)


def frozen(network: Net) -> Net:
    """A network in place, as it is when it only scores: in evaluation mode, without gradients, its weights padded once.

    It computes what it did, to the bit. Its `state_dict` is no longer one that can be loaded.

    Example:
        >>> network = MLP(70, (8,), out_features=1)
        >>> rows = torch.randn(3, 70)
        >>> expected = network(rows)
        >>> torch.equal(frozen(network)(rows), expected)
        True
    """
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is AlignedLinear:
                setattr(module, name, PaddedLinear(child))
    return network.eval().requires_grad_(False)


def num_pad_columns(width: int) -> int:
    """Zero columns that bring a width to a multiple of 8; 0 for narrow inputs, where it does not pay."""
    return -width % 8 if width >= 64 else 0


def make_linear(in_features: int, out_features: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer with Xavier-normal weights and zero bias (Glorot and Bengio 2010; FuxiCTR's default as well)."""
    kind = AlignedLinear if num_pad_columns(in_features) else nn.Linear
    linear = kind(in_features, out_features, bias=bias)
    nn.init.xavier_normal_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that survives a training batch of fewer than two rows.

    The last batch of an epoch may hold one row, whose variance is undefined; torch raises an error there. We use the
    running statistics for such a batch and leave them as they are.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, C] columns."""
        if self.training and input.shape[0] < 2:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)


class MLP(nn.Sequential):
    """Linear, batch norm, activation, dropout for each hidden layer; then optionally a linear output layer.

    Args:
        in_features: columns of the input.
        hidden_units: sizes of the hidden layers; may be empty.
        out_features: size of a last linear layer without normalisation and dropout; None for no such layer.
        activation: of the hidden layers.
        out_activation: of the last linear layer.
        dropout: rate after each hidden activation.
        batch_norm: normalise before each hidden activation.
    """

    def __init__(
        self,
        in_features: int,
        hidden_units: tuple[int, ...],
        *,
        out_features: int | None = None,
        activation: Activation = "relu",
        out_activation: Activation = "identity",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        layers: list[nn.Module] = []
        width = in_features
        for units in hidden_units:
            layers.append(make_linear(width, units))
            if batch_norm:
                layers.append(BatchNorm(units))
            if activation != "identity":
                layers.append(make_activation(activation))
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            width = units
        if out_features is not None:
            layers.append(make_linear(width, out_features))
            width = out_features
            if out_activation != "identity":
                layers.append(make_activation(out_activation))
        super().__init__(*layers)
        self.out_features = width

    @property
    def first_weight(self) -> Tensor:
        """Weights [O, in_features] of the first linear layer."""
        first = self[0]
        assert isinstance(first, nn.Linear)
        return first.weight


def squeeze_logits(logits_B1: Tensor) -> Tensor:
    """[B, 1] to [B], a view."""
    return torch.squeeze(logits_B1, 1)
