"""Area under the ROC curve, exact: the chance that a positive row outscores a negative one, a tie counting one half.

Not torchmetrics' `BinaryAUROC`: it turns logits into float32 probabilities, which makes ties of large scores,
integrates in float32 (off by 1e-8 at 10 M rows), and takes two to three times as long.
"""

import numpy as np

from embank.ctr_models.metrics.scores import Bools, Floats, describe


def undefined_reason(num_positive: int, num_negative: int, *, split: str | None) -> str | None:
    """Why the AUC of so many rows is undefined, or None if it is defined."""
    num_rows = num_positive + num_negative
    if num_positive and num_negative:
        return None
    if not num_rows:
        return f"AUC is undefined: {describe(split)} holds no rows."
    kind = "negative" if num_positive else "positive"
    return (
        f"AUC is undefined: {describe(split)} holds no {kind} example (0 of {num_rows}). "
        "Use more rows, or another split rule or label rule."
    )


def roc_auc(scores: Floats, positive: Bools) -> float:
    """Exact AUC of rows that hold both classes.

    Sorting the classes apart and searching one in the other needs no permutation: about twice as fast as an argsort of
    all rows.

    Args:
        scores: [N], finite.
        positive: [N].

    Returns:
        In [0, 1].

    Example:
        >>> roc_auc(np.array([0.1, 0.4, 0.35, 0.8], np.float32), np.array([False, False, True, True]))
        0.75
    """
    positives, negatives = np.sort(scores[positive]), np.sort(scores[~positive])
    below = int(np.searchsorted(negatives, positives, side="left").sum())
    not_above = int(np.searchsorted(negatives, positives, side="right").sum())
    return (below + not_above) / (2 * len(positives) * len(negatives))
