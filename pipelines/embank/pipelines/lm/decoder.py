"""A small decoder, as plain as today's are: pre-norm, rotary attention with a cache, SwiGLU, tied embeddings.

Legend: B batch, T tokens, S tokens seen with the cache, H heads, D dim, F feed-forward width, V ids.

Source: the block of Touvron et al., LLaMA, arXiv 2302.13971; rotary positions: Su et al., arXiv 2104.09864; SwiGLU:
Shazeer, arXiv 2002.05202.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embank.pipelines.lm.config import ModelConfig

Memory = Callable[[Tensor, int], Tensor]
"""Given the residual stream [B, T, D] before a block and the block's number, what is added to it."""


@dataclass
class Cache:
    """Keys and values [B, H, S, D / H] of each block, of all tokens so far."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens so far."""
        return self.keys[0].shape[2] if self.keys else 0

    def extend(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the new tokens' keys and values of a block; returns all of them."""
        if block == len(self.keys):
            self.keys.append(keys)
            self.values.append(values)
        else:
            self.keys[block] = torch.cat([self.keys[block], keys], dim=2)
            self.values[block] = torch.cat([self.values[block], values], dim=2)
        return self.keys[block], self.values[block]


class Attention(nn.Module):
    """Causal self-attention with rotary positions.

    Args:
        dim: of the residual stream.
        num_heads: heads of width dim / num_heads.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x_BTD: Tensor, *, block: int, rotation: tuple[Tensor, Tensor], cache: Cache | None) -> Tensor:
        """Mixes the stream over tokens [B, T, D]; with a cache, over those before as well."""
        B, T, D = x_BTD.shape
        q, k, v = self.qkv(x_BTD).view(B, T, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k = _rotated(q, rotation), _rotated(k, rotation)
        before = 0 if cache is None else cache.length if block == 0 else cache.keys[0].shape[2] - T
        if cache is not None:
            k, v = cache.extend(block, k, v)
        mask = None
        if before and T > 1:
            mask = torch.ones(T, before + T, dtype=torch.bool).tril(before)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=not before and T > 1)
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(B, T, D))
        return result


def _rotated(x_BHTE: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys turned by their positions' angles, first half against second half."""
    cos, sin = rotation
    first, second = x_BHTE.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def rotation_of(start: int, num_tokens: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, width / 2] of the positions from `start` on."""
    frequencies = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.outer(torch.arange(start, start + num_tokens, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


class SwiGLU(nn.Module):
    """y = down(SiLU(gate(x)) * up(x)).

    Args:
        dim: of the residual stream.
        hidden: width between.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        result: Tensor = self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))
        return result


class Block(nn.Module):
    """Attention and a feed-forward layer, each behind a norm and added to the stream.

    Args:
        config: of the decoder.
        feed_forward: takes the normed stream [B, T, D], and the block's memory rows where it `needs_rows`.
    """

    def __init__(self, config: ModelConfig, feed_forward: nn.Module) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, eps=1e-6)
        self.attention = Attention(config.dim, config.num_heads)
        self.ffn_norm = nn.RMSNorm(config.dim, eps=1e-6)
        self.ffn = feed_forward

    def forward(
        self,
        x_BTD: Tensor,
        *,
        block: int,
        rotation: tuple[Tensor, Tensor],
        cache: Cache | None,
        ffn_rows: Tensor | None = None,
    ) -> Tensor:
        """One block of the stream [B, T, D]."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), block=block, rotation=rotation, cache=cache)
        normed = self.ffn_norm(x_BTD)
        written: Tensor = self.ffn(normed) if ffn_rows is None else self.ffn(normed, ffn_rows)
        return x_BTD + written


class Decoder(nn.Module):
    """Token ids to hidden states and logits.

    Args:
        config: shapes.
        vocab_size: ids.
        feed_forward: makes the feed-forward layer of a block, given its number; None makes `SwiGLU`.

    Example:
        >>> decoder = Decoder(ModelConfig(dim=16, num_layers=2, num_heads=2), vocab_size=300)
        >>> decoder.logits(decoder(torch.tensor([[5, 6, 7]]))).shape
        torch.Size([1, 3, 300])
    """

    def __init__(
        self, config: ModelConfig, *, vocab_size: int, feed_forward: Callable[[int], nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.config = config
        make = feed_forward or (lambda _: SwiGLU(config.dim, config.ffn_dim))
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config, make(number)) for number in range(config.num_layers))
        self.norm = nn.RMSNorm(config.dim, eps=1e-6)
        self._initialise()

    def _initialise(self) -> None:
        """Normal weights; what writes to the stream starts smaller, by the number of writers."""
        nn.init.normal_(self.embedding.weight, std=self.config.dim**-0.5)
        for name, parameter in self.named_parameters():
            if name.endswith(("qkv.weight", "gate.weight", "up.weight")):
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            elif name.endswith(("attention.out.weight", "ffn.down.weight")):
                nn.init.normal_(parameter, std=(2 * self.config.num_layers * parameter.shape[1]) ** -0.5)

    def forward(
        self,
        ids_BT: Tensor,
        *,
        cache: Cache | None = None,
        input_rows: Tensor | None = None,
        ffn_rows: Mapping[int, Tensor] | None = None,
        before_block: Memory | None = None,
    ) -> Tensor:
        """Normed hidden states [B, T, D], from which `logits` come.

        Args:
            ids_BT: tokens; with a cache, those after it.
            cache: of the tokens before; it gets the new ones too.
            input_rows: [B, T, D], added to the embeddings.
            ffn_rows: by block, what its feed-forward layer is given besides the stream.
            before_block: what a memory adds to the stream before a block.
        """
        x_BTD = self._embedded(ids_BT)
        if input_rows is not None:
            x_BTD = x_BTD + input_rows
        start = 0 if cache is None else cache.length
        rotation = rotation_of(start, ids_BT.shape[1], self.config.dim // self.config.num_heads)
        for number, block in enumerate(self.blocks):
            if before_block is not None:
                x_BTD = before_block(x_BTD, number)
            rows = None if ffn_rows is None else ffn_rows.get(number)
            x_BTD = block(x_BTD, block=number, rotation=rotation, cache=cache, ffn_rows=rows)
        result: Tensor = self.norm(x_BTD)
        return result

    def _embedded(self, ids_BT: Tensor) -> Tensor:
        """Embeddings [B, T, D] of about unit variance; in training some positions have none."""
        x_BTD: Tensor = self.embedding(ids_BT) * self.config.dim**0.5
        if self.training and self.config.embedding_dropout:
            x_BTD = x_BTD * (torch.rand(ids_BT.shape) >= self.config.embedding_dropout)[..., None]
        return x_BTD

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D]; the embeddings are the output layer too."""
        return F.linear(hidden, self.embedding.weight)
