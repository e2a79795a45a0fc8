"""A decoder with its memory: hidden states of whole sequences for training, and of the next tokens for generation."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from embank.pipelines.lm.config import LmConfig
from embank.pipelines.lm.decoder import Cache, Decoder, SwiGLU
from embank.pipelines.lm.memories import LmMemory, MemoryState
from embank.pipelines.lm.memory_kinds import build_memory
from embank.pipelines.lm.tokens import Corpus
from embank.tables import PlanRequest, RowOptimizer, RowTier, SequenceCollection, Sharding, plan_tables
from embank.tables.collections.addressed import AddressedSequence
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

    Attributes:
        network: decoder and the memory's dense layers: what an ordinary optimizer trains.
    """

    def __init__(self, decoder: Decoder, memory: LmMemory) -> None:
        self.decoder, self.memory = decoder, memory
        self.network = nn.ModuleDict({"decoder": decoder, "memory": memory.layers})

    @property
    def tables(self) -> SequenceCollection | None:
        """The memory's rows; None for a dense model."""
        return self.memory.tables

    @property
    def context(self) -> int:
        """Tokens that attention looks back over at most."""
        return self.decoder.config.context

    def address(self, ids_BT: Tensor, *, before_BS: Tensor | None = None) -> AddressedSequence | None:
        """Physical rows of a batch, ahead of the forward pass."""
        if self.tables is None:
            return None
        return self.tables.address(self.memory.ids(ids_BT, before_BS=before_BS))

    def hidden(
        self, ids_BT: Tensor, *, addressed: AddressedSequence | None = None, state: TextState | None = None
    ) -> Tensor:
        """Normed hidden states [B, T, D].

        Args:
            ids_BT: tokens; with a state, those after it.
            addressed: what `address` made of them.
            state: of the tokens before; it gets the new ones too.
        """
        rows: dict[str, Tensor] = {}
        if self.tables is not None:
            before_BS = None if state is None else state.memory.history
            addressed = self.address(ids_BT, before_BS=before_BS) if addressed is None else addressed
            assert addressed is not None
            rows = dict(self.tables(addressed))
        given = self.memory.given(rows, None if state is None else state.memory)
        hidden: Tensor = self.decoder(
            ids_BT,
            cache=None if state is None else state.cache,
            input_rows=given.input_rows,
            ffn_rows=given.ffn_rows,
            before_block=given.before_block,
        )
        if state is not None and self.memory.lookback:
            before = [] if state.memory.history is None else [state.memory.history]
            state.memory.history = torch.cat([*before, ids_BT], dim=1)[:, -self.memory.lookback :]
        return hidden

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
        return sum(spec.num_embeddings * spec.embedding_dim for spec in self.memory.specs)


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
        ConfigError: what tables and planners refuse.
    """
    torch.default_generator.manual_seed(config.train.seed)
    memory = build_memory(config, corpus)

    def feed_forward(block: int) -> nn.Module:
        return memory.feed_forward(block) or SwiGLU(config.model.dim, config.model.ffn_dim)

    decoder = Decoder(config.model, vocab_size=corpus.vocab_size, feed_forward=feed_forward)
    if memory.specs:
        memory.tables = _tables(config, memory, rows_folder=rows_folder, processes=processes or Processes())
    return LanguageModel(decoder, memory)


def _tables(config: LmConfig, memory: LmMemory, *, rows_folder: Path, processes: Processes) -> SequenceCollection:
    rows, train = config.rows, config.train
    optimizer = RowOptimizer(name=train.row_optimizer, lr=train.row_lr)
    directory = Path(rows.directory) if rows.directory else rows_folder
    sharding = None
    if processes.group is not None:
        plan, _ = plan_tables(
            memory.specs, PlanRequest(world_size=processes.count), optimizer=optimizer, num_samples=None
        )
        sharding = Sharding(plan=plan, group=processes.group)
    return SequenceCollection(
        memory.specs,
        seed=train.seed,
        backend=rows.backend,
        optimizer=optimizer,
        tier=RowTier(name=rows.tier, directory=directory if rows.tier == "disk" else None, prefetch=rows.prefetch),
        sharding=sharding,
    )
