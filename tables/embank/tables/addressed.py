"""A batch after `address`: which physical rows it needs, known before the forward pass."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor


@dataclass
class Addressed:
    """Physical row ids of a batch.

    Args:
        pooled: one key per lookup of the methods that are linear in their rows; bags are the input's bags, B per key.
        per_id: one key per lookup of all other methods; every id is a bag of its own, so that pooling can come after
            `combine`. Keys with fewer ids than the longest are filled up with empty bags.
        bags: for each pair (table, feature) of the other methods, offsets [B + 1] of its bags among its ids.
        sides: for each pair (table, feature) whose method needs more than rows, what `Method.side` made of its ids.
        lengths: for each pair (table, feature) with mean pooling over a linear method, bag lengths [B].
        batch_size: B.
    """

    pooled: KeyedJaggedTensor | None
    per_id: KeyedJaggedTensor | None
    bags: dict[str, Tensor]
    sides: dict[str, Tensor]
    lengths: dict[str, Tensor]
    batch_size: int

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "Addressed":
        """A copy on another device."""
        return Addressed(
            pooled=None if self.pooled is None else self.pooled.to(device, non_blocking=non_blocking),
            per_id=None if self.per_id is None else self.per_id.to(device, non_blocking=non_blocking),
            bags={k: v.to(device, non_blocking=non_blocking) for k, v in self.bags.items()},
            sides={k: v.to(device, non_blocking=non_blocking) for k, v in self.sides.items()},
            lengths={k: v.to(device, non_blocking=non_blocking) for k, v in self.lengths.items()},
            batch_size=self.batch_size,
        )

    def record_stream(self, stream: torch.Stream) -> None:
        """Tells the allocator that a stream uses this batch (TorchRec's pipelines call it)."""
        for jagged in (self.pooled, self.per_id):
            if jagged is not None:
                jagged.record_stream(stream)
        for tensor in (*self.bags.values(), *self.sides.values(), *self.lengths.values()):
            tensor.record_stream(stream)

    def pin_memory(self) -> "Addressed":
        """A copy in pinned host memory."""
        return Addressed(
            pooled=None if self.pooled is None else self.pooled.pin_memory(),
            per_id=None if self.per_id is None else self.per_id.pin_memory(),
            bags={k: v.pin_memory() for k, v in self.bags.items()},
            sides={k: v.pin_memory() for k, v in self.sides.items()},
            lengths={k: v.pin_memory() for k, v in self.lengths.items()},
            batch_size=self.batch_size,
        )
