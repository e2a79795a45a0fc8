"""MemoryFormer: a linear layer made of lookups, which the signs of its input address.

Source: MemoryFormer (arXiv 2411.12992, section 3; C0-Design/MemoryFormer). The released code scores a lookup by another
formula than the paper and reads the bits the other way round; both are here, by name.

Tables are small and all of their rows are in use at every step, so they are ordinary parameters: there is nothing to
shard, to prefetch or to offload.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embank.tables.errors import ConfigError, DataError
from embank.tables.scalars import whole

Scoring = Literal["paper", "released"]

MAX_BITS = 20
"""A table has 2 ** bits rows."""


class MemoryFormerLinear(nn.Module):
    """y = sum over chunks z of the input: p(z) T[h(z)], h(z) the sign pattern of z. Its input must be normed, or few
    patterns get all lookups.

    Args:
        in_features: of the input, a multiple of `bits`.
        out_features: of the output, the width of rows.
        bits: tau, signs per chunk; a table has 2 ** tau rows, and there are in_features / tau tables.
        scoring: "paper": p is the softmax probability of the pattern among all, prod 1 / (1 + exp(-2 |z_i|)), and the
            first element is the lowest bit. "released": that times sum |z_i|, the first element the highest bit. Tables
            of one are not tables of the other.
        bias: whether there is one.

    Raises:
        ConfigError: sizes that do not go together.

    Example:
        >>> layer = MemoryFormerLinear(16, 24, bits=8)
        >>> layer(torch.nn.functional.layer_norm(torch.randn(2, 5, 16), (16,))).shape
        torch.Size([2, 5, 24])
    """

    place_values: Tensor
    first_rows: Tensor

    def __init__(
        self, in_features: int, out_features: int, *, bits: int = 8, scoring: Scoring = "paper", bias: bool = False
    ) -> None:
        super().__init__()
        self.in_features = whole(in_features, what="a MemoryFormer layer's in_features is", least=1)
        self.out_features = whole(out_features, what="a MemoryFormer layer's out_features is", least=1)
        self.bits = whole(bits, what="a MemoryFormer layer's bits are", least=1)
        if in_features % bits or bits > MAX_BITS:
            raise ConfigError(
                f"a MemoryFormer layer of {in_features} inputs can't hash {bits} bits a chunk; give a divisor of the "
                f"inputs, at most {MAX_BITS}"
            )
        if scoring not in get_args(Scoring):
            raise ConfigError(f"there is no scoring '{scoring}'; use {' or '.join(get_args(Scoring))}")
        self.scoring = scoring
        self.num_chunks = in_features // bits
        self.rows_RD = nn.Parameter(torch.empty(self.num_chunks * 2**bits, out_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        powers = 2 ** torch.arange(bits)
        self.register_buffer("place_values", powers if scoring == "paper" else powers.flip(0), persistent=False)
        self.register_buffer("first_rows", torch.arange(self.num_chunks) * 2**bits, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws initial values anew, as released: N(0, 0.02 ** 2)."""
        nn.init.normal_(self.rows_RD, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def address(self, x: Tensor) -> Tensor:
        """The row of each chunk in its table, int64 [..., chunks].

        Raises:
            DataError: another width.
        """
        return self._addressed(self._chunks(x))

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output [..., out_features]; x gets its gradient through the scores alone.

        Raises:
            DataError: another width.
        """
        chunks = self._chunks(x)
        rows = (self._addressed(chunks) + self.first_rows).view(-1, self.num_chunks)
        scores = self._scores(chunks).view(-1, self.num_chunks).to(self.rows_RD.dtype)
        summed = F.embedding_bag(rows, self.rows_RD, per_sample_weights=scores, mode="sum")
        result = summed.view(*x.shape[:-1], self.out_features)
        return result if self.bias is None else result + self.bias

    def _chunks(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise DataError(
                f"the input has width {x.shape[-1]}; this MemoryFormer layer takes {self.in_features} features"
            )
        return x.reshape(*x.shape[:-1], self.num_chunks, self.bits)

    def _addressed(self, chunks: Tensor) -> Tensor:
        return ((chunks >= 0) * self.place_values).sum(-1)

    def _scores(self, chunks: Tensor) -> Tensor:
        sizes = chunks.abs()
        probability = torch.sigmoid(2 * sizes).prod(-1)
        return probability if self.scoring == "paper" else probability * sizes.sum(-1)
