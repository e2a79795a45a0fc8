"""Scores and labels of a data split, checked and kept compactly: 5 bytes a row, 13 with groups."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embank.tables.errors import DataError, WorkError

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


class NonFiniteScoreError(WorkError):
    """Some scores are NaN or infinite, so that no metric means anything."""


def describe(split: str | None) -> str:
    """How messages call the rows that a metric was computed on."""
    return "the data" if split is None else f"split '{split}'"


def to_numpy(logits_B: Tensor, labels_B: Tensor, *, split: str | None, num_before: int) -> tuple[Floats, Bools]:
    """Check a batch and bring it to memory.

    Args:
        logits_B: scores, any floating dtype; kept as float32.
        labels_B: 0 or 1, any dtype.
        split: for messages.
        num_before: rows of earlier batches, for messages.

    Raises:
        DataError: the two differ in shape, are not one-dimensional, or a label is neither 0 nor 1.
        NonFiniteScoreError: a logit is NaN or infinite.
    """
    if logits_B.ndim != 1 or logits_B.shape != labels_B.shape:
        raise DataError(
            f"logits have shape {tuple(logits_B.shape)} and labels {tuple(labels_B.shape)}. Give both as one number "
            "per row."
        )
    scores = logits_B.detach().to(torch.float32).cpu().numpy()
    finite = np.isfinite(scores)
    if not finite.all():
        num_nan = int(np.isnan(scores).sum())
        num_bad = int((~finite).sum())
        raise NonFiniteScoreError(
            f"{num_bad} of {len(scores)} logits of a batch of {describe(split)} are not finite ({num_nan} NaN, "
            f"{num_bad - num_nan} infinite), the first at row {num_before + int(np.argmin(finite))}. "
            "Lower the learning rate, or look for extreme numeric inputs."
        )
    labels = labels_B.detach().cpu().numpy()
    positive = labels == 1
    strange = ~(positive | (labels == 0))
    if strange.any():
        row = int(np.argmax(strange))
        raise DataError(
            f"{int(strange.sum())} labels of {describe(split)} are neither 0 nor 1, the first at row "
            f"{num_before + row}: "
            f"{labels[row]}. Give a rule that makes the label 0 or 1."
        )
    return scores, positive


class ScoreStore:
    """All rows of a split.

    Args:
        split: name for messages.
        grouped: keep a group code per row as well.
        no_group: code of the rows that belong to no group; None where every row has one.
    """

    def __init__(self, *, split: str | None = None, grouped: bool = False, no_group: int | None = None) -> None:
        self.split = split
        self.grouped, self.no_group = grouped, no_group
        self.num_rows = 0
        self._scores: list[Floats] = []
        self._positive: list[Bools] = []
        self._groups: list[Ints] = []

    def update(self, logits_B: Tensor, labels_B: Tensor, groups_B: Tensor | None = None) -> None:
        """Add a batch.

        Raises:
            DataError: bad labels or shapes, or groups missing from a grouped store.
            NonFiniteScoreError: a logit is NaN or infinite.
        """
        scores, positive = to_numpy(logits_B, labels_B, split=self.split, num_before=self.num_rows)
        if self.grouped:
            if groups_B is None or groups_B.shape != labels_B.shape:
                shape = None if groups_B is None else tuple(groups_B.shape)
                raise DataError(
                    f"group codes have shape {shape}, labels {tuple(labels_B.shape)}. Give one code per row."
                )
            self._groups.append(groups_B.detach().cpu().numpy().astype(np.int64))
        # Copies: a CPU tensor shares its memory with the caller, who may write the next batch there.
        self._scores.append(scores.copy())
        self._positive.append(positive)
        self.num_rows += len(scores)

    def scores(self) -> Floats:
        """All scores so far, [N]."""
        return _merged(self._scores, np.float32)

    def positive(self) -> Bools:
        """Whether each row is positive, [N]."""
        return _merged(self._positive, np.bool_)

    def groups(self) -> Ints:
        """Group code of each row, [N]."""
        return _merged(self._groups, np.int64)

    def merge(self, other: "ScoreStore") -> None:
        """Append another store's rows, for example another rank's.

        Raises:
            DataError: one has groups and the other has not.
        """
        if self.grouped != other.grouped:
            raise DataError(
                "one of the two has group codes and the other has not. Give group codes to both or to neither."
            )
        self._scores += other._scores
        self._positive += other._positive
        self._groups += other._groups
        self.num_rows += other.num_rows

    def state_dict(self) -> dict[str, Any]:
        """The rows as tensors."""
        state = {"scores": torch.from_numpy(self.scores()), "positive": torch.from_numpy(self.positive())}
        return state | ({"groups": torch.from_numpy(self.groups())} if self.grouped else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the rows by saved ones."""
        self._scores = [state["scores"].numpy()]
        self._positive = [state["positive"].numpy()]
        self._groups = [state["groups"].numpy()] if self.grouped else []
        self.num_rows = len(self._scores[0])


def _merged(chunks: list[Any], dtype: type) -> NDArray[Any]:
    """One array of all chunks; remembered in place of them."""
    if len(chunks) != 1:
        chunks[:] = [np.concatenate(chunks) if chunks else np.empty(0, dtype)]
    merged: NDArray[Any] = chunks[0]
    return merged
