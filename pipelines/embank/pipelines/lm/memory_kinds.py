"""The kinds of memory: Engram, STEM, MemoryFormer, and the cheap pair of tokens."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from embank.pipelines.lm.config import LmConfig, MemoryConfig, memory_layers
from embank.pipelines.lm.memories import Given, LmMemory, MemoryState, NoMemory
from embank.pipelines.lm.tokens import Corpus
from embank.tables import ConfigError, TableSpec
from embank.tables.memory import (
    Engram,
    EngramState,
    MemoryFormerLinear,
    NgramHash,
    StemFFN,
    TokenCompression,
    stem_init_std,
)

END_ID = 0
"""What stands where n-grams look back before the beginning."""


class BigramMemory(LmMemory):
    """A row per hashed pair of tokens, added to the embeddings: the cheap baseline of the modded-nanogpt records.

    Rows start at 0, so that training starts from the dense decoder.

    Args:
        dim: of the stream.
        rows: of the table.
        vocab_size: of the tokenizer.
    """

    lookback = 1

    def __init__(self, *, dim: int, rows: int, vocab_size: int) -> None:
        super().__init__()
        self.hash = NgramHash(
            layer_ids=[0],
            max_ngram=2,
            num_heads=1,
            rows_per_order=[rows],
            compressed_vocab_size=vocab_size,
            pad_id=END_ID,
        )
        (prime,) = self.hash.primes[0]
        self.specs = [
            TableSpec(name="bigram", num_embeddings=prime, embedding_dim=dim, feature_names=["bigram"], init_std=0.0)
        ]

    def ids(self, ids_BT: Tensor, *, before_BS: Tensor | None) -> dict[str, Tensor]:
        return {"bigram": self.hash(ids_BT, before_BS=before_BS)[0]}

    def given(self, rows: Mapping[str, Tensor], state: MemoryState | None) -> Given:
        return Given(input_rows=rows["bigram"])


class EngramMemory(LmMemory):
    """Rows of hashed n-grams, gated into the stream before some blocks.

    Args:
        config: heads, rows, widths.
        layers: blocks, 0-based.
        dim: of the stream.
        compression: of the tokenizer.
    """

    def __init__(self, config: MemoryConfig, *, layers: Sequence[int], dim: int, compression: TokenCompression) -> None:
        super().__init__()
        self.config, self.compression = config, compression
        num_orders = config.max_ngram - 1
        self.hash = NgramHash(
            layer_ids=layers,
            max_ngram=config.max_ngram,
            num_heads=config.num_heads,
            rows_per_order=[config.rows] * num_orders,
            compressed_vocab_size=compression.size,
            pad_id=compression.one(END_ID),
        )
        self.lookback = self.hash.lookback
        width = self.hash.num_columns * config.row_dim
        self.engrams = {
            layer: Engram(dim, width, conv=config.conv, dilation=config.max_ngram) for layer in self.hash.layer_ids
        }
        self.layers = nn.ModuleDict({str(layer): engram for layer, engram in self.engrams.items()})
        self.specs = [
            TableSpec(
                name=f"engram.layer{layer}.order{2 + column // config.num_heads}.head{column % config.num_heads}",
                num_embeddings=prime,
                embedding_dim=config.row_dim,
                feature_names=[_group(layer)],
            )
            for layer in self.hash.layer_ids
            for column, prime in enumerate(self.hash.primes[layer])
        ]

    def ids(self, ids_BT: Tensor, *, before_BS: Tensor | None) -> dict[str, Tensor]:
        before_BS = None if before_BS is None else self.compression(before_BS)
        found = self.hash(self.compression(ids_BT), before_BS=before_BS)
        return {_group(layer): self._shuffled(ids_BTH) for layer, ids_BTH in found.items()}

    def _shuffled(self, ids_BTH: Tensor) -> Tensor:
        """The control: the rows of another sequence of the batch, as frequent ones as the right ones."""
        if not self.config.shuffle_ids:
            return ids_BTH
        if len(ids_BTH) < 2:
            raise ConfigError(
                "memory.shuffle_ids gives each sequence the rows of another one of its batch, and this batch has one; "
                "it is a control for training and evaluation, with train.batch_size of at least 2 on each rank"
            )
        return ids_BTH.roll(1, dims=0)

    def given(self, rows: Mapping[str, Tensor], state: MemoryState | None) -> Given:
        def before_block(x_BTD: Tensor, block: int) -> Tensor:
            if block not in self.engrams:
                return x_BTD
            kept = None if state is None else state.layers.setdefault(block, EngramState())
            added: Tensor = self.engrams[block](x_BTD, rows[_group(block)], state=kept)
            return x_BTD + added

        return Given(before_block=before_block)


class StemMemory(LmMemory):
    """A row per token in the feed-forward layers of some blocks.

    Args:
        config: whether rows replace the up-projection or are added to it.
        layers: blocks, 0-based.
        dim: of the stream.
        ffn_dim: of the feed-forward layers, the width of rows.
        vocab_size: of the tokenizer.
    """

    def __init__(self, config: MemoryConfig, *, layers: Sequence[int], dim: int, ffn_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.blocks, self.dim, self.ffn_dim, self.added = tuple(layers), dim, ffn_dim, config.added
        std = 0.0 if config.added else stem_init_std(vocab_size, ffn_dim)
        self.specs = [
            TableSpec(
                name=f"stem.layer{layer}",
                num_embeddings=vocab_size,
                embedding_dim=ffn_dim,
                feature_names=["stem"],
                init_std=std,
            )
            for layer in self.blocks
        ]

    def ids(self, ids_BT: Tensor, *, before_BS: Tensor | None) -> dict[str, Tensor]:
        return {"stem": ids_BT[..., None].expand(*ids_BT.shape, len(self.blocks))}

    def given(self, rows: Mapping[str, Tensor], state: MemoryState | None) -> Given:
        by_block = torch.split(rows["stem"], self.ffn_dim, dim=-1)
        return Given(ffn_rows=dict(zip(self.blocks, by_block, strict=True)))

    def feed_forward(self, block: int) -> nn.Module | None:
        if block not in self.blocks:
            return None
        return StemFFN(self.dim, self.ffn_dim, kind="add" if self.added else "replace")


class _MemoryFormerFFN(nn.Module):
    """Two layers of lookups with a norm between, without an activation; the first one's output has two bits more per
    chunk."""

    def __init__(self, dim: int, bits: int) -> None:
        super().__init__()
        middle = dim // bits * (bits + 2)
        self.first = MemoryFormerLinear(dim, middle, bits=bits)
        self.norm = nn.RMSNorm(middle, eps=1e-6)
        self.second = MemoryFormerLinear(middle, dim, bits=bits + 2)

    def forward(self, x_BTD: Tensor) -> Tensor:
        result: Tensor = self.second(self.norm(self.first(x_BTD)))
        return result


class MemoryFormerMemory(LmMemory):
    """Lookups by the signs of activations in place of the feed-forward layers of some blocks. Their tables are small
    and in use at every step, so they are parameters of the network.

    Args:
        layers: blocks, 0-based.
        dim: of the stream.
        bits: signs that address a table.

    Source: MemoryFormer, arXiv 2411.12992, section 3.3; its projections of attention stay dense here.
    """

    def __init__(self, *, layers: Sequence[int], dim: int, bits: int) -> None:
        super().__init__()
        self.blocks, self.dim, self.bits = tuple(layers), dim, bits

    def ids(self, ids_BT: Tensor, *, before_BS: Tensor | None) -> dict[str, Tensor]:
        return {}

    def given(self, rows: Mapping[str, Tensor], state: MemoryState | None) -> Given:
        return Given()

    def feed_forward(self, block: int) -> nn.Module | None:
        return _MemoryFormerFFN(self.dim, self.bits) if block in self.blocks else None


def build_memory(config: LmConfig, corpus: Corpus) -> LmMemory:
    """The memory of a configuration, without its tables.

    Args:
        config: the run's configuration.
        corpus: whose tokenizer decides which n-grams are the same.

    Raises:
        ConfigError: sizes that do not go together.
    """
    memory, model, layers = config.memory, config.model, memory_layers(config)
    match memory.kind:
        case "none":
            return NoMemory()
        case "bigram":
            return BigramMemory(dim=model.dim, rows=memory.rows, vocab_size=corpus.vocab_size)
        case "engram":
            compression = TokenCompression.from_tokenizer(corpus.tokenizer, compress=memory.compress)
            return EngramMemory(memory, layers=layers, dim=model.dim, compression=compression)
        case "stem":
            return StemMemory(memory, layers=layers, dim=model.dim, ffn_dim=model.ffn_dim, vocab_size=corpus.vocab_size)
        case "memoryformer":
            return MemoryFormerMemory(layers=layers, dim=model.dim, bits=memory.bits)


def _group(layer: int) -> str:
    return f"engram{layer}"
