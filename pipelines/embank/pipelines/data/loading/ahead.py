"""Run an iterator ahead of its consumer, on a thread, through a bounded channel."""

import atexit
import threading
import time
import weakref
from collections import deque
from collections.abc import Generator, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Clock:
    """Sums what run-ahead costs and saves; safe to add to from several threads.

    Attributes:
        seconds_waited: wall time that the consumer spent waiting for the next item.
        seconds_busy: CPU time of the threads that made the items.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seconds_waited = 0.0
        self.seconds_busy = 0.0

    def add(self, *, waited: float = 0.0, busy: float = 0.0) -> None:
        with self._lock:
            self.seconds_waited += waited
            self.seconds_busy += busy


class _Finished(Exception):  # noqa: N818 - an end mark, not an error
    """The producer has no more items."""


class _Channel(Generic[T]):
    """A bounded queue that either side can close; the producer's error comes out after the items before it."""

    def __init__(self, depth: int) -> None:
        self._items: deque[T] = deque()
        self._depth = depth
        self._changed = threading.Condition()
        self._end: BaseException | None = None
        self._closed = False

    def put(self, item: T) -> bool:
        """Wait for room and add an item; False when the consumer has left."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._depth)
            if not self._closed:
                self._items.append(item)
                self._changed.notify_all()
            return not self._closed

    def end(self, reason: BaseException) -> None:
        with self._changed:
            self._end = reason
            self._changed.notify_all()

    def get(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._end is not None)
            if not self._items:
                assert self._end is not None
                raise self._end
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()


def timed(source: Iterator[T], *, clock: Clock) -> Generator[T, None, None]:
    """The same items without a thread: the time to make an item is both work and wait."""
    while True:
        began, began_cpu = time.perf_counter(), time.thread_time()
        try:
            item = next(source)
        except StopIteration:
            return
        finally:
            clock.add(waited=time.perf_counter() - began, busy=time.thread_time() - began_cpu)
        yield item


def run_ahead(
    source: Generator[T, None, None], *, depth: int, clock: Clock, counts_wait: bool = True
) -> Generator[T, None, None]:
    """Make the items of `source` on a thread, up to `depth` (> 0) items ahead of the consumer.

    The thread starts with the first `next`. It ends, and is joined, when the items end, when `source` raises (the same
    exception comes out here, after the items made before it), and when this generator is closed, be it by `close()`, by
    leaving the `for` loop, or by an exception at the consumer. Closing waits at most for the item in the making.

    Args:
        source: closed on the thread that ran it.
        counts_wait: whether the waiting here is the final consumer's, to be added to `clock.seconds_waited`.
    """
    channel: _Channel[T] = _Channel(depth)
    # A daemon, so that an iterator that is never closed can't keep the process alive; see also _stop_all.
    thread = threading.Thread(target=_pump, args=(source, channel, clock), name="embank-loader", daemon=True)
    thread.start()  # fails where no more threads are to be had
    _running[thread] = channel
    try:
        while True:
            began = time.perf_counter()
            try:
                item = channel.get()
            except _Finished:
                return
            finally:
                if counts_wait:
                    clock.add(waited=time.perf_counter() - began)
            yield item
    finally:
        channel.close()
        thread.join()


_running: "weakref.WeakKeyDictionary[threading.Thread, _Channel[Any]]" = weakref.WeakKeyDictionary()


def _pump(source: Generator[T, None, None], channel: _Channel[T], clock: Clock) -> None:
    """The thread: move items from the source to the channel until one of the two ends."""
    end: BaseException = _Finished()
    try:
        for item in _counting(source, clock):
            if not channel.put(item):
                break
    except BaseException as error:  # whatever it is belongs to the consumer
        end = error
    finally:
        source.close()
        channel.end(end)


def _counting(source: Iterator[T], clock: Clock) -> Iterator[T]:
    while True:
        began = time.thread_time()
        try:
            item = next(source)
        except StopIteration:
            return
        finally:
            clock.add(busy=time.thread_time() - began)
        yield item


@atexit.register
def _stop_all() -> None:
    """Join what still runs before the interpreter takes its libraries down under the threads."""
    for thread, channel in list(_running.items()):
        channel.close()
        thread.join(timeout=5.0)
