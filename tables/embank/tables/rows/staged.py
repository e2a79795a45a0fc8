"""Rows in the host's memory or in mapped files, looked up and updated on a device that has no room for all of them.

The torch path for a GPU. Only the distinct rows of a batch, with their optimizer state, travel: a thread gathers them
from the host into pinned memory and copies them in on a stream of their own, lookup and update run on the device, and
the thread writes the updated rows back while the next batch computes. Only what a copy engine reads must be pinned, so
the tables themselves lie in ordinary memory and may be larger than what can be pinned.

Order. One thread gathers and writes back, in the order in which it is asked to. A batch that was prefetched early may
be gathered before an update of rows that it shares; what that update made of them is still on the device, and is copied
over the stale rows before the lookup, update after update. A batch that was not prefetched is gathered after all
updates so far. So a lookup always sees every update before it, and prefetch on and off give the same bits.

Rows that somebody else writes to, through what `weights` and `optimizer_state` return, are gathered again where they
were gathered before. `writing` says so; where it was not used, the version counters of torch tell.
"""

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor

from embank.tables.errors import WorkError
from embank.tables.rows.base import RowStore
from embank.tables.rows.lanes import Lane, Mark, lane_to
from embank.tables.rows.shards import TableShard
from embank.tables.rows.store_spec import StoreSpec
from embank.tables.rows.torch_rows import TorchRows

MAX_AGE = 32
"""A prefetched batch that has not come after this many updates is let go; were it to come yet, it is gathered again."""


@dataclass(eq=False)
class _Batch:
    """The distinct rows of one batch. Legend: U_t distinct rows of table t, U their sum.

    Args:
        indices, offsets: the batch, on the host.
        as_of: number of updates that its values include.
        versions: of the host's tensors, as they were before it was gathered, see `StagedRows._versions`.

    Attributes:
        gathered: the thread's work on it; what follows is there when it is done.
        rows: for each table int64 [U_t], ascending, on the host.
        numbers: the same [U] on the device, table after table.
        places: int64 [N] on the device: where each index's row stands among the distinct rows of its table.
        offsets_there: `offsets` on the device.
        values: on the device, by kind ("weights" and the kinds of optimizer state), flat, table after table.
        uploaded: when they have arrived.
        grad: of values["weights"].
    """

    indices: Tensor
    offsets: Tensor
    as_of: int
    versions: tuple[int, ...]
    gathered: "Future[None]" = field(init=False)
    rows: list[Tensor] = field(init=False)
    numbers: Tensor = field(init=False)
    places: Tensor = field(init=False)
    offsets_there: Tensor = field(init=False)
    values: dict[str, Tensor] = field(init=False)
    uploaded: Mark = field(init=False)
    grad: Tensor | None = None

    def is_of(self, indices: Tensor, offsets: Tensor) -> bool:
        """Whether it was prefetched with these tensors."""
        pairs = ((self.indices, indices), (self.offsets, offsets))
        return all(a.data_ptr() == b.data_ptr() and a.numel() == b.numel() for a, b in pairs)


class StagedRows(RowStore):
    """Rows on the host, looked up on a device; see the module. `update` applies sparse updates as `TorchRows` does.

    It has a `TorchRows` on the host, whose arithmetic it uses. `forward` takes host tensors and returns device tensors.
    The device holds the distinct rows of prefetched batches, and those of updates that these have not seen.

    An update that a backward pass leaves is applied by `update`, or before the next lookup. What `weights` and
    `optimizer_state` return is up to date until the next update. It may be written to at any time by torch's own
    operations, and by anything else within `writing`.

    Args:
        spec: what is held and how. Its tier is "host" (or "device", the same on a CPU) or "disk"; the tier's device may
            be "cpu", where nothing is copied.

    Raises:
        ConfigError: a device that is not there, files that can't be made.
    """

    def __init__(self, spec: StoreSpec) -> None:
        super().__init__(spec)
        tier = spec.tier
        tier.refuse_missing_device()
        on_host = replace(tier, name="disk" if tier.name == "disk" else "host", prefetch=False, device="cpu")
        self.held = TorchRows(replace(spec, tier=on_host))
        self.lane: Lane = lane_to(tier.device)
        self.kinds = ("weights", *self.held.state[0])
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="embank-stager")
        self.lock = threading.Lock()  # batches may be prefetched by the loader's thread
        self.prefetched: deque[_Batch] = deque()
        self.alive: WeakSet[_Batch] = WeakSet()
        self.with_grad: list[_Batch] = []
        self.written: deque[tuple[int, _Batch]] = deque()  # updates that a batch may not have seen, with their numbers
        self.num_written = 0
        self.num_changes = 0  # by `writing`
        self.writes: deque[Future[None]] = deque()

    def prefetch(self, indices: Tensor, offsets: Tensor) -> None:
        if self.tier.prefetch:
            batch = self._gathering(indices, offsets)
            with self.lock:
                self.prefetched.append(batch)

    def _gathering(self, indices: Tensor, offsets: Tensor) -> _Batch:
        """A batch that the thread has been told to gather."""
        with self.lock:
            batch = _Batch(indices, offsets, self.num_written, self._versions())
            batch.gathered = self.thread.submit(_gather, batch, self.held, self.lane)
            self.alive.add(batch)
            return batch

    def _versions(self) -> tuple[int, ...]:
        """Changes whenever somebody else writes to the host's tensors."""
        own = (tensor._version for kind in self.kinds for tensor in _host_tensors(self.held, kind))
        return (self.num_changes, *own)

    def _gather_again(self, batch: _Batch) -> None:
        """Brings what somebody else has written into a batch that was gathered before."""
        with self.lock:
            batch.as_of, batch.versions = self.num_written, self._versions()
            batch.gathered = self.thread.submit(_gather, batch, self.held, self.lane)
        self._await(batch)

    def _await(self, batch: _Batch) -> None:
        batch.gathered.result()
        self.lane.follow([batch.numbers, batch.places, batch.offsets_there, *batch.values.values()], batch.uploaded)

    def _ready(self, indices: Tensor, offsets: Tensor) -> _Batch:
        """The batch with every update so far."""
        with self.lock:
            found = next((i for i, batch in enumerate(self.prefetched) if batch.is_of(indices, offsets)), None)
            if found is not None:
                batch = self.prefetched[found]
                for _ in range(found + 1):
                    self.prefetched.popleft()  # batches come in order: those before it have been passed over
        if found is None:
            batch = self._gathering(indices, offsets)
        self._await(batch)
        if batch.versions != self._versions():
            self._gather_again(batch)
        self._refresh(batch)
        return batch

    @torch.no_grad()
    def _refresh(self, batch: _Batch) -> None:
        """Brings what later updates made of a batch's rows into it: from device to device, without asking the host."""
        for number, update in self.written:
            if number > batch.as_of:
                for table, rows_U in enumerate(batch.rows):
                    if rows_U.numel() and update.rows[table].numel():
                        self._take_over(batch, update, table)
        batch.as_of = self.num_written

    def _take_over(self, batch: _Batch, update: _Batch, table: int) -> None:
        mine_U, theirs_V = self._numbers(batch, table), self._numbers(update, table)
        places_U = torch.searchsorted(theirs_V, mine_U).clamp_(max=theirs_V.numel() - 1)
        shared_U = theirs_V[places_U] == mine_U
        for kind in self.kinds:
            stale, fresh = self._view(batch, kind, table), self._view(update, kind, table)
            shared = shared_U[:, None] if stale.dim() == 2 else shared_U
            stale.copy_(torch.where(shared, fresh[places_U], stale))

    def _numbers(self, batch: _Batch, table: int) -> Tensor:
        start = sum(rows.numel() for rows in batch.rows[:table])
        return batch.numbers[start : start + batch.rows[table].numel()]

    def _view(self, batch: _Batch, kind: str, table: int) -> Tensor:
        """[U_t, D] or, for state that is one number per row, [U_t]: a table's part of a batch's values."""
        return _views(batch.values[kind], batch.rows, _widths(self.held, kind))[table]

    def forward(self, indices: Tensor, offsets: Tensor) -> Tensor:
        self.finish()
        batch = self._ready(indices, offsets)
        weights = batch.values["weights"].detach()
        if torch.is_grad_enabled():
            weights.requires_grad_()
            weights.register_post_accumulate_grad_hook(partial(self._take_gradient, batch))  # type: ignore[no-untyped-call]
        num_bags = (offsets.numel() - 1) // len(self.lookups)
        if num_bags == 0:
            return weights.view(0, sum(self.dims))
        bounds = offsets[::num_bags].tolist()
        tables = _views(weights, batch.rows, _widths(self.held, "weights"))
        outputs = []
        for k, table in enumerate(self.lookups):
            places = batch.places[bounds[k] : bounds[k + 1]]
            part = batch.offsets_there[k * num_bags : (k + 1) * num_bags + 1] - bounds[k]
            outputs.append(F.embedding_bag(places, tables[table], part, mode="sum", include_last_offset=True))
        return torch.cat(outputs, dim=1)

    def _take_gradient(self, batch: _Batch, leaf: Tensor) -> None:
        if batch not in self.alive:
            raise WorkError(
                "a backward pass has reached a lookup of staged rows whose update is done; look the ids up again for "
                "each update"
            )
        if batch not in self.with_grad:
            self.with_grad.append(batch)
        batch.grad = leaf.grad

    @property
    def is_pending(self) -> bool:
        return bool(self.with_grad)

    @torch.no_grad()
    def _finish(self) -> None:
        """As `RowStore._finish`: lookups of one backward pass one after the other, as the backward pass has met them.

        Raises:
            WorkError: a file of the disk tier was cut.
        """
        self._raise_failures(wait=False)
        while self.with_grad:
            batch = self.with_grad.pop(0)
            assert batch.grad is not None
            if batch.versions != self._versions():
                self._gather_again(batch)
            self._refresh(batch)
            grads = _views(batch.grad, batch.rows, _widths(self.held, "weights"))
            for table, (shard, grad_UD) in enumerate(zip(self.shards, grads, strict=True)):
                if grad_UD.numel():
                    values = {kind: self._view(batch, kind, table) for kind in self.kinds}
                    rows_UD, every_U = values.pop("weights"), torch.arange(len(grad_UD), device=grad_UD.device)
                    self.held.apply_gradient(shard, rows_UD, values, every_U, grad_UD, number=self.num_updates)
                    self._settle_rows(shard, rows_UD, batch.rows[table])
            batch.grad = None
            self._write_back(batch)

    def _settle_rows(self, shard: TableShard, rows_UD: Tensor, local_U: Tensor) -> None:
        """What the update of local rows ends with: rounding to what the host holds, or the table's projection."""
        if not self.tier.is_half and shard.table.projection is None:
            return
        numbers_U = shard.row_numbers(local_U).to(rows_UD.device)
        if self.tier.is_half:
            rows_UD.copy_(self.held.rounded(shard, rows_UD, numbers_U, number=self.num_updates))
        else:
            every_U = torch.arange(len(rows_UD), device=rows_UD.device)
            self.project(shard, rows_UD, every_U, numbers_U=numbers_U)

    def _write_back(self, batch: _Batch) -> None:
        with self.lock:
            self.num_written += 1
            self.alive.discard(batch)
            self.written.append((self.num_written, batch))
            self.writes.append(self.thread.submit(_scatter, batch, self.held, self.lane, self.lane.mark()))
            while self.prefetched and self.prefetched[0].as_of < self.num_written - MAX_AGE:
                self.prefetched.popleft()
            oldest = min((other.as_of for other in self.alive), default=self.num_written)
            while self.written and self.written[0][0] <= oldest:
                self.written.popleft()

    def _raise_failures(self, *, wait: bool) -> None:
        """Raises what ended a write that is over; with `wait`, of all writes."""
        while self.writes and (wait or self.writes[0].done()):
            self.writes.popleft().result()

    def _land(self) -> None:
        """All updates are on the host, and nothing that was prefetched before is used."""
        self.finish()
        self._raise_failures(wait=True)
        self._let_go()

    def _let_go(self) -> None:
        with self.lock:
            pending = list(self.prefetched)
            self.prefetched.clear()
        for batch in pending:
            batch.gathered.result()

    def _drop_prefetched(self) -> None:
        """Another thread may have prefetched batches meanwhile; those that were looked up are gathered again before
        their update."""
        self._let_go()
        self.num_changes += 1

    def set_lr(self, lr: float) -> None:
        self.held.set_lr(lr)

    def weights(self) -> dict[str, Tensor]:
        self._land()
        return self.held.weights()

    def weight(self, table: str) -> Tensor:
        self._land()
        return self.held.weight(table)

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        self._land()
        return self.held.optimizer_state()

    def check(self) -> None:
        self.held.check()

    def flush(self) -> None:
        self._land()
        self.held.flush()

    def held_tensors(self) -> list[Tensor]:
        return self.held.held_tensors()


def _widths(held: TorchRows, kind: str) -> list[int]:
    """Numbers per row in each table; 0 for state that is one number and no vector."""
    if kind != "weights" and held.optimizer.name == "rowwise_adagrad":
        return [0] * len(held.shards)
    return [shard.num_columns for shard in held.shards]


def _views(flat: Tensor, rows: Sequence[Tensor], widths: Sequence[int]) -> list[Tensor]:
    """Each table's part of a flat tensor. `split`, whose backward pass puts the parts' gradients side by side."""
    parts = torch.split(flat, [r.numel() * max(1, width) for r, width in zip(rows, widths, strict=True)])
    return [part.view(-1, width) if width else part for part, width in zip(parts, widths, strict=True)]


def _host_tensors(held: TorchRows, kind: str) -> list[Tensor]:
    """A kind's tensor of each table."""
    if kind == "weights":
        return held.rows
    return [state[kind] for state in held.state]


def _gather(batch: _Batch, held: TorchRows, lane: Lane) -> None:
    """On the thread: distinct rows of a batch, and their values as they are on the host now."""
    held.check()
    num_bags = (batch.offsets.numel() - 1) // len(held.lookups)
    bounds = batch.offsets[::num_bags].tolist() if num_bags else [0] * (len(held.lookups) + 1)
    places_N = lane.staging(batch.indices.numel(), torch.int64)
    batch.rows = []
    for table in range(len(held.shards)):
        spans = [slice(bounds[k], bounds[k + 1]) for k, t in enumerate(held.lookups) if t == table]
        ids = torch.cat([batch.indices[span] for span in spans]) if spans else batch.indices[:0]
        rows_U, inverse = torch.unique(ids, return_inverse=True)
        batch.rows.append(rows_U)
        for span, part in zip(spans, inverse.split([span.stop - span.start for span in spans]), strict=True):
            places_N[span] = part
    numbers_U = lane.staging(sum(rows.numel() for rows in batch.rows), torch.int64)
    torch.cat(batch.rows, out=numbers_U)
    offsets = lane.staging(batch.offsets.numel(), torch.int64).copy_(batch.offsets)
    staged = [numbers_U, places_N, offsets]
    kinds = ("weights", *held.state[0])
    for kind in kinds:
        widths = _widths(held, kind)
        size = sum(rows.numel() * max(1, width) for rows, width in zip(batch.rows, widths, strict=True))
        flat = lane.staging(size, torch.float32)
        views = _views(flat, batch.rows, widths)
        for source, rows_U, view in zip(_host_tensors(held, kind), batch.rows, views, strict=True):
            if source.dtype == view.dtype:
                torch.index_select(source, 0, rows_U, out=view)
            else:
                view.copy_(source.index_select(0, rows_U))
        staged.append(flat)
    (batch.numbers, batch.places, batch.offsets_there, *values), batch.uploaded = lane.upload(staged)
    batch.values = dict(zip(kinds, values, strict=True))


def _scatter(batch: _Batch, held: TorchRows, lane: Lane, after: Mark) -> None:
    """On the thread: writes updated rows and their state to the host."""
    held.check()
    landed = lane.download(list(batch.values.values()), after)
    for kind, flat in zip(batch.values, landed, strict=True):
        views = _views(flat, batch.rows, _widths(held, kind))
        for target, rows_U, view in zip(_host_tensors(held, kind), batch.rows, views, strict=True):
            # Not a change by somebody else: `data` has a version counter of its own.
            target.data.index_copy_(0, rows_U, view.to(target.dtype))
