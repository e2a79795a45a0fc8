"""The memory of a decoder: which tables it has, and what becomes of their rows inside.

One class per kind (`embank.pipelines.lm.memory_kinds`), all with the same parts: the layout of the tables (which stand
outside of the network, with an optimizer of their own), the dense layers that read rows, and what the decoder is given.

Legend: B batch, T tokens, D dim.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from embank.pipelines.lm.decoder import Memory as BeforeBlock
from embank.tables.memory import MemoryLayout, MemorySession

LayerRows = Mapping[int, Tensor]
"""What each layer reads, [B, T, row_dim]."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a memory gives a decoder for some tokens, see `Decoder.forward`."""

    input_rows: Tensor | None = None
    ffn_rows: LayerRows | None = None
    before_block: BeforeBlock | None = None


@dataclass
class MemoryState:
    """What a memory remembers of the tokens before, while text is generated.

    Attributes:
        session: of the tables.
        layers: what each block's layer keeps.
    """

    session: MemorySession | None = None
    layers: dict[int, Any] = field(default_factory=dict)


class LmMemory(ABC):
    """A kind of memory.

    Attributes:
        layout: of its tables; None for none.
        layers: its dense parts, trained with the decoder.
    """

    def __init__(self, layout: MemoryLayout | None = None) -> None:
        self.layout = layout
        self.layers: nn.Module = nn.Module()

    @abstractmethod
    def given(self, rows: LayerRows, state: MemoryState | None) -> Given:
        """What the decoder gets, of what each layer reads."""

    def feed_forward(self, block: int) -> nn.Module | None:
        """The feed-forward layer of a block, where it is not the usual one."""
        return None
