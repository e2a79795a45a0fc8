"""Batches from a prepared folder: shuffled in bounded memory, made ahead on a thread, resumable to the bit.

The order of rows. A split's row groups are laid end to end: in file order, or, when shuffling, in an order drawn from
(seed, epoch). They are read in blocks: consecutive ones while they have at most `buffer_rows` rows together (at least
one row group). When shuffling, the rows of a block are permuted by a generator seeded with (seed, epoch, block).
Batches are cut from the blocks, laid end to end; a batch may span blocks. So every row comes exactly once per epoch,
and a row's place is known
from row counts and seeds alone: resuming reads the block that it resumes in and those after it, nothing before.

Of every batch of B rows, rank r of W gives rows B*r//W to B*(r+1)//W. Batches, their order and places in an epoch are
the same for any number of ranks, so a run goes on with another number of them. The price: every rank decodes all row
groups, though it builds tensors of its own rows only.

On the way two threads run ahead: one decodes the next block while the other cuts batches from this one.
"""

import json
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embank.pipelines.data.loading.ahead import Clock, run_ahead, timed
from embank.pipelines.data.loading.batch import Batch, KJTBuilder, Position, Rows
from embank.pipelines.data.loading.parts import Parts
from embank.pipelines.data.loading.threads import on_one_thread
from embank.pipelines.data.prepare.blocks import Piece, plan_blocks
from embank.pipelines.data.schema import Schema
from embank.tables.errors import ConfigError
from embank.tables.scalars import whole
from embank.tables.storage.checksums import text_digest


class Loader:
    """Iterates over a split of a prepared folder.

    Args:
        path: the prepared folder.
        split: `train`, `valid` or `test`.
        batch_size: rows per batch, over all ranks; the last batch of an epoch may be shorter.
        shuffle: shuffle row groups and rows anew in each epoch, or keep file order.
        seed: seed of the shuffle, >= 0.
        buffer_rows: rows that are shuffled together. Memory is about two such blocks, decoded.
        rank: which of `world_size` parts of each batch to give. Parts differ by at most one row; one may be empty (B =
            0).
        address: applied to each batch's KeyedJaggedTensor on the loader's thread; its result becomes `Batch.sparse`.
        prefetch: batches to make ahead; 0 works without threads. The batches are the same to the bit.

    Attributes:
        schema: schema of the folder.
        num_rows: rows per epoch, over all ranks.
        num_batches: batches per epoch.

    Raises:
        ConfigError: an argument that can't be used.
        DataError: the folder or a value in it is not as its schema says; from `epoch` it names file, row and column.
    """

    def __init__(
        self,
        path: str | Path,
        split: str,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        buffer_rows: int = 262_144,
        rank: int = 0,
        world_size: int = 1,
        address: Callable[[KeyedJaggedTensor], Any] | None = None,
        prefetch: int = 2,
    ) -> None:
        batch_size = whole(batch_size, what="batch_size is", least=1)
        buffer_rows = whole(buffer_rows, what="buffer_rows is", least=1)
        seed = whole(seed, what="seed is", least=0)
        prefetch = whole(prefetch, what="prefetch is", least=0)
        world_size = whole(world_size, what="world_size is", least=1)
        rank = whole(rank, what="rank is", least=0)
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank is {rank} of world_size {world_size}; use a rank from 0 to {world_size - 1}.")
        self.schema = Schema.load(path)
        self._parts = Parts(Path(path), split, schema=self.schema)
        self._batch_size, self._shuffle, self._seed, self._buffer_rows = batch_size, shuffle, seed, buffer_rows
        self._rank, self._world_size, self._address, self._prefetch = rank, world_size, address, prefetch
        self._kjts = KJTBuilder(self.schema.categorical)
        self._clock = Clock()
        self.num_rows = self._parts.num_rows
        self.num_batches = -(-self.num_rows // batch_size)
        self._order = self._order_hash(split)

    @property
    def seconds_waited(self) -> float:
        """Wall time for which consumers have waited for batches, summed over all epochs so far."""
        return self._clock.seconds_waited

    @property
    def seconds_busy(self) -> float:
        """CPU time that reading and cutting batches (and `address`) has taken, summed over all epochs so far."""
        return self._clock.seconds_busy

    def epoch(self, epoch: int, *, start: Position | None = None) -> Iterator[Batch]:
        """The batches of an epoch, or those after the position `start` (the `position` of the last batch seen).

        The threads start with the first batch and end with the iterator: at its end, when it is closed or let go, and
        when an exception leaves the loop over it.

        Raises:
            ConfigError: `start` is of another epoch, or of a loader that orders rows differently.
        """
        epoch = whole(epoch, what="epoch is", least=0)
        first_batch = 0 if start is None else self._checked(start, epoch)
        blocks = self._blocks(epoch, first_row=first_batch * self._batch_size)
        if self._prefetch == 0:
            return timed(self._batches(blocks, epoch, first_batch), clock=self._clock)
        blocks = run_ahead(blocks, depth=1, clock=self._clock, counts_wait=False)
        batches = on_one_thread(self._batches(blocks, epoch, first_batch))
        return run_ahead(batches, depth=self._prefetch, clock=self._clock)

    def _checked(self, start: Position, epoch: int) -> int:
        if start.epoch != epoch:
            raise ConfigError(
                f"can't start epoch {epoch} at a position of epoch {start.epoch}; use epoch({start.epoch})."
            )
        if start.order != self._order:
            raise ConfigError(
                f"the position in epoch {start.epoch} after batch {start.batch} belongs to a loader with another "
                "order of "
                "rows. Resume with the same data, split, batch_size, shuffle, seed and buffer_rows."
            )
        return start.batch

    def _order_hash(self, split: str) -> str:
        group_rows = [(group.part, group.num_rows) for group in self._parts.groups]
        what = [self.schema.fingerprint, split, group_rows, self._batch_size, self._shuffle]
        if self._shuffle:
            what += [self._seed, self._buffer_rows]
        return text_digest(json.dumps(what))[:16]

    def _plan(self, epoch: int) -> list[tuple[Piece, ...]]:
        """The blocks of an epoch, in order."""
        groups = self._parts.groups
        if self._shuffle:
            order = np.random.default_rng([self._seed, epoch, 1]).permutation(len(groups))
            groups = [groups[index] for index in order]
        pieces = [Piece(group=group, start=0, stop=group.num_rows) for group in groups]
        return plan_blocks(pieces, block_rows=self._buffer_rows if self._shuffle else 1)

    def _blocks(self, epoch: int, *, first_row: int) -> Generator[Rows, None, None]:
        """The epoch's blocks from the one that holds `first_row` on, the first one cut to begin there."""
        at = 0
        for index, pieces in enumerate(self._plan(epoch)):
            num_rows = sum(piece.stop - piece.start for piece in pieces)
            at += num_rows
            if at <= first_row:
                continue
            order_R = None
            if self._shuffle:
                generator = np.random.default_rng([self._seed, epoch, 2, index])
                order_R = generator.permutation(num_rows)
            block = self._parts.read_block(pieces, order_R=order_R)
            yield Rows(block=block, start=max(first_row - (at - num_rows), 0), stop=num_rows)

    def _batches(
        self, blocks: Generator[Rows, None, None], epoch: int, first_batch: int
    ) -> Generator[Batch, None, None]:
        try:
            cutter = _Cutter(blocks)
            for index in range(first_batch, self.num_batches):
                num_rows = min(self._batch_size, self.num_rows - index * self._batch_size)
                position = Position(epoch=epoch, batch=index + 1, order=self._order)
                yield self._batch(self._part(cutter.take(num_rows), num_rows), position, num_rows=num_rows)
        finally:
            blocks.close()

    def _part(self, rows: list[Rows], count: int) -> list[Rows]:
        """This rank's rows of a batch."""
        if self._world_size == 1:
            return rows
        first, last = count * self._rank // self._world_size, count * (self._rank + 1) // self._world_size
        part, at = [], 0
        for run in rows:
            start, stop = run.start + max(0, first - at), run.start + min(run.stop - run.start, last - at)
            at += run.stop - run.start
            if start < stop:
                part.append(Rows(block=run.block, start=start, stop=stop))
        return part

    def _batch(self, rows: list[Rows], position: Position, *, num_rows: int) -> Batch:
        num_global_rows, num_rows = num_rows, sum(part.stop - part.start for part in rows)
        dense_BI = np.empty((num_rows, len(self.schema.numeric)), dtype=np.float32)
        labels_B = np.empty(num_rows, dtype=np.float32)
        groups_B = None if self.schema.group is None else np.empty(num_rows, dtype=np.int64)
        at = 0
        for part in rows:
            block, end = part.block, at + part.stop - part.start
            dense_BI[at:end] = block.dense[:, part.start : part.stop].T
            labels_B[at:end] = block.labels[part.start : part.stop]
            if groups_B is not None and block.groups is not None:
                groups_B[at:end] = block.groups[part.start : part.stop]
            at = end
        kjt = self._kjts.build(rows, batch_size=num_rows)
        return Batch(
            dense=torch.from_numpy(dense_BI),
            sparse=kjt if self._address is None else self._address(kjt),
            labels=torch.from_numpy(labels_B),
            groups=None if groups_B is None else torch.from_numpy(groups_B),
            position=position,
            num_global_rows=num_global_rows,
        )


class _Cutter:
    """Cuts runs of rows off a sequence of blocks."""

    def __init__(self, blocks: Iterator[Rows]) -> None:
        self._blocks = blocks
        self._rest: Rows | None = None

    def take(self, count: int) -> list[Rows]:
        """The next `count` rows (none if negative)."""
        taken = []
        while count > 0:
            rest = self._rest or next(self._blocks)
            stop = min(rest.start + count, rest.stop)
            taken.append(Rows(block=rest.block, start=rest.start, stop=stop))
            count -= stop - rest.start
            self._rest = Rows(block=rest.block, start=stop, stop=rest.stop) if stop < rest.stop else None
        return taken
