"""A batch after `address`: which physical rows it needs, known before the forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PathIds:
    """What one lookup path needs of a batch.

    Legend: K lookups of the path's row store, S bags of each.

    Args:
        row_ids: int64, rows of physical tables, lookup after lookup, bag after bag.
        offsets: int64 [K * S + 1], where each bag starts in `row_ids`. Where every id is a bag of its own, lookups with
            fewer than S ids are filled up with empty bags.
        num_ids: of each use, how many ids the batch has.
        places: where each row is looked up once: of each lookup of each use, int64 [N], where each id's row is.
        sides: by the key of a use, what `side` made of its ids, where it made something.
        lengths: by the key of a use, bag lengths [B], where the path pools to a mean.
    """

    row_ids: Tensor
    offsets: Tensor
    num_ids: Sequence[int]
    places: Sequence[Tensor] = ()
    sides: dict[str, Tensor] = field(default_factory=dict)
    lengths: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [self.row_ids, self.offsets, *self.places, *self.sides.values(), *self.lengths.values()]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with each tensor changed."""
        return replace(
            self,
            row_ids=change(self.row_ids),
            offsets=change(self.offsets),
            places=[change(place) for place in self.places],
            sides={key: change(side) for key, side in self.sides.items()},
            lengths={key: change(length) for key, length in self.lengths.items()},
        )


@dataclass(frozen=True, kw_only=True)
class Addressed:
    """Physical row ids of a batch, as a collection's `address` makes them.

    Args:
        paths: by lookup path, what it needs; paths without lookups are left out.
        bags: by output key, offsets [B + 1] of the bags among its ids, for keys that are pooled after `combine`.
        batch_size: B.
        weights: by output key, the ids' weights [N], of tables that pool by weight.
        inverse: for each output key in order, which of the B rows each row of the output takes; empty where the output
            has them as they are.

    Example:
        >>> from torchrec import KeyedJaggedTensor
        >>> spec = TableSpec(name="item", num_embeddings=10, embedding_dim=2, feature_names=["item"])
        >>> tables = TableCollection([spec])
        >>> kjt = KeyedJaggedTensor(keys=["item"], values=torch.tensor([7, 8]), lengths=torch.tensor([2]))
        >>> addressed = tables.address(kjt)  # in the data loader
        >>> torch.equal(tables(addressed).values(), tables(kjt).values())
        True
    """

    paths: dict[str, PathIds]
    bags: dict[str, Tensor] = field(default_factory=dict)
    batch_size: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    inverse: Sequence[Tensor] = ()

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Self:
        """A copy on another device."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """A copy in pinned host memory."""
        return self._mapped(Tensor.pin_memory)

    def record_stream(self, stream: torch.Stream) -> None:
        """Tells the allocator that a stream uses this batch (TorchRec's pipelines call it)."""
        of_paths = [tensor for path in self.paths.values() for tensor in path.tensors()]
        for tensor in (*of_paths, *self.bags.values(), *self.weights.values(), *self.inverse):
            tensor.record_stream(stream)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(
            self,
            paths={name: path.mapped(change) for name, path in self.paths.items()},
            bags={key: change(offsets) for key, offsets in self.bags.items()},
            weights={key: change(weights) for key, weights in self.weights.items()},
            inverse=[change(rows) for rows in self.inverse],
        )


@dataclass(frozen=True, kw_only=True)
class AddressedSequence(Addressed):
    """The same of ids that keep their rows, one by one.

    Args:
        shapes: for each group its (B, T), or (N,) where ids came as bags.
        bag_lengths: for each group that came as bags their lengths [B].
        ids: by output key, the ids [N] that came as bags, where they are part of the output.

    Example:
        >>> specs = [TableSpec(name="head", num_embeddings=10, embedding_dim=2, feature_names=["layer1"])]
        >>> tables = SequenceCollection(specs)
        >>> ids = {"layer1": torch.tensor([[[7], [8]]])}  # [B, T, H]
        >>> torch.equal(tables(tables.address(ids))["layer1"], tables(ids)["layer1"])
        True
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    bag_lengths: dict[str, Tensor] = field(default_factory=dict)
    ids: dict[str, Tensor] = field(default_factory=dict)

    @property
    def is_jagged(self) -> bool:
        """Whether ids came as bags."""
        return bool(self.bag_lengths)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        lengths = {group: change(lengths) for group, lengths in self.bag_lengths.items()}
        ids = {key: change(ids_N) for key, ids_N in self.ids.items()}
        return replace(super()._mapped(change), bag_lengths=lengths, ids=ids)
