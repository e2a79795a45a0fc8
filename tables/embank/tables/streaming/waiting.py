"""What a vocabulary remembers of its batches between `map` and the lookup: rows that must start anew, and which batches
may still be looked up."""

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import uuid4

import torch
from torch import Tensor

from embank.tables.errors import DataError
from embank.tables.scalars import as_whole
from embank.tables.streaming.mapped import Mapped
from embank.tables.streaming.sorted_columns import is_ascending, is_column


class Lock:
    """A lock that one thread may take several times; a copy has one of its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[type["Lock"], tuple[()]]:
        return type(self), ()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@dataclass(frozen=True, kw_only=True)
class Reset:
    """Rows that start anew.

    Args:
        rows: int64, distinct.
        draw: as `Mapped.draw`.
    """

    rows: Tensor
    draw: int


@dataclass(kw_only=True)
class Waiting:
    """Rows of one vocabulary that must start anew, in the order of their batches, until a lookup comes.

    That of their own batch does it, or the first one after it: a batch that is never looked up leaves its resets to the
    next. Batches before it still need the rows as they are.

    Args:
        history: names what the vocabulary has learned so far. A copy, and one that has loaded a state, go on with
            another one: rows of batches that were mapped before mean nothing to them.
        latest: number of the latest learned batch that was looked up.
        resets: those that nobody has done. One thread may add to them while another one does them.
    """

    history: str = field(default_factory=lambda: uuid4().hex)
    latest: int = 0
    resets: deque[Reset] = field(default_factory=deque)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What copies and `pickle` call."""
        vars(self).update(state, history=uuid4().hex)

    def add(self, mapped: Mapped) -> None:
        """Takes the resets of a batch in."""
        if mapped.resets.numel():
            self.resets.append(Reset(rows=mapped.resets, draw=mapped.draw))

    def due(self, mapped: Mapped) -> Iterator[Reset]:
        """What must be done before a batch is looked up, in order. One counts as done when the next is asked for, so
        that one that fails goes on waiting."""
        if not mapped.is_learned:
            return
        while self.resets and self.resets[0].draw <= mapped.draw:
            yield self.resets[0]
            self.resets.popleft()
        self.latest = mapped.draw

    def rows(self) -> Tensor:
        """All rows that wait, int64."""
        return torch.cat([torch.empty(0, dtype=torch.int64), *(reset.rows for reset in list(self.resets))])

    def state(self) -> list[dict[str, Any]]:
        """The resets, as `of_state` takes them."""
        return [{"draw": reset.draw, "rows": reset.rows.clone()} for reset in list(self.resets)]

    @classmethod
    def of_state(cls, state: list[dict[str, Any]]) -> Self:
        """Those of a saved vocabulary, whose batches are gone: the next lookup does them."""
        return cls(resets=deque(Reset(rows=one["rows"].cpu().clone(), draw=one["draw"]) for one in state))

    @staticmethod
    def damage(state: Any, *, step: int, capacity: int) -> str | None:
        """What is wrong with a saved state of a vocabulary of so many rows at batch `step`; None if nothing."""
        if not isinstance(state, list) or not all(isinstance(one, dict) and set(one) == _STATE for one in state):
            return "its waiting resets are no list of numbers and rows"
        draws = [as_whole(one["draw"]) or 0 for one in state]
        if draws != sorted(set(draws)) or any(not 0 < draw <= step for draw in draws):
            return f"its waiting resets are of the batches {draws}, and it has learned {step}"
        if any(not is_column(rows) or not is_ascending(rows.sort().values) for rows in [one["rows"] for one in state]):
            return "its waiting resets are of no distinct rows"
        if any(bool(((one["rows"] < 1) | (one["rows"] >= capacity)).any()) for one in state):
            return f"its waiting resets are of rows outside 1 .. {capacity - 1}"
        return None

    def refuse_stale(self, mapped: Mapped, *, table: str, step: int) -> None:
        """Refuses a batch whose rows may be other ids' by now.

        Args:
            mapped: the batch.
            table: for the message.
            step: batches that the vocabulary has learned.

        Raises:
            DataError: it was mapped by another vocabulary, or a later batch was looked up.
        """
        if mapped.history != self.history:
            raise DataError(
                f"this batch was not mapped by the vocabulary of table '{table}' here, or before a state was loaded "
                "into it; map it with the StreamingCollection that looks it up"
            )
        if mapped.draw > step:
            raise DataError(
                f"this batch, number {mapped.draw} of table '{table}', was learned in another process, and the "
                f"vocabulary here has learned {step}; map on a thread of the process that trains"
            )
        if mapped.draw < self.latest:
            raise DataError(
                f"batch {mapped.draw} of table '{table}' is looked up after batch {self.latest}, and its rows may be "
                "other ids' by now; look batches up in the order in which they were mapped, or map it again"
            )


_STATE = {"draw", "rows"}
