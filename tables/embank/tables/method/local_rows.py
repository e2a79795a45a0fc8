"""What methods are given besides their specs, between the steps of a training: the rows of this process, and a score of
the model."""

from abc import ABC, abstractmethod
from typing import Protocol

from torch import Tensor


class Score(Protocol):
    """Scores a model on validation, the higher the better."""

    def __call__(self, *, max_samples: int | None = None, share: float = 1.0) -> float:
        """AUC; of a share of the samples the negative log loss, which ranks models by fewer of them.

        Args:
            max_samples: score about so many samples at most, spread over the split; None takes all.
            share: of these samples.
        """


class LocalRows(ABC):
    """The rows of physical tables that this process holds: all of them, or its shards."""

    @abstractmethod
    def __getitem__(self, table: str) -> Tensor:
        """Rows [R, D] held here: a view, writing to it changes the table. R is 0 where this process holds none."""

    @abstractmethod
    def row_numbers(self, table: str, first: int, last: int) -> Tensor:
        """int64 [last - first], for some of the rows held here their numbers in the table; -1 for padding."""

    @abstractmethod
    def find(self, table: str, rows_N: Tensor) -> tuple[Tensor, Tensor]:
        """Which of some rows of the table are held here, as indices into `rows_N`, and where."""

    def is_counted(self, table: str) -> bool:
        """Whether what is held here enters sums over processes: of a replicated table one replica does."""
        return True

    @abstractmethod
    def sum(self, values: Tensor) -> Tensor:
        """Sum of a tensor over all processes, which all must call; the tensor itself where there is one."""
