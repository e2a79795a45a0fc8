"""The Engram layer: n-gram rows, gated by the hidden state that reads them, added to the residual stream.

Source: Engram (arXiv 2601.07372, section 2.3) as released (deepseek-ai/Engram): the gate takes a signed square root,
which the paper's equations 4 and 6 leave out. DeepSeek-V4.1 has no convolution; the paper and the demo have one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embank.tables.errors import ConfigError, DataError
from embank.tables.scalars import whole

LEAST_SCORE = 1e-6
"""What the square root of a score begins at: its slope is 500 there, and infinite at 0."""


class EngramState:
    """What the convolution of one Engram layer looks back on, for sequences that come in pieces.

    Args:
        max_rollback: how many positions can be taken back at a time (rejected drafts); it keeps as many more.

    Attributes:
        length: positions so far.
    """

    def __init__(self, *, max_rollback: int = 0) -> None:
        self.max_rollback = whole(max_rollback, what="max_rollback is", least=0)
        self.length = 0
        self._lookback = 0
        self._inputs: tuple[Tensor, Tensor] | None = None  # the last ones, [B, S, M, d], and the document of each

    def extend(self, normed_BTMd: Tensor, documents_BT: Tensor, *, lookback: int) -> tuple[Tensor, Tensor]:
        """Goes on by a piece.

        Args:
            normed_BTMd: inputs of the convolution.
            documents_BT: the document of each, counted within the piece; 0 goes on with the one before.
            lookback: positions that the convolution looks back.

        Returns:
            The same with up to `lookback` positions before them, documents counted through.
        """
        before = 0
        if self._inputs is not None:
            normed, documents = self._inputs
            before = min(lookback, normed.shape[1])
            documents_BT = torch.cat([documents, documents_BT + documents[:, -1:]], dim=1)
            normed_BTMd = torch.cat([normed, normed_BTMd], dim=1)
        total = normed_BTMd.shape[1]
        piece = total - (0 if self._inputs is None else self._inputs[0].shape[1])
        self.length, self._lookback = self.length + piece, lookback
        kept = max(0, total - lookback - self.max_rollback)
        if self.length:  # an empty first piece leaves nothing to count documents on from
            self._inputs = normed_BTMd[:, kept:].detach(), documents_BT[:, kept:]
        unused = total - piece - before
        return normed_BTMd[:, unused:], documents_BT[:, unused:]

    def rollback(self, count: int) -> None:
        """Forgets the last positions.

        Raises:
            ConfigError: more than are kept.
        """
        held = 0 if self._inputs is None else self._inputs[0].shape[1]
        length = self.length - count
        if not 0 <= count <= self.length or held - count < min(self._lookback, length):
            raise ConfigError(
                f"{count} of {self.length} positions are to be taken back, but the state keeps {self.max_rollback}; "
                f"make it with EngramState(max_rollback={max(count, 0)})"
            )
        self.length = length
        if self._inputs is not None and count:
            normed, documents = self._inputs
            self._inputs = (normed[:, :-count], documents[:, :-count]) if held > count else None

    def reorder(self, sequences_B: Tensor) -> None:
        """Goes on from other sequences, as beam search does: b from what `sequences_B[b]` was."""
        if self._inputs is not None:
            normed, documents = self._inputs
            self._inputs = normed[sequences_B], documents[sequences_B]


class Engram(nn.Module):
    """Reads n-gram rows into one or several residual branches.

    Of a row vector e: a key for each branch and one value for all of them, by one matrix product. A branch's score is
    a = <norm(h), norm(key)> / sqrt(d), its gate sigmoid(sign(a) sqrt(max(|a|, 1e-6))), its output u = gate * value, and
    with a convolution SiLU(conv(norm(u))) + u.

    Args:
        hidden_dim: d.
        memory_dim: E, the total width of a position's rows.
        branches: M residual branches (hyper-connections); 1 for an ordinary transformer.
        conv: whether there is a causal depthwise convolution, which starts at zero.
        kernel_size: its taps.
        dilation: between taps; the paper takes N, so that taps see n-grams that do not overlap.
        bias: of the projections: the demo has one, DeepSeek-V4.1 none.
        identity: the value projection starts at zero, so that the layer does: for a model that is trained already. A
            convolution that starts at zero alone leaves gate * value.
        eps: of the norms.

    Example:
        >>> layer = Engram(32, 64, identity=True)
        >>> hidden, rows = torch.randn(2, 5, 32), torch.randn(2, 5, 64)
        >>> hidden = hidden + layer(hidden, rows)
    """

    def __init__(
        self,
        hidden_dim: int,
        memory_dim: int,
        *,
        branches: int = 1,
        conv: bool = True,
        kernel_size: int = 4,
        dilation: int = 3,
        bias: bool = False,
        identity: bool = False,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.hidden_dim = whole(hidden_dim, what="an Engram layer's hidden_dim is", least=1)
        self.memory_dim = whole(memory_dim, what="an Engram layer's memory_dim is", least=1)
        self.branches = whole(branches, what="an Engram layer's branches are", least=1)
        self.kernel_size = whole(kernel_size, what="an Engram layer's kernel_size is", least=1)
        self.dilation = whole(dilation, what="an Engram layer's dilation is", least=1)
        self.identity = identity
        self.eps = eps
        self.project = nn.Linear(memory_dim, (branches + 1) * hidden_dim, bias=bias)  # keys of the branches, the value
        self.key_gain_Md = nn.Parameter(torch.ones(branches, hidden_dim))
        self.query_gain_Md = nn.Parameter(torch.ones(branches, hidden_dim))
        self.conv_gain_Md = nn.Parameter(torch.ones(branches, hidden_dim)) if conv else None
        taps = torch.zeros(branches * hidden_dim, 1, kernel_size)  # in the layout of nn.Conv1d
        self.conv_weight = nn.Parameter(taps) if conv else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws initial values anew."""
        nn.init.normal_(self.project.weight, std=self.memory_dim**-0.5)
        if self.project.bias is not None:
            self.project.bias.zero_()
        if self.identity:
            self.project.weight[self.branches * self.hidden_dim :] = 0
        for gain in (self.key_gain_Md, self.query_gain_Md, self.conv_gain_Md):
            if gain is not None:
                gain.fill_(1)
        if self.conv_weight is not None:
            self.conv_weight.zero_()

    @property
    def lookback(self) -> int:
        """Positions that the convolution looks back."""
        return 0 if self.conv_weight is None else (self.kernel_size - 1) * self.dilation

    def forward(
        self,
        hidden: Tensor,
        rows_BTE: Tensor,
        *,
        dead_BT: Tensor | None = None,
        starts_BT: Tensor | None = None,
        state: EngramState | None = None,
    ) -> Tensor:
        """What is to be added to the hidden states.

        Args:
            hidden: [B, T, d], or [B, T, M, d] for M branches.
            rows_BTE: rows of each position's n-grams, side by side.
            dead_BT: bool, positions without a token, to which nothing is added.
            starts_BT: bool, positions at which another document begins; the convolution does not look past them.
            state: where sequences come in pieces, goes along from piece to piece and is changed.

        Returns:
            Of the shape of `hidden`.

        Raises:
            DataError: shapes that do not go together.
        """
        hidden_BTMd = hidden.unsqueeze(2) if hidden.dim() == 3 and self.branches == 1 else hidden
        self._refuse_other_shapes(hidden_BTMd, rows_BTE)
        keys_BTMd, value_BTd = self._projected(rows_BTE)
        gates_BTM = self._gates(hidden_BTMd, keys_BTMd)
        added = gates_BTM[..., None].to(value_BTd.dtype) * value_BTd.unsqueeze(2)
        if dead_BT is not None:
            added = added.masked_fill(dead_BT[..., None, None], 0)
        if self.conv_weight is not None:
            added = added + F.silu(self._convolved(added, starts_BT, state))
            if dead_BT is not None:
                added = added.masked_fill(dead_BT[..., None, None], 0)
        return added.to(hidden.dtype).view(hidden.shape)

    def gates(self, hidden: Tensor, rows_BTE: Tensor) -> Tensor:
        """How far each branch opens at each position, [B, T, M]: what to look at in a trained model."""
        hidden_BTMd = hidden.unsqueeze(2) if hidden.dim() == 3 and self.branches == 1 else hidden
        return self._gates(hidden_BTMd, self._projected(rows_BTE)[0])

    def _projected(self, rows_BTE: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [B, T, M, d] and values [B, T, d]."""
        both = self.project(rows_BTE.to(self.project.weight.dtype))
        keys, value = both.split([self.branches * self.hidden_dim, self.hidden_dim], dim=-1)
        return keys.unflatten(-1, (self.branches, self.hidden_dim)), value

    def _gates(self, hidden_BTMd: Tensor, keys_BTMd: Tensor) -> Tensor:
        """In single precision at least: the signed square root's slope would overflow in half."""
        dtype = torch.promote_types(hidden_BTMd.dtype, torch.float32)
        hidden, keys = hidden_BTMd.to(dtype), keys_BTMd.to(dtype)
        gain_Md = (self.query_gain_Md * self.key_gain_Md).to(dtype)
        norms = (hidden.square().mean(-1) + self.eps).rsqrt() * (keys.square().mean(-1) + self.eps).rsqrt()
        scores = (hidden * gain_Md * keys).sum(-1) * norms / self.hidden_dim**0.5
        return torch.sigmoid(scores.abs().clamp_min(LEAST_SCORE).sqrt() * scores.sign())

    def _convolved(self, added_BTMd: Tensor, starts_BT: Tensor | None, state: EngramState | None) -> Tensor:
        """The causal convolution of normed outputs, [B, T, M, d]."""
        assert self.conv_weight is not None
        assert self.conv_gain_Md is not None
        exact = added_BTMd.to(torch.promote_types(added_BTMd.dtype, torch.float32))
        scale_BTM1 = (exact.square().mean(-1, keepdim=True) + self.eps).rsqrt().to(added_BTMd.dtype)
        normed = added_BTMd * scale_BTM1 * self.conv_gain_Md
        length = normed.shape[1]
        documents = None if starts_BT is None else starts_BT.cumsum(1)
        if state is not None:
            if documents is None:
                documents = torch.zeros(normed.shape[:2], dtype=torch.int64, device=normed.device)
            past, documents = state.extend(normed, documents, lookback=self.lookback)
        else:
            past = normed
        missing = self.lookback + length - past.shape[1]  # before the beginning there are zeros, which no tap notices
        past = F.pad(past, (0, 0, 0, 0, missing, 0))
        documents = None if documents is None else F.pad(documents, (missing, 0))
        taps_MdK = self.conv_weight.view(self.branches, self.hidden_dim, self.kernel_size)
        result = normed * taps_MdK[..., -1]
        for back in range(1, self.kernel_size):
            first = self.lookback - back * self.dilation
            term = past[:, first : first + length] * taps_MdK[..., -1 - back]
            if documents is not None:
                same_BT = documents[:, first : first + length] == documents[:, self.lookback :]
                term = term * same_BT[..., None, None]
            result = result + term
        return result

    def _refuse_other_shapes(self, hidden_BTMd: Tensor, rows_BTE: Tensor) -> None:
        wanted = (*hidden_BTMd.shape[:2], self.branches, self.hidden_dim)
        if hidden_BTMd.dim() != 4 or tuple(hidden_BTMd.shape) != wanted:
            raise DataError(
                f"hidden states have shape {tuple(hidden_BTMd.shape)}; this Engram layer takes [B, T, "
                f"{self.branches}, {self.hidden_dim}]" + (f" or [B, T, {self.hidden_dim}]" * (self.branches == 1))
            )
        if tuple(rows_BTE.shape) != (*hidden_BTMd.shape[:2], self.memory_dim):
            raise DataError(
                f"rows have shape {tuple(rows_BTE.shape)} for hidden states of shape {tuple(hidden_BTMd.shape)}; this "
                f"Engram layer takes {[*hidden_BTMd.shape[:2], self.memory_dim]}"
            )
