"""What every streaming vocabulary is: a map from ids without an end to the rows of one table, which training changes.

Legend: N ids of a batch, U distinct ones, R rows of the table (its capacity).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from embank.tables.errors import CheckpointError, ConfigError, DataError

UNKNOWN_ROW = 0
"""The row of every id that has none of its own."""


@dataclass(frozen=True, kw_only=True)
class StreamCounts:
    """What happened in one batch, or in all of them.

    Args:
        lookups: ids that were looked up, repetitions included; hits + misses.
        hits: lookups that got a row of their own, those of ids admitted by the same batch included.
        misses: lookups that got the unknown row.
        admissions: ids that were given a row.
        evictions: ids that lost theirs.
        resets: rows given to an id after another had them, which start anew.
    """

    lookups: int = 0
    hits: int = 0
    misses: int = 0
    admissions: int = 0
    evictions: int = 0
    resets: int = 0

    def __add__(self, other: "StreamCounts") -> "StreamCounts":
        return StreamCounts(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """A batch of ids as rows of the table.

    Args:
        rows: int64 [N], in 0 .. R - 1.
        resets: int64, distinct rows that must start anew before these rows are looked up, and after every earlier
            batch has been trained on.
        draw: which fresh values they get, see `reset_rows`; differs from batch to batch.
        counts: of this batch.
    """

    rows: Tensor
    resets: Tensor
    draw: int
    counts: StreamCounts


class VocabularyConfig(Protocol):
    """Options of a vocabulary, which make one."""

    def build(self, *, name: str, capacity: int) -> "IdVocabulary":
        """An empty vocabulary."""


class IdVocabulary(nn.Module, ABC):
    """Rows of one table for ids in 0 .. 2**63 - 1. Row 0 is shared by all ids that have none of their own.

    A module for the sake of `train`, `eval` and `state_dict`; it has no parameters, and its state stays on the CPU.
    Only in training mode
    does a batch change it: evaluation admits, evicts and counts nothing. Its state after a batch depends on the batches
    so far
    and nothing else, but on their order too: map batches in the order in which they are trained on.

    Args:
        name: the table, for messages.
        capacity: R, rows of the table, the unknown one included.

    Attributes:
        step: training batches so far.
        totals: their counts.

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

    @torch.no_grad()
    def forward(self, ids_N: Tensor) -> Mapped:
        """Rows of a batch of ids; in training mode the batch is learned first.

        Args:
            ids_N: integers of any type and shape, 0 or more, on the CPU.

        Raises:
            DataError: ids that are negative or no integers.
        """
        ids_N = self._checked(ids_N)
        if not self.training:
            rows_N, nothing = self.look_up(ids_N), torch.empty(0, dtype=torch.int64)
            return Mapped(rows=rows_N, resets=nothing, draw=self.step, counts=_counted(rows_N))
        self.step += 1
        with torch.inference_mode(False):  # what is kept must be of use outside it as well
            rows_N, resets, changes = self.learn(ids_N)
        counts = _counted(rows_N) + changes
        self.totals = self.totals + counts
        return Mapped(rows=rows_N, resets=resets, draw=self.step, counts=counts)

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

    def get_extra_state(self) -> dict[str, Any]:
        """The whole state, which `state_dict` takes in; loadable with `weights_only=True`."""
        totals = {f.name: getattr(self.totals, f.name) for f in fields(self.totals)}
        return {"facts": self.facts(), "step": self.step, "totals": totals, "state": self.state()}

    def set_extra_state(self, saved: dict[str, Any]) -> None:
        """Takes a state over, bit for bit.

        Raises:
            CheckpointError: it is of a vocabulary with other options.
        """
        if saved["facts"] != self.facts():
            raise CheckpointError(
                f"the saved vocabulary of table '{self.name}' has {saved['facts']}, the one here {self.facts()}; make "
                "it with the saved options"
            )
        self.step, self.totals = saved["step"], StreamCounts(**saved["totals"])
        self.load_state(saved["state"])

    def _checked(self, ids_N: Tensor) -> Tensor:
        if ids_N.is_floating_point():
            raise DataError(f"ids of table '{self.name}' are {ids_N.dtype}; they must be integers")
        ids_N = ids_N.reshape(-1).long()
        if ids_N.numel() and int(ids_N.min()) < 0:
            raise DataError(
                f"table '{self.name}' was given id {int(ids_N.min())}; ids of a streaming vocabulary are 0 or more, "
                "such as those of embank.tables.ids.token_hash"
            )
        return ids_N


def _counted(rows_N: Tensor) -> StreamCounts:
    hits = int((rows_N != UNKNOWN_ROW).sum())
    return StreamCounts(lookups=rows_N.numel(), hits=hits, misses=rows_N.numel() - hits)
