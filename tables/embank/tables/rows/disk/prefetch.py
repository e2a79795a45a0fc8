"""Prefetch of the disk tier: a thread that reads the pages of rows that are about to be looked up.

A page that is not in memory costs a lookup one disk access, one after the other; the thread asks for all of a batch at
once (see `pages`). A lookup whose batch was prefetched waits until its pages are there: were it to go ahead, each page
that it misses would queue behind all those that the thread has asked for.
"""

import threading
import weakref
from collections import deque
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from embank.tables.rows.base import RowStore
from embank.tables.rows.disk.mapped import MappedFile
from embank.tables.rows.disk.pages import Pages, Region
from embank.tables.rows.space import RowSpace

MAX_WAITING = 32
"""Batches that may wait for the thread; whoever gives one more waits."""


class _Queue:
    """The queue between those who prefetch batches and the thread."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.waiting: deque[tuple[int, Tensor, Tensor]] = deque()
        self.pending: dict[int, int] = {}  # address of the indices: number of the last batch with them, if not done
        self.num_made = 0
        self.error: BaseException | None = None
        self.is_closed = False

    def put(self, indices: Tensor, offsets: Tensor) -> None:
        with self.changed:
            self.changed.wait_for(lambda: len(self.waiting) < MAX_WAITING or self.is_closed)
            if self.is_closed:
                return
            self.num_made += 1
            self.pending[indices.data_ptr()] = self.num_made
            self.waiting.append((self.num_made, indices, offsets))
            self.changed.notify_all()

    def get(self) -> tuple[int, Tensor, Tensor] | None:
        """The next batch; None when no more come."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.is_closed)
            if self.is_closed:
                return None
            batch = self.waiting.popleft()
            self.changed.notify_all()
            return batch

    def done(self, number: int, indices: Tensor) -> None:
        with self.changed:
            if self.pending.get(indices.data_ptr()) == number:
                del self.pending[indices.data_ptr()]
            self.changed.notify_all()

    def wait(self, indices: Tensor) -> None:
        """Waits until the batch with these indices, if there is one, is done."""
        place = indices.data_ptr()
        with self.changed:
            self.changed.wait_for(lambda: place not in self.pending or self.is_closed)

    def close(self, error: BaseException | None = None) -> None:
        with self.changed:
            self.error = self.error or error
            self.is_closed = True
            self.waiting.clear()
            self.pending.clear()
            self.changed.notify_all()


class Prefetcher:
    """Takes batches and keeps the thread that follows them. The thread starts with the first batch and ends with this
    object.

    Args:
        files: of the store.
        lookups: for each lookup of the store, views of what it reads: rows [R, D] and optimizer state.
    """

    def __init__(self, files: Sequence[MappedFile], lookups: Sequence[Sequence[Tensor]]) -> None:
        self.files = tuple(files)
        self.lookups = [[Region.of(view, files) for view in views if view.numel()] for views in lookups]
        self.queue, self.thread = _Queue(), threading.Thread()

    @classmethod
    def of(cls, store: RowStore, space: RowSpace) -> "Prefetcher | None":
        """The prefetcher of a store; None where there are no files, or where prefetch is off."""
        if not space.files or not space.tier.prefetch:
            return None
        weights, state = store.weights(), store.optimizer_state()
        names = [store.shards[table].table.name for table in store.lookups]
        return cls(space.files, [[weights[name], *state[name].values()] for name in names])

    def prefetch(self, indices: Tensor, offsets: Tensor) -> None:
        """Says what will be looked up. Waits if `MAX_WAITING` others are waiting.

        Args:
            indices: int64 [N], as the lookup will be given them.
            offsets: int64 [K * S + 1].

        Raises:
            WorkError: a file was cut.
            BaseException: what ended the thread.
        """
        if not indices.numel():
            return
        for file in self.files:
            file.check()
        self._raise()
        if not self.thread.is_alive():
            self._start()
        self.queue.put(indices, offsets)

    def wait(self, indices: Tensor) -> None:
        """Waits for the pages of a prefetched lookup; returns at once if it was not prefetched.

        Raises:
            BaseException: what ended the thread.
        """
        if self.thread.is_alive():
            self.queue.wait(indices)
        self._raise()

    def _raise(self) -> None:
        if self.queue.error is not None:
            raise self.queue.error

    def _start(self) -> None:
        """With the first batch, and with the first one in a forked process, which has no threads."""
        self.queue = _Queue()
        pages = Pages(self.files, self.lookups)
        self.thread = threading.Thread(target=_follow, args=(self.queue, pages), name="embank-prefetcher", daemon=True)
        weakref.finalize(self, _stop, self.queue, self.thread)  # also at the interpreter's end
        self.thread.start()


def _follow(queue: _Queue, pages: Pages) -> None:
    """The thread: bring in the pages of one batch after the other."""
    try:
        while (batch := queue.get()) is not None:
            number, indices, offsets = batch
            bounds_K = offsets.numpy()[:: max(1, (offsets.numel() - 1) // pages.num_lookups)]
            pages.fetch(indices.numpy(), np.diff(bounds_K))
            queue.done(number, indices)
            del batch, indices, offsets
    except BaseException as error:  # whatever it is belongs to those who look up
        queue.close(error)


def _stop(queue: _Queue, thread: threading.Thread) -> None:
    queue.close()
    if thread is not threading.current_thread():
        thread.join()
