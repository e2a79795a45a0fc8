"""STEM: a feed-forward layer whose up-projection is a table row of the current token.

Source: STEM (arXiv 2601.10639; facebookresearch/STEM): y = W_d (SiLU(W_g x) * U[t]). Its rejected variant, kept as
"add" because with rows at zero it starts as the plain layer: y = W_d (SiLU(W_g x) * (W_u x + U[t])).
"""

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from embank.tables.errors import ConfigError, DataError
from embank.tables.scalars import whole

StemKind = Literal["replace", "add"]


class StemFFN(nn.Module):
    """A gated feed-forward layer (SwiGLU) that reads a row of each position's token.

    Rows are used as they are, without a norm, and have the width of the layer: up to `ffn_dim` numbers a token.

    Args:
        hidden_dim: d.
        ffn_dim: f, also the width of rows.
        kind: "replace": rows stand in place of the up-projection. "add": they are added to it.

    Example:
        >>> layer = StemFFN(32, 96)
        >>> layer(torch.randn(2, 5, 32), torch.randn(2, 5, 96)).shape
        torch.Size([2, 5, 32])
    """

    def __init__(self, hidden_dim: int, ffn_dim: int, *, kind: StemKind = "replace") -> None:
        super().__init__()
        self.hidden_dim = whole(hidden_dim, what="a STEM layer's hidden_dim is", least=1)
        self.ffn_dim = whole(ffn_dim, what="a STEM layer's ffn_dim is", least=1)
        if kind not in get_args(StemKind):
            raise ConfigError(f"there is no STEM layer of kind '{kind}'; use {' or '.join(get_args(StemKind))}")
        self.kind = kind
        self.gate = nn.Linear(hidden_dim, ffn_dim, bias=False)
        self.up = nn.Linear(hidden_dim, ffn_dim, bias=False) if kind == "add" else None
        self.down = nn.Linear(ffn_dim, hidden_dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws initial values anew, as released: normal, cut at three deviations of the inputs' number ** -0.5."""
        for linear in filter(None, (self.gate, self.up, self.down)):
            std = linear.in_features**-0.5
            nn.init.trunc_normal_(linear.weight, std=std, a=-3 * std, b=3 * std)

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        """The layer's output, to be added to the residual stream.

        Args:
            x: normed hidden states [..., d].
            rows: of each position's token, [..., f].

        Raises:
            DataError: shapes that do not go together.
        """
        if rows.shape != (*x.shape[:-1], self.ffn_dim):
            raise DataError(
                f"rows have shape {tuple(rows.shape)} for hidden states of shape {tuple(x.shape)}; this STEM layer "
                f"takes {[*x.shape[:-1], self.ffn_dim]}"
            )
        rows = rows.to(x.dtype)
        candidate = rows if self.up is None else self.up(x) + rows
        result: Tensor = self.down(F.silu(self.gate(x)) * candidate)
        return result


def stem_init_std(num_tokens: int, ffn_dim: int) -> float:
    """The deviation of initial rows as released: Xavier's, sqrt(2 / (V + f)).

    With a large vocabulary it is some hundred times below that of a dense up-projection's output, so that the layer
    starts near the identity.
    """
    return float((2 / (num_tokens + ffn_dim)) ** 0.5)
