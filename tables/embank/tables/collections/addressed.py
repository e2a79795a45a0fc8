"""A batch after `address`: which physical rows it needs, known before the forward pass."""

from collections.abc import Callable, Sequence
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
        distinct: one key per physical table of the methods that ask for each row once: distinct rows, ascending, each a
            bag of its own, filled up with empty bags to the longest.
        places: for each pair (table, feature) of such a method, int64 [L, N]: where the row of each id stands in each
            lookup.
        bags: for each pair (table, feature) of the methods that are not linear, offsets [B + 1] of its bags among its
            ids.
        sides: for each pair (table, feature) whose method needs more than rows, what `Method.side` made of its ids.
        lengths: for each pair (table, feature) with mean pooling over a linear method, bag lengths [B].
        batch_size: B.
    """

    pooled: KeyedJaggedTensor | None
    per_id: KeyedJaggedTensor | None
    distinct: KeyedJaggedTensor | None
    places: dict[str, Tensor]
    bags: dict[str, Tensor]
    sides: dict[str, Tensor]
    lengths: dict[str, Tensor]
    batch_size: int

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "Addressed":
        """A copy on another device."""
        return Addressed(
            pooled=None if self.pooled is None else self.pooled.to(device, non_blocking=non_blocking),
            per_id=None if self.per_id is None else self.per_id.to(device, non_blocking=non_blocking),
            distinct=None if self.distinct is None else self.distinct.to(device, non_blocking=non_blocking),
            places={k: v.to(device, non_blocking=non_blocking) for k, v in self.places.items()},
            bags={k: v.to(device, non_blocking=non_blocking) for k, v in self.bags.items()},
            sides={k: v.to(device, non_blocking=non_blocking) for k, v in self.sides.items()},
            lengths={k: v.to(device, non_blocking=non_blocking) for k, v in self.lengths.items()},
            batch_size=self.batch_size,
        )

    def record_stream(self, stream: torch.Stream) -> None:
        """Tells the allocator that a stream uses this batch (TorchRec's pipelines call it)."""
        for jagged in (self.pooled, self.per_id, self.distinct):
            if jagged is not None:
                jagged.record_stream(stream)
        for tensor in (*self.places.values(), *self.bags.values(), *self.sides.values(), *self.lengths.values()):
            tensor.record_stream(stream)

    def pin_memory(self) -> "Addressed":
        """A copy in pinned host memory."""
        return Addressed(
            pooled=None if self.pooled is None else self.pooled.pin_memory(),
            per_id=None if self.per_id is None else self.per_id.pin_memory(),
            distinct=None if self.distinct is None else self.distinct.pin_memory(),
            places={k: v.pin_memory() for k, v in self.places.items()},
            bags={k: v.pin_memory() for k, v in self.bags.items()},
            sides={k: v.pin_memory() for k, v in self.sides.items()},
            lengths={k: v.pin_memory() for k, v in self.lengths.items()},
            batch_size=self.batch_size,
        )


@dataclass
class AddressedSequence:
    """Physical rows of a batch whose ids keep their rows, one by one.

    Legend: K lookups in the row store, S the most ids that one of them has.

    Args:
        row_ids: int64, rows of physical tables, lookup after lookup.
        offsets: int64 [K * S + 1]: every id is a bag of its own, and lookups with fewer than S ids are filled up with
            empty bags.
        places: where rows were de-duplicated: for each lookup of each use, int64 [N], the bag that has its id's row.
        sides: for each pair (table, group) whose method needs more than rows, what `Method.side` made of its ids.
        shapes: for each group its (B, T), or (N,) where ids came as bags.
        lengths: for each group that came as bags their lengths [B].
    """

    row_ids: Tensor
    offsets: Tensor
    places: list[Tensor] | None
    sides: dict[str, Tensor]
    shapes: dict[str, tuple[int, ...]]
    lengths: dict[str, Tensor]

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "AddressedSequence":
        """A copy on another device."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.Stream) -> None:
        """Tells the allocator that a stream uses this batch (TorchRec's pipelines call it)."""
        places = self.places or []
        for tensor in (self.row_ids, self.offsets, *places, *self.sides.values(), *self.lengths.values()):
            tensor.record_stream(stream)

    def pin_memory(self) -> "AddressedSequence":
        """A copy in pinned host memory."""
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "AddressedSequence":
        return AddressedSequence(
            row_ids=change(self.row_ids),
            offsets=change(self.offsets),
            places=None if self.places is None else [change(place) for place in self.places],
            sides={key: change(side) for key, side in self.sides.items()},
            shapes=self.shapes,
            lengths={key: change(length) for key, length in self.lengths.items()},
        )


def one_id_bags(ids: Sequence[Tensor]) -> list[Tensor]:
    """Lengths 1 for every id of every lookup, filled up with empty bags to the longest."""
    longest = max((t.numel() for t in ids), default=0)
    return [(torch.arange(longest) < t.numel()).int() for t in ids]


def each_once(row_ids: Sequence[Tensor], lookups: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Each row of a batch once.

    Args:
        row_ids: rows of a physical table for each of several uses.
        lookups: the lookup in the row store that each use shares with the others of its table; every lookup has a use.

    Returns:
        Distinct rows of each lookup, ascending; and for each use where its rows stand among them.
    """
    by_lookup: dict[int, list[int]] = {}
    for number, lookup in enumerate(lookups):
        by_lookup.setdefault(lookup, []).append(number)
    distinct = []
    places = list(row_ids)
    for _, numbers in sorted(by_lookup.items()):
        rows_U, inverse = torch.unique(torch.cat([row_ids[n] for n in numbers]), return_inverse=True)
        distinct.append(rows_U)
        for number, place in zip(numbers, inverse.split([row_ids[n].numel() for n in numbers]), strict=True):
            places[number] = place
    return distinct, places
