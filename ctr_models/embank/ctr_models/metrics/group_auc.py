"""Group AUC: the AUC within each group (a user, say), averaged with the groups' numbers of rows as weights."""

import numpy as np
from numpy.typing import NDArray

from embank.ctr_models.metrics.scores import Bools, Floats, Ints


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

    Example:
        >>> scores, clicked = np.array([0.2, 0.9, 0.3, 0.1], np.float32), np.array([False, True, False, True])
        >>> group_auc(scores, clicked, np.array([7, 7, 8, 8]))
        (0.5, 2, 4, 2)
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
