"""The memory of a decoder: which rows its tokens ask for, and what becomes of them inside.

One class per kind (`embank.pipelines.lm.memory_kinds`), all with the same four parts: the tables (outside of the
network, with an optimizer of their own), the dense layers that read rows, the ids of a batch, and what the decoder is
given.

Legend: B batch, T tokens, S tokens before, D dim, V ids.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from embank.pipelines.lm.decoder import Memory as BeforeBlock
from embank.tables import SequenceCollection, TableSpec


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a memory gives a decoder for some tokens, see `Decoder.forward`."""

    input_rows: Tensor | None = None
    ffn_rows: Mapping[int, Tensor] | None = None
    before_block: BeforeBlock | None = None


@dataclass
class MemoryState:
    """What a memory remembers of the tokens before, while text is generated.

    Attributes:
        history: their ids [B, S], as many as the longest n-gram looks back on.
        layers: what each block's layer keeps.
    """

    history: Tensor | None = None
    layers: dict[int, Any] = field(default_factory=dict)


class LmMemory(ABC):
    """A kind of memory.

    Attributes:
        specs: of its tables; empty for none.
        layers: its dense parts, trained with the decoder.
        tables: the collection of the specs, set by whoever builds the model; None without specs.
        lookback: tokens before a position that decide on its rows.
    """

    specs: list[TableSpec]
    lookback: int = 0

    def __init__(self) -> None:
        self.specs = []
        self.layers: nn.Module = nn.Module()
        self.tables: SequenceCollection | None = None

    @abstractmethod
    def ids(self, ids_BT: Tensor, *, before_BS: Tensor | None) -> dict[str, Tensor]:
        """Row ids [B, T, tables] of the tokens by group: a pure function of them and of those before."""

    @abstractmethod
    def given(self, rows: Mapping[str, Tensor], state: MemoryState | None) -> Given:
        """What the decoder gets, of the rows [B, T, W] by group."""

    def feed_forward(self, block: int) -> nn.Module | None:
        """The feed-forward layer of a block, where it is not the usual one."""
        return None


class NoMemory(LmMemory):
    """The dense decoder."""

    def ids(self, ids_BT: Tensor, *, before_BS: Tensor | None) -> dict[str, Tensor]:
        return {}

    def given(self, rows: Mapping[str, Tensor], state: MemoryState | None) -> Given:
        return Given()
