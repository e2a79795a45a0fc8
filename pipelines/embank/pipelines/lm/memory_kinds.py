"""The kinds of memory: Engram, STEM, MemoryFormer, and the cheap pair of tokens."""

from collections.abc import Sequence

from torch import Tensor, nn

from embank.pipelines.lm.config import LmConfig, memory_layers
from embank.pipelines.lm.memories import Given, LayerRows, LmMemory, MemoryState
from embank.pipelines.lm.tokens import Corpus
from embank.tables import ConfigError
from embank.tables.memory import (
    Engram,
    EngramConfig,
    EngramLayout,
    EngramState,
    MemoryFormerLinear,
    StemConfig,
    StemFFN,
    StemLayout,
    TokenCompression,
)
from embank.tables.memory.memoryformer import Scoring

END_ID = 0
"""What stands where n-grams look back before the beginning."""


class NoMemory(LmMemory):
    """The dense decoder."""

    def given(self, rows: LayerRows, state: MemoryState | None) -> Given:
        return Given()


class BigramMemory(LmMemory):
    """A row per hashed pair of tokens, added to the embeddings: the cheap baseline of the modded-nanogpt records.

    Its layout is that of an Engram with one head and one order, with rows that start at 0.
    """

    def given(self, rows: LayerRows, state: MemoryState | None) -> Given:
        return Given(input_rows=rows[0])


class EngramMemory(LmMemory):
    """Rows of hashed n-grams, gated into the stream before some blocks.

    Args:
        layout: of the tables.
        dim: of the stream.
        conv: whether the layers have the paper's convolution.
    """

    def __init__(self, layout: EngramLayout, *, dim: int, conv: bool) -> None:
        super().__init__(layout)
        self.engrams = {
            layer: Engram(dim, layout.row_dim, conv=conv, dilation=layout.hash.max_ngram) for layer in layout.layer_ids
        }
        self.layers = nn.ModuleDict({str(layer): engram for layer, engram in self.engrams.items()})

    def given(self, rows: LayerRows, state: MemoryState | None) -> Given:
        def before_block(x_BTD: Tensor, block: int) -> Tensor:
            if block not in self.engrams:
                return x_BTD
            kept = None if state is None else state.layers.setdefault(block, EngramState())
            added: Tensor = self.engrams[block](x_BTD, rows[block], state=kept)
            return x_BTD + added

        return Given(before_block=before_block)


class ShuffledLayout(EngramLayout):
    """The control: each sequence of a batch gets the rows of another one, as frequent ones as the right ones."""

    def ids(self, token_ids_BT: Tensor, marked_BT: Tensor, before_BS: Tensor | None) -> dict[str, Tensor]:
        if len(token_ids_BT) < 2:
            raise ConfigError(
                "memory.shuffle_ids gives each sequence the rows of another one of its batch, and this batch has one; "
                "it is a control for training and evaluation, with train.batch_size of at least 2 on each rank"
            )
        found = super().ids(token_ids_BT, marked_BT, before_BS)
        return {group: ids_BTH.roll(1, dims=0) for group, ids_BTH in found.items()}


class StemMemory(LmMemory):
    """A row per token in the feed-forward layers of some blocks.

    Args:
        layout: of the tables.
        dim: of the stream.
        added: rows are added to the up-projection instead of replacing it.
    """

    def __init__(self, layout: StemLayout, *, dim: int, added: bool) -> None:
        super().__init__(layout)
        self.blocks, self.dim, self.ffn_dim, self.added = layout.layer_ids, dim, layout.row_dim, added

    def given(self, rows: LayerRows, state: MemoryState | None) -> Given:
        return Given(ffn_rows=rows)

    def feed_forward(self, block: int) -> nn.Module | None:
        if block not in self.blocks:
            return None
        return StemFFN(self.dim, self.ffn_dim, kind="add" if self.added else "replace")


class _MemoryFormerFFN(nn.Module):
    """Two layers of lookups with a norm between, without an activation; the first one's output has two bits more per
    chunk."""

    def __init__(self, dim: int, bits: int, scoring: Scoring) -> None:
        super().__init__()
        middle = dim // bits * (bits + 2)
        self.first = MemoryFormerLinear(dim, middle, bits=bits, scoring=scoring)
        self.norm = nn.RMSNorm(middle, eps=1e-6)
        self.second = MemoryFormerLinear(middle, dim, bits=bits + 2, scoring=scoring)

    def forward(self, x_BTD: Tensor) -> Tensor:
        result: Tensor = self.second(self.norm(self.first(x_BTD)))
        return result


class MemoryFormerMemory(LmMemory):
    """Lookups by the signs of activations in place of the feed-forward layers of some blocks. Their tables are small
    and in use at every step, so they are parameters of the network.

    Args:
        blocks: those blocks, 0-based.
        dim: of the stream.
        bits: signs that address a table.
        scoring: of a lookup.

    Source: MemoryFormer, arXiv 2411.12992, section 3.3; its projections of attention stay dense here.
    """

    def __init__(self, *, blocks: Sequence[int], dim: int, bits: int, scoring: Scoring = "paper") -> None:
        super().__init__()
        self.blocks, self.dim, self.bits, self.scoring = tuple(blocks), dim, bits, scoring

    def given(self, rows: LayerRows, state: MemoryState | None) -> Given:
        return Given()

    def feed_forward(self, block: int) -> nn.Module | None:
        return _MemoryFormerFFN(self.dim, self.bits, self.scoring) if block in self.blocks else None


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
            shape = EngramConfig(
                layer_ids=[0],
                max_ngram=2,
                num_heads=1,
                rows_per_order=memory.rows,
                memory_dim=model.dim,
                init_std=0.0,
            )
            return BigramMemory(EngramLayout(shape, _compression(corpus, compress=False), pad_token=END_ID))
        case "engram":
            return EngramMemory(_engram_layout(config, corpus), dim=model.dim, conv=memory.conv)
        case "stem":
            stem = StemConfig(layer_ids=layers, ffn_dim=model.ffn_dim, init_std=0.0 if memory.added else None)
            return StemMemory(StemLayout(stem, _compression(corpus, compress=False)), dim=model.dim, added=memory.added)
        case "memoryformer":
            return MemoryFormerMemory(blocks=layers, dim=model.dim, bits=memory.bits, scoring=memory.scoring)


def _engram_layout(config: LmConfig, corpus: Corpus) -> EngramLayout:
    memory = config.memory
    shape = EngramConfig(
        layer_ids=memory_layers(config),
        max_ngram=memory.max_ngram,
        num_heads=memory.num_heads,
        rows_per_order=memory.rows,
        memory_dim=(memory.max_ngram - 1) * memory.num_heads * memory.row_dim,
    )
    layout = ShuffledLayout if memory.shuffle_ids else EngramLayout
    return layout(shape, _compression(corpus, compress=memory.compress), pad_token=END_ID)


def _compression(corpus: Corpus, *, compress: bool) -> TokenCompression:
    return TokenCompression.from_tokenizer(corpus.tokenizer, compress=compress)
