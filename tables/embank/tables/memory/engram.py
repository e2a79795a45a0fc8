"""The Engram layer: n-gram rows, gated by the hidden state that reads them, added to the residual stream.

Source: Engram (arXiv 2601.07372, section 2.3) as released (deepseek-ai/Engram): the gate takes a signed square root,
which the paper's equations 4 and 6 leave out. DeepSeek-V4.1 has no convolution; the paper and the demo have one.
"""

from collections.abc import Iterator
from typing import Any

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
        self._normed: Tensor | None = None  # the last inputs of the convolution, [B, S, M, d]
        self._documents: Tensor | None = None  # the document of each, [B, S]; None while there is one

    def extend(
        self, normed_BTMd: Tensor, documents_BT: Tensor | None, *, lookback: int
    ) -> tuple[Tensor, Tensor | None]:
        """Goes on by a piece.

        Args:
            normed_BTMd: inputs of the convolution.
            documents_BT: the document of each, counted within the piece; 0 goes on with the one before. None is all 0.
            lookback: positions that the convolution looks back.

        Returns:
            The same with up to `lookback` positions before them, documents counted through.
        """
        piece, held = normed_BTMd.shape[1], 0
        if self._normed is not None:
            held = self._normed.shape[1]
            documents_BT = self._counted_on(documents_BT, normed_BTMd)
            normed_BTMd = torch.cat([self._normed, normed_BTMd], dim=1)
        self.length, self._lookback = self.length + piece, lookback
        if self.length:  # an empty first piece leaves nothing to count documents on from
            kept = max(0, held + piece - lookback - self.max_rollback)
            self._normed = normed_BTMd[:, kept:].detach()
            self._documents = None if documents_BT is None else documents_BT[:, kept:]
        unused = max(0, held - lookback)
        return normed_BTMd[:, unused:], None if documents_BT is None else documents_BT[:, unused:]

    def _counted_on(self, documents_BT: Tensor | None, normed_BTMd: Tensor) -> Tensor | None:
        """Documents of what is held and of a piece; None while there is one document."""
        if documents_BT is None and self._documents is None:
            return None
        assert self._normed is not None
        before, device = self._documents, normed_BTMd.device
        if before is None:
            before = torch.zeros(self._normed.shape[:2], dtype=torch.int64, device=device)
        if documents_BT is None:
            documents_BT = torch.zeros(normed_BTMd.shape[:2], dtype=torch.int64, device=device)
        return torch.cat([before, documents_BT + before[:, -1:]], dim=1)

    def rollback(self, count: int) -> None:
        """Forgets the last positions.

        Raises:
            ConfigError: more than are kept.
        """
        held = 0 if self._normed is None else self._normed.shape[1]
        length = self.length - count
        if not 0 <= count <= self.length or held - count < min(self._lookback, length):
            raise ConfigError(
                f"{count} of {self.length} positions are to be taken back, but the state keeps {self.max_rollback}; "
                f"make it with EngramState(max_rollback={max(count, 0)})"
            )
        self.length = length
        self._normed = None if self._normed is None or held == count else self._normed[:, : held - count]
        self._documents = None if self._documents is None or held == count else self._documents[:, : held - count]

    def reorder(self, sequences_B: Tensor) -> None:
        """Goes on from other sequences, as beam search does: b from what `sequences_B[b]` was."""
        self._normed = None if self._normed is None else self._normed[sequences_B]
        self._documents = None if self._documents is None else self._documents[sequences_B]


class _DilatedConv(torch.autograd.Function):
    """A causal depthwise convolution along positions: what slices and sums would give, without a tensor for each.

    Inputs [B, P + T, M, d] with P positions before those that are asked for, taps [M, d, K], the last one a position's
    own; documents [B, P + T], across which no tap reaches.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, taps_MdK: Tensor, dilation: int, length: int, documents: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(inputs, taps_MdK)
        ctx.dilation, ctx.length, ctx.documents = dilation, length, documents
        return _convolved(inputs, taps_MdK, dilation, length, documents)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        inputs, taps_MdK = ctx.saved_tensors
        grad_inputs, grad_taps = torch.zeros_like(inputs), torch.zeros_like(taps_MdK)
        own = inputs.shape[1] - ctx.length
        grad_inputs[:, own:] = grad * taps_MdK[..., -1]
        grad_taps[..., -1] = (grad * inputs[:, own:]).sum((0, 1))
        for back, read, written, same in _reaches(inputs, taps_MdK, ctx.dilation, ctx.length, ctx.documents):
            reached = grad[:, written] if same is None else grad[:, written] * same
            grad_inputs[:, read].addcmul_(reached, taps_MdK[..., -1 - back])
            grad_taps[..., -1 - back] = (reached * inputs[:, read]).sum((0, 1))
        return grad_inputs, grad_taps, None, None, None


def _convolved(inputs: Tensor, taps_MdK: Tensor, dilation: int, length: int, documents: Tensor | None) -> Tensor:
    """What `_DilatedConv` gives."""
    result = inputs[:, inputs.shape[1] - length :] * taps_MdK[..., -1]
    for back, read, written, same in _reaches(inputs, taps_MdK, dilation, length, documents):
        values = inputs[:, read] if same is None else inputs[:, read] * same
        result[:, written].addcmul_(values, taps_MdK[..., -1 - back])
    return result


def _reaches(
    inputs: Tensor, taps_MdK: Tensor, dilation: int, length: int, documents: Tensor | None
) -> Iterator[tuple[int, slice, slice, Tensor | None]]:
    """For each tap but a position's own: how many taps back it is, which inputs it reads for which results, and where
    both are of one document."""
    own = inputs.shape[1] - length
    for back in range(1, taps_MdK.shape[-1]):
        first = max(0, back * dilation - own)  # results before it would read what is before the beginning
        read = slice(own + first - back * dilation, max(0, own + length - back * dilation))
        if first < length:
            same = None
            if documents is not None:
                same = (documents[:, read] == documents[:, own + first :])[..., None, None]
            yield back, read, slice(first, None), same


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
        copysign: a score of exactly 0 opens the gate by 0.50025, as any tiny positive one does (DeepSeek-V4.1), and not
            by one half (the demo, Qwen).

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
        copysign: bool = False,
    ) -> None:
        super().__init__()
        self.hidden_dim = whole(hidden_dim, what="an Engram layer's hidden_dim is", least=1)
        self.memory_dim = whole(memory_dim, what="an Engram layer's memory_dim is", least=1)
        self.branches = whole(branches, what="an Engram layer's branches are", least=1)
        self.kernel_size = whole(kernel_size, what="an Engram layer's kernel_size is", least=1)
        self.dilation = whole(dilation, what="an Engram layer's dilation is", least=1)
        self.identity = identity
        self.eps = eps
        self.copysign = copysign
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
        # <norm(h), norm(k)> by three products: neither norm is written out.
        squares = self._mean_square(hidden) * self._mean_square(keys)
        scores = torch.linalg.vecdot(hidden * gain_Md, keys) * (squares * self.hidden_dim).rsqrt()
        roots = scores.abs().clamp_min(LEAST_SCORE).sqrt()
        return torch.sigmoid(roots.copysign(scores) if self.copysign else roots * scores.sign())

    def _mean_square(self, x: Tensor) -> Tensor:
        """What a norm divides by the root of."""
        square: Tensor = torch.linalg.vecdot(x, x)
        return square / self.hidden_dim + self.eps

    def _convolved(self, added_BTMd: Tensor, starts_BT: Tensor | None, state: EngramState | None) -> Tensor:
        """The causal convolution of normed outputs, [B, T, M, d]."""
        assert self.conv_weight is not None
        assert self.conv_gain_Md is not None
        exact = added_BTMd.to(torch.promote_types(added_BTMd.dtype, torch.float32))
        scale_BTM = self._mean_square(exact).rsqrt().to(added_BTMd.dtype)
        inputs, length = added_BTMd * scale_BTM[..., None] * self.conv_gain_Md, added_BTMd.shape[1]
        documents = None if starts_BT is None else starts_BT.cumsum(1)
        if state is not None:
            inputs, documents = state.extend(inputs, documents, lookback=self.lookback)
        taps_MdK = self.conv_weight.view(self.branches, self.hidden_dim, self.kernel_size)
        # Autograd's functions cost more than a position's sums.
        convolve = _DilatedConv.apply if torch.is_grad_enabled() else _convolved
        result: Tensor = convolve(inputs, taps_MdK, self.dilation, length, documents)
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
