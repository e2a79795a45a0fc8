"""What every streaming vocabulary is: a map from ids without an end to the rows of one table, which training changes.

Legend: N ids of a batch, U distinct ones, R rows of the table (its capacity).
"""

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from embank.tables.collections.ids import int64_ids
from embank.tables.errors import CheckpointError, ConfigError, DataError
from embank.tables.scalars import as_whole
from embank.tables.streaming.mapped import Mapped, StreamCounts
from embank.tables.streaming.waiting import Lock, Waiting

UNKNOWN_ROW = 0
"""The row of every id that has none of its own."""


@runtime_checkable
class VocabularyConfig(Protocol):
    """Options of a vocabulary, which make one."""

    def build(self, *, name: str, capacity: int) -> "IdVocabulary":
        """An empty vocabulary."""


class IdVocabulary(nn.Module, ABC):
    """Rows of one table for ids in 0 .. 2**63 - 1. Row 0 is shared by all ids that have none of their own.

    A module for the sake of `train`, `eval` and `state_dict`; it has no parameters, and its state stays on the CPU.
    Only in training mode does a batch change it: evaluation admits, evicts and counts nothing. Its state after a batch
    depends on the batches so far and nothing else, but on their order too: map batches in the order in which they are
    trained on.

    Args:
        name: the table, for messages.
        capacity: R, rows of the table, the unknown one included.

    Attributes:
        step: training batches so far.
        totals: their counts.
        waiting: resets that a `StreamingCollection` still has to do; they are part of the state. Ids whose rows wait
            have the unknown row in evaluation.

    Raises:
        ConfigError: a capacity below 2.
    """

    def __init__(self, *, name: str, capacity: int) -> None:
        super().__init__()
        if capacity < 2:
            raise ConfigError(
                f"table '{name}' has {capacity} row; a streaming vocabulary needs the unknown row and one more: give "
                "num_embeddings of at least 2"
            )
        self.name, self.capacity = name, capacity
        self.step, self.totals = 0, StreamCounts()
        self.waiting = Waiting()
        self.lock = Lock()

    @torch.no_grad()
    def forward(self, ids_N: Tensor) -> Mapped:
        """Rows of a batch of ids; in training mode the batch is learned first.

        Args:
            ids_N: integers of any type and shape, 0 or more, on the CPU.

        Raises:
            DataError: ids that `checked` refuses; nothing has changed.
        """
        with self.lock:
            return self._forward(self.checked(ids_N))

    def mapped(self, ids_N: Tensor) -> Mapped:
        """What `forward` makes of a batch, whose resets wait for its lookup."""
        with self.lock:
            mapped = self._forward(ids_N)
            self.waiting.add(mapped)
        return mapped

    def _forward(self, ids_N: Tensor) -> Mapped:
        if not self.training:
            rows_N, nothing = self.look_up(ids_N), torch.empty(0, dtype=torch.int64)
            rows_N = rows_N.masked_fill(torch.isin(rows_N, self.waiting.rows()), UNKNOWN_ROW)
            return self._mapped(rows_N, nothing, _counted(rows_N), is_learned=False)
        self.step += 1
        with torch.inference_mode(False):  # what is kept must be of use outside it as well
            rows_N, resets, changes = self.learn(ids_N)
        counts = _counted(rows_N) + changes
        self.totals = self.totals + counts
        return self._mapped(rows_N, resets, counts, is_learned=True)

    def _mapped(self, rows_N: Tensor, resets: Tensor, counts: StreamCounts, *, is_learned: bool) -> Mapped:
        return Mapped(
            rows=rows_N,
            resets=resets,
            draw=self.step,
            counts=counts,
            is_learned=is_learned,
            history=self.waiting.history,
        )

    def checked(self, ids_N: Tensor) -> Tensor:
        """Ids as int64 [N], of which nothing is refused any more.

        Raises:
            DataError: ids that are negative or no integers.
        """
        if not isinstance(ids_N, Tensor):
            raise DataError(f"ids of table '{self.name}' are a {type(ids_N).__name__}; give a tensor of integers")
        ids_N = int64_ids(ids_N, what=f"ids of table '{self.name}'").reshape(-1)
        if ids_N.numel() and int(ids_N.min()) < 0:
            raise DataError(
                f"table '{self.name}' was given id {int(ids_N.min())}; ids of a streaming vocabulary are 0 or more, "
                "such as those of embank.tables.ids.token_hash"
            )
        return ids_N

    @abstractmethod
    def look_up(self, ids_N: Tensor) -> Tensor:
        """Rows int64 [N] as things are."""

    @abstractmethod
    def learn(self, ids_N: Tensor) -> tuple[Tensor, Tensor, StreamCounts]:
        """Batch number `step`: its rows [N], rows to reset, and how many ids came and went."""

    @property
    @abstractmethod
    def num_ids(self) -> int:
        """Ids that have a row of their own."""

    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held beside the table."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What a saved state must agree with."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Tensors and numbers that `load_state` takes."""

    @abstractmethod
    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken."""

    @abstractmethod
    def damage(self, state: Any, *, step: int) -> str | None:
        """What is wrong with a state that says it is of batch `step`; None if `load_state` takes it."""

    def get_extra_state(self) -> dict[str, Any]:
        """The whole state, which `state_dict` takes in; loadable with `weights_only=True`."""
        with self.lock:  # a thread may be learning a batch
            totals = {f.name: getattr(self.totals, f.name) for f in fields(self.totals)}
            saved = {"facts": self.facts(), "step": self.step, "totals": totals, "state": self.state()}
            return {**saved, "waiting": self.waiting.state()}

    def set_extra_state(self, saved: dict[str, Any]) -> None:
        """Takes a state over, bit for bit. Batches that were mapped before can't be looked up any more.

        Raises:
            CheckpointError: see `refuse_bad_state`; nothing has changed.
        """
        self.refuse_bad_state(saved)
        with self.lock:
            self.step, self.totals = saved["step"], StreamCounts(**saved["totals"])
            self.load_state(saved["state"])
            self.waiting = Waiting.of_state(saved.get("waiting", []))

    def refuse_bad_state(self, saved: Any) -> None:
        """Refuses what can't be loaded here.

        Raises:
            CheckpointError: a state of a vocabulary with other options, or one that no vocabulary has given.
        """
        lacking = [key for key in _STATE if key not in saved] if isinstance(saved, dict) else list(_STATE)
        if lacking:
            raise self._damaged(f"it lacks {', '.join(lacking)}")
        if saved["facts"] != self.facts():
            raise CheckpointError(
                f"the saved vocabulary of table '{self.name}' has {saved['facts']}, the one here {self.facts()}; make "
                "it with the saved options"
            )
        step, totals = saved["step"], saved["totals"]
        names = {f.name for f in fields(StreamCounts)}
        if not isinstance(totals, dict) or set(totals) != names or not all(map(_is_count, [step, *totals.values()])):
            raise self._damaged(f"step {step!r} and totals {totals!r} must be counts, 0 or more")
        reason = self.damage(saved["state"], step=step)
        reason = reason or Waiting.damage(saved.get("waiting", []), step=step, capacity=self.capacity)
        if reason is not None:
            raise self._damaged(reason)

    def _damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"the saved vocabulary of table '{self.name}' is damaged: {reason}. Load what a vocabulary's state_dict "
            "gave"
        )


_STATE = ("facts", "step", "totals", "state")


def _is_count(value: Any) -> bool:
    number = as_whole(value)
    return number is not None and number >= 0


def _counted(rows_N: Tensor) -> StreamCounts:
    hits = int((rows_N != UNKNOWN_ROW).sum())
    return StreamCounts(lookups=rows_N.numel(), hits=hits, misses=rows_N.numel() - hits)
