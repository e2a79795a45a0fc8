"""Micro-batches: rows of requests that arrive together are scored together.

A worker scores in one thread, off its event loop. While it scores, requests gather, and form the next batch: under load
batches grow by themselves. A request that finds the thread idle and is alone is scored at once. Where several clients
ask, the first of a batch waits a moment for the others, which arrive one after the other through the event loop.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from embank.pipelines.serve.models import Snapshot
from embank.pipelines.serve.refused import overloaded
from embank.pipelines.serve.scoring import Rows, Scored, score_requests

_IDLE_BATCHES = 16
"""Of the largest request or batch: how many rows may wait."""


@dataclass(eq=False, kw_only=True)
class _Waiting:
    snapshot: Snapshot
    rows: Rows
    num_rows: int
    outcome: asyncio.Future[np.ndarray]
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Scores requests in batches; `run` does the work, in a task.

    Args:
        batch_rows: of a batch, if so many wait. A larger request is a batch of its own.
        wait_s: seconds that the first of a batch waits for others, where several clients ask.
        max_rows: of a request; sixteen times as many may wait.
        told: is given what came of each batch, and the number of its requests.
    """

    def __init__(self, *, batch_rows: int, wait_s: float, max_rows: int, told: Callable[[Scored, int], None]) -> None:
        self.batch_rows = batch_rows
        self.wait_s = wait_s
        self.most_waiting_rows = _IDLE_BATCHES * max(batch_rows, max_rows)
        self.told = told
        self.waiting: deque[_Waiting] = deque()
        self.waiting_rows = 0
        self.arrived = asyncio.Event()
        self.is_full = asyncio.Event()
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self.crowded_until = 0.0

    async def scores(self, snapshot: Snapshot, rows: Rows) -> np.ndarray:
        """The scores of a request's rows, by this snapshot's model.

        Raises:
            RefusedRequestError: 422 for values that can't be read, 503 where too many rows wait.
        """
        num_rows = len(rows)
        if self.waiting_rows + num_rows > self.most_waiting_rows:
            raise overloaded(f"{self.waiting_rows:,} rows wait already; come again in a second")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(snapshot=snapshot, rows=rows, num_rows=num_rows, outcome=loop.create_future())
        self.waiting.append(waiting)
        self.waiting_rows += num_rows
        self.arrived.set()
        if self.waiting_rows >= self.batch_rows:
            self.is_full.set()
        return await waiting.outcome

    async def run(self) -> None:
        """Scores what waits, until the task is cancelled."""
        try:
            while True:
                await self.arrived.wait()
                await self._gather()
                batch = self._take()
                try:
                    await self._score(batch)
                except Exception as error:  # a defect must not leave the requests that follow without an answer
                    _answer(batch, [error] * len(batch))
        finally:
            self.pool.shutdown(wait=False, cancel_futures=True)

    async def _score(self, batch: Sequence[_Waiting]) -> None:
        if batch:
            requests = [waiting.rows for waiting in batch]
            loop = asyncio.get_running_loop()
            scored = await loop.run_in_executor(self.pool, score_requests, batch[0].snapshot.model, requests)
            _answer(batch, scored.outcomes)
            self.told(scored, len(batch))

    async def _gather(self) -> None:
        """Waits for more requests, if there was company lately."""
        if len(self.waiting) > 1:
            self.crowded_until = time.monotonic() + 10 * self.wait_s
        left = self.waiting[0].since + self.wait_s - time.monotonic()
        if self.waiting_rows < self.batch_rows and left > 0 and time.monotonic() < self.crowded_until:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.is_full.wait(), left)
            if len(self.waiting) > 1:
                self.crowded_until = time.monotonic() + 10 * self.wait_s

    def _take(self) -> list[_Waiting]:
        """The next batch: requests in the order of their arrival, all of one snapshot."""
        batch: list[_Waiting] = []
        num_rows = 0
        while self.waiting:
            first = self.waiting[0]
            if batch and (first.snapshot is not batch[0].snapshot or num_rows + first.num_rows > self.batch_rows):
                break
            self.waiting.popleft()
            self.waiting_rows -= first.num_rows
            if not first.outcome.done():  # the client has been told that it took too long
                batch.append(first)
                num_rows += first.num_rows
        if not self.waiting:
            self.arrived.clear()
        if self.waiting_rows < self.batch_rows:
            self.is_full.clear()
        return batch


def _answer(batch: Sequence[_Waiting], outcomes: Sequence[np.ndarray | Exception]) -> None:
    for waiting, outcome in zip(batch, outcomes, strict=True):
        if waiting.outcome.done():
            continue
        if isinstance(outcome, Exception):
            waiting.outcome.set_exception(outcome)
        else:
            waiting.outcome.set_result(outcome)
