"""Area under the ROC curve in fixed memory, with a bound on its error."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from embank.ctr_models.metrics.auc import AUC, undefined_reason
from embank.ctr_models.metrics.group_auc import ordered_bits
from embank.ctr_models.metrics.scores import to_numpy


class BinnedAUC:
    """AUC from counts per bin, whatever the number of rows.

    A bin is all float32 scores that share their leading bits: bins are fine where scores are small and need no range to
    be known beforehand. Pairs within a bin count one half, so the error is at most half of their share of all pairs;
    `compute` states it.

    Args:
        bits: leading bits of a score that make its bin, 10 to 24; memory is 2**bits * 16 bytes (4 MiB for 18).
        split: name for messages.
    """

    def __init__(self, *, bits: int = 18, split: str | None = None) -> None:
        if not 10 <= bits <= 24:
            raise ValueError(f"bits is {bits}. Use 10 to 24.")
        self.bits = bits
        self.split = split
        self.counts = np.zeros((2, 2**bits), dtype=np.int64)

    def update(self, logits_B: Tensor, labels_B: Tensor) -> None:
        """Add a batch.

        Raises:
            DataError: a label is neither 0 nor 1.
            NonFiniteScoreError: a logit is NaN or infinite.
        """
        scores, positive = to_numpy(logits_B, labels_B, split=self.split, num_before=int(self.counts.sum()))
        np.add.at(self.counts, (positive.astype(np.intp), ordered_bits(scores) >> np.uint32(32 - self.bits)), 1)

    def compute(self) -> AUC:
        """The AUC of all rows so far and its largest possible error."""
        negative, positive = self.counts
        num_negative, num_positive = int(negative.sum()), int(positive.sum())
        reason = undefined_reason(num_positive, num_negative, split=self.split)
        if reason:
            return AUC(value=None, reason=reason)
        below = np.cumsum(negative) - negative
        num_pairs = num_positive * num_negative
        won = int((positive * below).sum())
        tied = int((positive * negative).sum())
        return AUC(value=(won + tied / 2) / num_pairs, max_error=tied / 2 / num_pairs)

    def merge(self, other: "BinnedAUC") -> None:
        """Add another one's rows, for example another rank's."""
        if self.bits != other.bits:
            raise ValueError(f"the bins differ: {self.bits} against {other.bits} bits. Use the same number for both.")
        self.counts += other.counts

    def state_dict(self) -> dict[str, Any]:
        """The counts as a tensor."""
        return {"counts": torch.from_numpy(self.counts.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the counts by saved ones."""
        self.counts = state["counts"].numpy().copy()
