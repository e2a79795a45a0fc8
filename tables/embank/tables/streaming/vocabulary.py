"""A vocabulary that learns as it goes: ids come in by their count and leave by use, by recency or by age.

Everything is exact and the same in every run: counts are integers, ties are broken by rules that are stated, and a
batch is handled as a whole, without a loop over its ids.

Source: admission by count and removal by age are known from Monolith's tables (Liu et al., "Monolith: Real Time
Recommendation System With Collisionless Embedding Table", ORSUM 2022, section 2.2.1), which grow with their ids. Here
the table and the buffer of candidates are bounded, time is counted in batches, and ids that are in use may have to make
room for others.
"""

from dataclasses import asdict, fields
from typing import Any, Literal

import torch
from torch import Tensor

from embank.tables.errors import ConfigError
from embank.tables.method.options import option_class, refuse_wrong_types
from embank.tables.scalars import as_whole, plain
from embank.tables.streaming.base import UNKNOWN_ROW, IdVocabulary
from embank.tables.streaming.mapped import StreamCounts
from embank.tables.streaming.sorted_columns import SortedColumns, is_ascending, is_column, smallest

FREE = -1

MAX_COUNT = 2**63 - 1
"""Counts are int64."""

Policy = Literal["lfu", "lru", "age"]


@option_class
class StreamingConfig:
    """Options of `StreamingVocabulary`.

    Args:
        admit_after: an id gets a row in the batch in which it is seen for the `admit_after`-th time, if there is room.
            Until then it looks up the unknown row.
        policy: who makes room when no row is free. "lru": the id whose last batch is the longest ago (ties: the lower
            count, then the lower id). "lfu": the id with the lowest count since it was first a candidate (ties: the
            longer ago, then the lower id), and only for one with a higher count. "age": nobody, but ids leave when
            `max_age` batches have gone by without them, whether or not there is need. An id of the batch at hand never
            makes room.
        max_age: for "age": batches.
        candidates: how many ids without a row are counted at once; None takes the table's rows. Where there are more,
            those whose last batch is the longest ago are forgotten (ties: the lower count, then the lower id) and begin
            at 0 when they come again.

    Example:
        >>> StreamingConfig(admit_after=3, policy="age", max_age=1000)
        StreamingConfig(admit_after=3, policy='age', max_age=1000, candidates=None)
        >>> StreamingConfig(policy="fifo")
        Traceback (most recent call last):
            ...
        embank.tables.errors.ConfigError: there is no eviction policy 'fifo'; use 'lfu', 'lru' or 'age'
    """

    admit_after: int = 1
    policy: Policy = "lru"
    max_age: int | None = None
    candidates: int | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, plain(getattr(self, item.name)))
        if self.policy not in ("lfu", "lru", "age"):
            raise ConfigError(f"there is no eviction policy '{self.policy}'; use 'lfu', 'lru' or 'age'")
        refuse_wrong_types(self, where="a streaming vocabulary has ")
        if self.admit_after < 1:
            raise ConfigError(f"admit_after is {self.admit_after}; it is a count of at least 1")
        if (self.max_age is not None) != (self.policy == "age"):
            raise ConfigError(
                f"the policy is '{self.policy}' and max_age is {self.max_age}; 'age' needs a max_age, the others take "
                "none"
            )
        if self.max_age is not None and self.max_age < 1:
            raise ConfigError(f"max_age is {self.max_age}; it is a number of batches of at least 1")
        if self.candidates is not None and self.candidates < 0:
            raise ConfigError(f"candidates is {self.candidates}; it must be 0 or more")
        for name in ("admit_after", "max_age", "candidates"):
            if (getattr(self, name) or 0) > MAX_COUNT:
                raise ConfigError(f"{name} is {getattr(self, name)}; it is an int64, at most {MAX_COUNT}")

    def build(self, *, name: str, capacity: int) -> "StreamingVocabulary":
        """An empty vocabulary."""
        return StreamingVocabulary(self, name=name, capacity=capacity)


class StreamingVocabulary(IdVocabulary):
    """Rows for the ids of a stream.

    In training a batch is handled in this order. Counts and last steps of ids that have a row are brought up to date.
    With the policy "age", ids that are too old leave. The other ids are counted as candidates. Those of them that have
    been seen often enough get a row, the higher count first (ties: the lower id): free rows from the lowest, then rows
    that others leave. Then candidates beyond the buffer are forgotten. An id that lost its row begins at 0.

    Args:
        config: the options.
        name: the table, for messages.
        capacity: R, rows of the table.
    """

    def __init__(self, config: StreamingConfig, *, name: str, capacity: int) -> None:
        super().__init__(name=name, capacity=capacity)
        self.config = config
        self.max_candidates = capacity if config.candidates is None else config.candidates
        self.held_ids = torch.full((capacity,), FREE)
        self.held_counts = torch.zeros(capacity, dtype=torch.int64)
        self.held_seen = torch.zeros(capacity, dtype=torch.int64)
        self.index = SortedColumns(1)  # ids: their rows
        self.candidates = SortedColumns(2)  # ids: count, last step
        self.num_used = 1  # rows below have been given out before

    def look_up(self, ids_N: Tensor) -> Tensor:
        positions_N, known_N = self.index.find(ids_N)
        rows_N = torch.full_like(ids_N, UNKNOWN_ROW)
        rows_N[known_N] = self.index.columns[0][positions_N[known_N]]
        return rows_N

    def learn(self, ids_N: Tensor) -> tuple[Tensor, Tensor, StreamCounts]:
        ids_U, inverse_N, counts_U = torch.unique(ids_N, return_inverse=True, return_counts=True)
        rows_U = self.look_up(ids_U)
        is_new = rows_U == UNKNOWN_ROW
        known = rows_U[~is_new]
        self.held_counts[known] += counts_U[~is_new]
        self.held_seen[known] = self.step
        num_expired = self._expire()  # before anyone is admitted: it makes room
        ids_A = ids_U[is_new]
        counts_A = self._count(ids_A, counts_U[is_new])
        rows_W, num_evicted = self._admit(ids_A, counts_A)
        self._forget()
        resets = rows_W[rows_W < self.num_used]  # a row that nobody had before still has its initial values
        if rows_W.numel():
            self.num_used = max(self.num_used, int(rows_W.max()) + 1)
        changes = StreamCounts(admissions=rows_W.numel(), evictions=num_expired + num_evicted, resets=resets.numel())
        return self.look_up(ids_U)[inverse_N], resets, changes

    def _expire(self) -> int:
        """Takes the rows of ids that are too old; how many."""
        if self.config.max_age is None:
            return 0
        is_old = (self.held_ids != FREE) & (self.held_seen < self.step - self.config.max_age)
        old = is_old.nonzero().squeeze(1)
        self._evict(old)
        return old.numel()

    def _count(self, ids_A: Tensor, counts_A: Tensor) -> Tensor:
        """Adds a batch's counts to those of its candidates; their counts so far."""
        positions_A, known_A = self.candidates.find(ids_A)
        counts, seen = self.candidates.columns
        counts[positions_A[known_A]] += counts_A[known_A]
        seen[positions_A[known_A]] = self.step
        totals_A = counts_A.clone()
        totals_A[known_A] = counts[positions_A[known_A]]
        first = ids_A[~known_A]
        self.candidates.insert(first, counts_A[~known_A], torch.full_like(first, self.step))
        return totals_A

    def _admit(self, ids_A: Tensor, counts_A: Tensor) -> tuple[Tensor, int]:
        """Gives rows to a batch's candidates: the rows, and how many others lost theirs to them.

        Args:
            ids_A: candidates of the batch, ascending.
            counts_A: their counts so far.
        """
        is_ready = counts_A >= self.config.admit_after
        counts_C, order = counts_A[is_ready].sort(descending=True, stable=True)
        ids_C = ids_A[is_ready][order]
        if not ids_C.numel():
            return ids_C, 0
        free = (self.held_ids[1:] == FREE).nonzero().squeeze(1)[: ids_C.numel()] + 1
        victims = self._victims(counts_C[free.numel() :])
        self._evict(victims)
        rows_W = torch.cat([free, victims])
        ids_W, counts_W = ids_C[: rows_W.numel()], counts_C[: rows_W.numel()]
        self.held_ids[rows_W], self.held_counts[rows_W], self.held_seen[rows_W] = ids_W, counts_W, self.step
        self.index.insert(ids_W, rows_W)
        self.candidates.remove(self.candidates.find(ids_W)[0])
        return rows_W, victims.numel()

    def _victims(self, counts_C: Tensor) -> Tensor:
        """Rows whose ids make room for candidates with these counts, highest first; fewer where there are not as
        many."""
        # An id of the batch at hand never makes room: its row may be looked up in this very step.
        held = ((self.held_ids != FREE) & (self.held_seen < self.step)).nonzero().squeeze(1)
        count = min(held.numel(), counts_C.numel())
        if self.config.policy == "age" or not count:
            return held[:0]
        uses, seen, ids = self.held_counts[held], self.held_seen[held], self.held_ids[held]
        if self.config.policy == "lru":
            return held[smallest((seen, uses, ids), count)]
        victims = held[smallest((uses, seen, ids), count)]
        # Candidates come by falling counts, victims by rising ones: the pairs in which the candidate has the higher
        # count are the first ones.
        return victims[counts_C[:count] > self.held_counts[victims]]

    def _evict(self, rows: Tensor) -> None:
        if rows.numel():
            self.index.remove(self.index.find(self.held_ids[rows])[0])
            self.held_ids[rows], self.held_counts[rows], self.held_seen[rows] = FREE, 0, 0

    def _forget(self) -> None:
        """Drops candidates beyond the buffer."""
        excess = len(self.candidates) - self.max_candidates
        if excess > 0:
            counts, seen = self.candidates.columns
            self.candidates.remove(smallest((seen, counts, self.candidates.keys), excess))

    @property
    def num_ids(self) -> int:
        return len(self.index)

    def nbytes(self) -> int:
        held = [self.held_ids, self.held_counts, self.held_seen, *self.index.tensors(), *self.candidates.tensors()]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def facts(self) -> dict[str, Any]:
        return {"capacity": self.capacity, **asdict(self.config)}

    def state(self) -> dict[str, Any]:
        held = (self.held_ids, self.held_counts, self.held_seen, *self.candidates.tensors())
        return {"num_used": self.num_used, "tensors": [tensor.clone() for tensor in held]}

    def load_state(self, state: dict[str, Any]) -> None:
        tensors = [tensor.cpu().clone() for tensor in state["tensors"]]
        self.num_used = state["num_used"]
        self.held_ids, self.held_counts, self.held_seen, self.candidates.keys, *self.candidates.columns = tensors
        rows = (self.held_ids != FREE).nonzero().squeeze(1)
        self.index = SortedColumns(1)  # not saved: it says what `held_ids` says, the other way round
        self.index.insert(self.held_ids[rows], rows)

    def damage(self, state: Any, *, step: int) -> str | None:
        num_used, tensors = (state.get("num_used"), state.get("tensors")) if isinstance(state, dict) else (None, None)
        if not isinstance(tensors, list) or len(tensors) != 6 or not all(map(is_column, tensors)):
            return "its tensors are not six columns of int64"
        sizes, num_candidates = [tensor.numel() for tensor in tensors], tensors[3].numel()
        if sizes != [self.capacity] * 3 + [num_candidates] * 3 or num_candidates > self.max_candidates:
            return (
                f"its columns have the lengths {sizes}, not three times {self.capacity:,} for rows and one number, at "
                f"most {self.max_candidates:,}, for candidates"
            )
        num_rows = as_whole(num_used)
        if num_rows is None or not 1 <= num_rows <= self.capacity:
            return f"num_used is {num_used!r}; it must be a count of rows from 1 to {self.capacity:,}"
        return _damage_of_columns(tensors, num_used=num_rows, step=step)


def _damage_of_columns(tensors: list[Tensor], *, num_used: int, step: int) -> str | None:
    """What is wrong with the values of a saved vocabulary's columns; None if nothing."""
    held_ids, held_counts, held_seen, candidates, counts, seen = tensors
    has_id = held_ids != FREE
    if bool(has_id[:1].any()) or bool(has_id[num_used:].any()):
        return "the unknown row, or a row that was never given out, has an id"
    if not is_ascending(held_ids[has_id].sort().values):
        return "an id has two rows, or is negative"
    if not is_ascending(candidates) or bool(torch.isin(candidates, held_ids).any()):
        return "candidates are not in ascending order, or have rows"
    if any(int(column.min()) < 0 for column in (held_counts, held_seen, counts, seen) if column.numel()):
        return "counts or batches are negative"
    if any(int(column.max()) > step for column in (held_seen, seen) if column.numel()):
        return f"ids were seen after batch {step}"
    return None
