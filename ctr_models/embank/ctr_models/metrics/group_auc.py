"""Group AUC: the AUC within each group (a user, say), averaged with the groups' numbers of rows as weights."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from embank.ctr_models.metrics.scores import Bools, Floats, Ints, ScoreStore, describe


@dataclass(frozen=True, kw_only=True)
class GroupAUC:
    """A group AUC, what it was computed on, or why there is none.

    Attributes:
        value: in [0, 1]; None if undefined.
        num_groups: groups that hold both classes; only these count.
        num_rows: rows in these groups.
        total_groups: all groups.
        total_rows: all rows.
        rows_without_group: of them, those that belong to no group and are left out.
        reason: why the value is undefined; None if it is defined.
    """

    value: float | None
    num_groups: int
    num_rows: int
    total_groups: int
    total_rows: int
    rows_without_group: int = 0
    reason: str | None = None


def ordered_bits(scores: Floats) -> NDArray[np.uint32]:
    """float32 to uint32 such that the order stays and -0.0 equals 0.0."""
    bits = (scores + np.float32(0.0)).view(np.uint32)
    # A negative float grows towards zero while its bits fall, so they are all flipped; a positive one only gets above
    # those.
    flips = np.where(bits >> np.uint32(31), np.uint32(0xFFFFFFFF), np.uint32(0x80000000))
    return bits ^ flips


def group_auc(scores: Floats, positive: Bools, groups: Ints) -> tuple[float | None, int, int, int]:
    """Impression-weighted mean of the groups' AUCs, over the groups that hold both classes.

    One sort for all groups: the key is (group, score).

    Source: Zhou et al. 2018 (Deep Interest Network), section 6.3, equation 5.

    Args:
        scores: [N], finite.
        positive: [N].
        groups: [N], any codes.

    Returns:
        value (None if no group holds both classes), counted groups, their rows, all groups.
    """
    codes, group_N = np.unique(groups, return_inverse=True)
    keys_N = (group_N.astype(np.uint64) << np.uint64(32)) | ordered_bits(scores)
    num_groups = len(codes)
    positives_G = np.bincount(group_N[positive], minlength=num_groups)
    negatives_G = np.bincount(group_N[~positive], minlength=num_groups)
    doubled_G = _doubled_wins(keys_N, positive, negatives_G)
    both = (positives_G > 0) & (negatives_G > 0)
    if not both.any():
        return None, 0, 0, num_groups
    rows_G = (positives_G + negatives_G)[both]
    auc_G = doubled_G[both] / (2.0 * positives_G[both] * negatives_G[both])
    return float(np.average(auc_G, weights=rows_G)), int(both.sum()), int(rows_G.sum()), num_groups


def _doubled_wins(keys_N: NDArray[np.uint64], positive: Bools, negatives_G: Ints) -> NDArray[np.float64]:
    """Twice the number of (positive, negative) pairs that each group ranks right, a tie counting one."""
    positives, negatives = np.sort(keys_N[positive]), np.sort(keys_N[~positive])
    group_P = (positives >> np.uint64(32)).astype(np.intp)
    first_G = np.cumsum(negatives_G) - negatives_G
    wins_P = np.searchsorted(negatives, positives, side="left") + np.searchsorted(negatives, positives, side="right")
    doubled_G: NDArray[np.float64] = np.bincount(
        group_P, weights=wins_P - 2 * first_G[group_P], minlength=len(negatives_G)
    ).astype(np.float64, copy=False)
    return doubled_G


class GroupedAUC:
    """Group AUC over batches; keeps 13 bytes a row.

    Args:
        split: name for messages.
        no_group: code of the rows that belong to no group, which are left out and counted; None where every row has
            one.
    """

    def __init__(self, *, split: str | None = None, no_group: int | None = None) -> None:
        self.store = ScoreStore(split=split, grouped=True, no_group=no_group)

    def update(self, logits_B: Tensor, labels_B: Tensor, groups_B: Tensor) -> None:
        """Add a batch.

        Raises:
            DataError: a label is neither 0 nor 1, or there is not one group code per row.
            NonFiniteScoreError: a logit is NaN or infinite.
        """
        self.store.update(logits_B, labels_B, groups_B)

    def compute(self) -> GroupAUC:
        """The group AUC of all rows so far."""
        return exact_group_auc(self.store)

    def merge(self, other: "GroupedAUC") -> None:
        """Add another one's rows; a group may have rows in both."""
        self.store.merge(other.store)

    def state_dict(self) -> dict[str, Any]:
        """The rows as tensors."""
        return self.store.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the rows by saved ones."""
        self.store.load_state_dict(state)


def exact_group_auc(store: ScoreStore) -> GroupAUC:
    """The group AUC of a grouped store's rows."""
    scores, positive, groups = store.scores(), store.positive(), store.groups()
    if store.no_group is not None:
        has_group = groups != store.no_group
        scores, positive, groups = scores[has_group], positive[has_group], groups[has_group]
    value, num_groups, num_rows, total_groups = group_auc(scores, positive, groups)
    num_without = store.num_rows - len(groups)
    reason = None
    if value is None:
        without = f", {num_without} of them without a group key" if num_without else ""
        reason = (
            f"group AUC is undefined: none of the {total_groups} groups of {describe(store.split)} holds both classes "
            f"({store.num_rows} rows{without}). Use more rows or a coarser group key."
        )
    return GroupAUC(
        value=value,
        num_groups=num_groups,
        num_rows=num_rows,
        total_groups=total_groups,
        total_rows=store.num_rows,
        rows_without_group=num_without,
        reason=reason,
    )
