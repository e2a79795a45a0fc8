"""A split as a frozen supernet sees it: every row of every table looked up once, and shared by all candidates.

Legend: V rows of the split, F searched fields, E embedding columns, N ids, D dim.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from embank.ctr_models import CTRModel
from embank.pipelines.data.loading.loader import Loader
from embank.search.spaces import Shape
from embank.tables import TableCollection
from embank.tables.collections.paths import pool

BATCH_SIZE = 8192
MEMORY = 2**30
"""Bytes of looked-up rows that a split may take; of a larger one every k-th batch is held."""

_ORDER_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Field:
    """A searched field of the held rows.

    Args:
        name: of the feature.
        columns: of its embedding in the collection's output.
        first_order: column of its weight per id; None for a model without them.
        rows_ND: the supernet's logical rows of all ids, the weight per id as the last column if there is one.
        counts: occurrences of each id in training, int64 [N].
        pooling: how the rows of a bag become one.
    """

    name: str
    columns: slice
    first_order: int | None
    rows_ND: Tensor
    counts: Tensor
    pooling: str = "sum"

    @property
    def num_ids(self) -> int:
        """Rows of the plain table."""
        return self.rows_ND.shape[0]

    def shared_row(self, num_rows: int) -> Tensor:
        """What the ids that share row 0 would have learned together: the mean of their rows by their counts, [D]."""
        counts = self.counts.to(torch.float64)
        shared = torch.cat([self.rows_ND[:1], self.rows_ND[num_rows:]]).to(torch.float64)
        weights = torch.cat([counts[:1], counts[num_rows:]])
        if not bool(weights.any()):
            return self.rows_ND[0]
        return ((weights[:, None] * shared).sum(0) / weights.sum()).to(self.rows_ND.dtype)


@dataclass(kw_only=True)
class HeldIds:
    """The ids of a field in the held rows, bag after bag."""

    ids_N: Tensor
    lengths_V: Tensor
    pooled: dict[int, Tensor] = field(default_factory=dict)

    @property
    def offsets(self) -> Tensor:
        """Where each bag begins, and the last one ends, int64 [V + 1]."""
        return torch.cat([self.lengths_V.new_zeros(1), self.lengths_V.cumsum(0)])

    @property
    def is_single(self) -> bool:
        """One id in each row."""
        return self.ids_N.numel() == self.lengths_V.numel() and bool((self.lengths_V == 1).all())


class HeldSplit:
    """The rows of a split, looked up in a supernet once.

    Rows come in an order drawn once, the same for every study: any first part of them is a random sample.

    Args:
        model: the supernet, in evaluation mode.
        data: the prepared folder.
        split: train, valid or test.
        fields: those that candidates change.
        max_rows: hold about so many rows at most, every k-th batch; None takes what `MEMORY` holds.
    """

    def __init__(
        self,
        model: CTRModel,
        data: Path,
        split: str,
        *,
        fields: Sequence[Field],
        max_rows: int | None = None,
    ) -> None:
        self.fields = tuple(fields)
        parts = self._read(model, data, split, max_rows=max_rows)
        order = torch.randperm(parts["labels"].numel(), generator=torch.Generator().manual_seed(_ORDER_SEED))
        self.dense_VI, self.values_VE, self.labels_V = (parts[key][order] for key in ("dense", "values", "labels"))
        self.ids = {f.name: _in_order(self.raw_ids[f.name], order) for f in fields}
        del self.raw_ids
        self.shared: dict[tuple[str, int], Tensor] = {}
        self.is_single = {name: ids.is_single for name, ids in self.ids.items()}

    @property
    def num_rows(self) -> int:
        """Rows that are held."""
        return self.labels_V.numel()

    @torch.no_grad()
    def _read(self, model: CTRModel, data: Path, split: str, *, max_rows: int | None) -> dict[str, Tensor]:
        assert isinstance(model.tables, TableCollection)
        limit = MEMORY // (4 * max(1, model.tables.num_columns))
        limit = limit if max_rows is None else min(limit, max_rows)
        loader = Loader(data, split, batch_size=min(BATCH_SIZE, limit), shuffle=False)
        every = max(1, min(loader.num_batches, -(-loader.num_rows // limit)))
        dense, values, labels = [], [], []
        found: dict[str, list[tuple[Tensor, Tensor]]] = {f.name: [] for f in self.fields}
        for number, batch in enumerate(loader.epoch(0)):
            if number % every:
                continue
            dense.append(batch.dense)
            labels.append(batch.labels)
            values.append(model.tables(batch.sparse).values().cpu())
            for name, parts in found.items():
                feature = batch.sparse[name]
                parts.append((feature.values(), feature.lengths()))
        self.raw_ids = {
            name: HeldIds(
                ids_N=torch.cat([ids for ids, _ in parts]), lengths_V=torch.cat([lengths for _, lengths in parts])
            )
            for name, parts in found.items()
        }
        return {"dense": torch.cat(dense), "values": torch.cat(values), "labels": torch.cat(labels)}

    def masked(self, shapes: Mapping[str, Shape], *, start: int, stop: int) -> Tensor:
        """What a candidate's tables return for some of the held rows, [stop - start, columns].

        Args:
            shapes: by field; those that are missing stay whole.
            start, stop: which rows.
        """
        values_BE = self.values_VE[start:stop].clone()
        for held in self.fields:
            shape = shapes.get(held.name)
            if shape is None:
                continue
            if shape.rows < held.num_ids:
                self._share_rows(values_BE, held, shape.rows, start=start, stop=stop)
            values_BE[:, held.columns.start + shape.width : held.columns.stop] = 0
        return values_BE

    def _share_rows(self, values_BE: Tensor, held: Field, num_rows: int, *, start: int, stop: int) -> None:
        """Replaces what reads the shared row in a field's columns."""
        width = held.columns.stop - held.columns.start
        if self.is_single[held.name]:
            ids_B = self.ids[held.name].ids_N[start:stop]
            is_shared_B = (ids_B >= num_rows) | (ids_B == 0)
            row = self._shared_row(held, num_rows)
            values_BE[:, held.columns] = torch.where(is_shared_B[:, None], row[:width], values_BE[:, held.columns])
            if held.first_order is not None:
                column = values_BE[:, held.first_order]
                values_BE[:, held.first_order] = torch.where(is_shared_B, row[width], column)
            return
        pooled_VD = self._pooled(held, num_rows)[start:stop]
        values_BE[:, held.columns] = pooled_VD[:, :width]
        if held.first_order is not None:
            values_BE[:, held.first_order] = pooled_VD[:, width]

    def _pooled(self, held: Field, num_rows: int) -> Tensor:
        """A field's bags with some rows shared, [V, D]; kept, since there are few numbers of rows."""
        known = self.ids[held.name].pooled
        if num_rows not in known:
            ids = self.ids[held.name]
            rows_ND = held.rows_ND[:num_rows].clone()
            rows_ND[0] = self._shared_row(held, num_rows)
            looked_up = rows_ND[torch.where(ids.ids_N < num_rows, ids.ids_N, 0)]
            known[num_rows] = pool(looked_up, ids.offsets, pooling=held.pooling)
        return known[num_rows]

    def _shared_row(self, held: Field, num_rows: int) -> Tensor:
        key = (held.name, num_rows)
        if key not in self.shared:
            self.shared[key] = held.shared_row(num_rows)
        return self.shared[key]


def _in_order(held: HeldIds, order: Tensor) -> HeldIds:
    """The bags in another order."""
    lengths_V = held.lengths_V.to(torch.int64)
    starts = lengths_V.cumsum(0) - lengths_V
    taken = lengths_V[order]
    ends = taken.cumsum(0)
    places = torch.arange(int(ends[-1]) if len(ends) else 0)
    places = places + torch.repeat_interleave(starts[order] - (ends - taken), taken)
    return HeldIds(ids_N=held.ids_N[places], lengths_V=taken)
