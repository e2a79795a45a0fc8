"""What the loader hands to the training loop: a batch of rows as tensors, and the place to go on from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embank.pipelines.data.prepare.blocks import Block, IntArray
from embank.pipelines.data.schema import CategoricalField


@dataclass(frozen=True, kw_only=True)
class Position:
    """A place between two batches of an epoch. `dataclasses.asdict` gives JSON, `Position(**d)` takes it back.

    All ranks of a run are at the same position at the same step.

    Attributes:
        epoch: the epoch's number.
        batch: number of batches already given.
        order: hash of all that decides the order of rows (data, batch size, seed, buffer).
    """

    epoch: int
    batch: int
    order: str


@dataclass(kw_only=True)
class Batch:
    """B rows: a batch, or the part of it that one rank gets.

    Attributes:
        dense: [B, I] float32, I may be 0.
        sparse: KeyedJaggedTensor with the categorical features in the schema's order, values int64, lengths int32
            [F * B], feature by feature; or what the loader's `address` made of it.
        labels: [B] float32, 0 or 1.
        groups: [B] int64 or None.
        position: where the loader stands after this batch.
        num_global_rows: rows of the batch over all ranks.
    """

    dense: Tensor
    sparse: Any
    labels: Tensor
    groups: Tensor | None
    position: Position
    num_global_rows: int

    def to(self, device: torch.device) -> "Batch":
        """The batch with its numbers and labels on a device. What `sparse` needs there, the tables take along
        themselves."""
        if device.type == "cpu":
            return self
        return replace(self, dense=self.dense.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows `start` to `stop` of a block; a batch is a few of these."""

    block: Block
    start: int
    stop: int


class KJTBuilder:
    """Makes KeyedJaggedTensors from block rows, with a loop over features and none over rows."""

    def __init__(self, fields: Sequence[CategoricalField]) -> None:
        self._keys = [field.name for field in fields]
        self._multivalued = [field.multivalued for field in fields]
        self._ones: dict[int, tuple[Tensor, Tensor]] = {}

    def build(self, rows: Sequence[Rows], *, batch_size: int) -> KeyedJaggedTensor:
        """A KeyedJaggedTensor of stride `batch_size` (0 is valid); offsets and sums per key are filled in as well."""
        if not any(self._multivalued):
            return self._single_valued(rows, batch_size)
        lengths_FB = self._lengths(rows, batch_size)
        offsets = np.zeros(lengths_FB.size + 1, dtype=np.int32)
        np.cumsum(lengths_FB, out=offsets[1:])
        return self._kjt(
            torch.from_numpy(self._values(rows)),
            torch.from_numpy(lengths_FB.ravel()),
            torch.from_numpy(offsets),
            batch_size,
            lengths_FB.sum(axis=1).tolist(),
        )

    def _single_valued(self, rows: Sequence[Rows], batch_size: int) -> KeyedJaggedTensor:
        values_FB = np.empty((len(self._keys), batch_size), dtype=np.int64)
        at = 0
        for part in rows:
            end = at + part.stop - part.start
            values_FB[:, at:end] = part.block.ids[:, part.start : part.stop]
            at = end
        if batch_size not in self._ones:
            num_values = values_FB.size
            lengths = torch.ones(num_values, dtype=torch.int32)
            self._ones[batch_size] = (lengths, torch.arange(num_values + 1, dtype=torch.int32))
        lengths, offsets = self._ones[batch_size]
        return self._kjt(
            torch.from_numpy(values_FB.ravel()), lengths, offsets, batch_size, [batch_size] * len(self._keys)
        )

    def _kjt(
        self, values: Tensor, lengths: Tensor, offsets: Tensor, batch_size: int, length_per_key: list[int]
    ) -> KeyedJaggedTensor:
        return KeyedJaggedTensor(
            keys=self._keys,
            values=values,
            lengths=lengths,
            offsets=offsets,
            stride=batch_size,
            length_per_key=length_per_key,
            offset_per_key=[0, *np.cumsum(length_per_key, dtype=np.int64).tolist()],
        )

    def _lengths(self, rows: Sequence[Rows], batch_size: int) -> "np.ndarray[Any, np.dtype[np.int32]]":
        lengths_FB = np.ones((len(self._keys), batch_size), dtype=np.int32)
        at = 0
        for part in rows:
            end = at + part.stop - part.start
            bags = iter(part.block.bags)
            for feature, multivalued in enumerate(self._multivalued):
                if multivalued:
                    offsets = next(bags).offsets[part.start : part.stop + 1]
                    np.subtract(offsets[1:], offsets[:-1], out=lengths_FB[feature, at:end], casting="same_kind")
            at = end
        return lengths_FB

    def _values(self, rows: Sequence[Rows]) -> IntArray:
        """int64 ids, feature by feature, row by row."""
        singles = bags = 0
        pieces: list[Any] = [np.empty(0, dtype=np.int32)]
        for multivalued in self._multivalued:
            if multivalued:
                pieces += [part.block.bags[bags].slice(part.start, part.stop) for part in rows]
                bags += 1
            else:
                pieces += [part.block.ids[singles, part.start : part.stop] for part in rows]
                singles += 1
        return np.concatenate(pieces, dtype=np.int64)
