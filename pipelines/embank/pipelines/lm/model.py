"""A decoder with its memory: hidden states of whole sequences for training, and of the next tokens for generation."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from embank.pipelines.lm.config import LmConfig
from embank.pipelines.lm.decoder import Cache, Decoder, SwiGLU
from embank.pipelines.lm.memories import LayerRows, LmMemory, MemoryState
from embank.pipelines.lm.memory_kinds import build_memory
from embank.pipelines.lm.tokens import Corpus
from embank.tables import ConfigError, RowOptimizer, RowTier
from embank.tables.memory import AddressedMemory, MemorySession, MemoryTables, PositionEdit
from embank.tables.sharding.processes import Processes


@dataclass
class TextState:
    """What a model keeps of the tokens so far: keys and values, and its memory's history."""

    cache: Cache = field(default_factory=Cache)
    memory: MemoryState = field(default_factory=MemoryState)


class LanguageModel:
    """A decoder and its memory. Rows are no parameters of `network`; they have an optimizer of their own.

    Args:
        decoder: the network.
        memory: its memory.
        tables: the memory's rows; None for a dense model.

    Attributes:
        network: decoder and the memory's dense layers: what an ordinary optimizer trains.
    """

    def __init__(self, decoder: Decoder, memory: LmMemory, tables: MemoryTables | None) -> None:
        self.decoder, self.memory, self.tables = decoder, memory, tables
        self.network = nn.ModuleDict({"decoder": decoder, "memory": memory.layers})

    @property
    def context(self) -> int:
        """Tokens that attention looks back over at most."""
        return self.decoder.config.context

    def address(self, ids_BT: Tensor) -> AddressedMemory | None:
        """Physical rows of a batch, ahead of the forward pass."""
        return None if self.tables is None else self.tables.address(ids_BT)

    def hidden(
        self,
        ids_BT: Tensor,
        *,
        addressed: AddressedMemory | None = None,
        state: TextState | None = None,
        rows: LayerRows | None = None,
    ) -> Tensor:
        """Normed hidden states [B, T, D].

        Args:
            ids_BT: tokens; with a state, those after it.
            addressed: what `address` made of them.
            state: of the tokens before; it gets the new ones too. Rows are then read without gradients.
            rows: what each layer reads, in place of the tables' own: edits of a single request.
        """
        if rows is None:
            rows = self.rows(ids_BT, addressed=addressed, state=state)
        given = self.memory.given(rows, None if state is None else state.memory)
        hidden: Tensor = self.decoder(
            ids_BT,
            cache=None if state is None else state.cache,
            input_rows=given.input_rows,
            ffn_rows=given.ffn_rows,
            before_block=given.before_block,
        )
        return hidden

    def rows(
        self, ids_BT: Tensor, *, addressed: AddressedMemory | None = None, state: TextState | None = None
    ) -> LayerRows:
        """What each layer reads, [B, T, row_dim]; arguments as for `hidden`."""
        if self.tables is None:
            return {}
        assert self.memory.layout is not None
        if state is None:
            addressed = self.tables.address(ids_BT) if addressed is None else addressed
            return self.tables.look_up(addressed)[self.memory.layout.kind]
        if state.memory.session is None:
            state.memory.session = MemorySession(self.tables, len(ids_BT))
        return state.memory.session.extend(ids_BT)[self.memory.layout.kind]

    def edited_rows(self, edit: PositionEdit, state: TextState) -> LayerRows:
        """What each layer reads of the beginning of a text, as an edit has it; the state goes on from there.

        Raises:
            ConfigError: a model without memory.
        """
        if self.tables is None or self.memory.layout is None:
            raise ConfigError("a model without memory has no rows to edit")
        state.memory.session = MemorySession(self.tables, len(edit.read_ids))
        state.memory.session.extend(edit.read_ids)
        return edit.look_up(self.tables)[self.memory.layout.kind]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D]."""
        return self.decoder.logits(hidden)

    def train(self, mode: bool = True) -> "LanguageModel":
        """Training or evaluation mode, of network and tables."""
        self.network.train(mode)
        if self.tables is not None:
            self.tables.train(mode)
        return self

    @property
    def num_dense_parameters(self) -> int:
        """Of the network, embeddings included."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @property
    def num_row_parameters(self) -> int:
        """Of the memory's rows."""
        specs = [] if self.memory.layout is None else self.memory.layout.specs
        return sum(spec.num_embeddings * spec.embedding_dim for spec in specs)

    def row_weights(self) -> dict[str, Tensor]:
        """Rows of each of the memory's tables by name: views, not copies."""
        collections = {} if self.tables is None else self.tables.collections
        return {name: w for collection in collections.values() for name, w in collection.weights().items()}


def build_model(
    config: LmConfig, corpus: Corpus, *, rows_folder: Path, processes: Processes | None = None
) -> LanguageModel:
    """The model of a configuration with the initial values of its seed, which also seeds torch's generator.

    Args:
        config: the run's configuration.
        corpus: whose tokenizer the model has.
        rows_folder: where the disk tier's files go, unless the configuration says otherwise.
        processes: those that train together; rows are spread over them.

    Raises:
        ConfigError: sizes that do not go together, or tables that are larger than their tier.
    """
    torch.default_generator.manual_seed(config.train.seed)
    memory = build_memory(config, corpus)

    def feed_forward(block: int) -> nn.Module:
        return memory.feed_forward(block) or SwiGLU(config.model.dim, config.model.ffn_dim)

    decoder = Decoder(config.model, vocab_size=corpus.vocab_size, feed_forward=feed_forward)
    tables = None
    if memory.layout is not None:
        rows, train = config.rows, config.train
        directory = Path(rows.directory) if rows.directory else rows_folder
        group = None if processes is None else processes.group
        tables = MemoryTables(
            [memory.layout],
            optimizer=RowOptimizer(name=train.row_optimizer, lr=train.row_lr),
            backend=rows.backend,
            tier=RowTier(
                name=rows.tier,
                directory=directory if rows.tier == "disk" else None,
                prefetch=rows.prefetch,
                dtype=rows.dtype,
            ),
            cut=None if group is None else rows.cut,
            group=group,
            seed=train.seed,
        )
    return LanguageModel(decoder, memory, tables)
