"""All metrics of a CTR model on a split, from batches of logits, labels and groups."""

from typing import Any

from torch import Tensor

from embank.ctr_models.metrics.auc import roc_auc, undefined_reason
from embank.ctr_models.metrics.group_auc import group_auc
from embank.ctr_models.metrics.loss import LossSums
from embank.ctr_models.metrics.scores import ScoreStore, describe

Values = dict[str, float | int | str | None]


class Evaluation:
    """AUC, log loss, calibration and, with groups, group AUC. Keeps all scores: 5 bytes a row, 13 with groups.

    Args:
        split: name of the rows, for messages.
        grouped: batches come with group codes.
        no_group: code of the rows that belong to no group; None where every row has one. Group AUC leaves them out and
            counts them.

    Example:
        >>> import torch
        >>> evaluation = Evaluation(split="test")
        >>> evaluation.update(torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0]))
        >>> evaluation.update(torch.tensor([0.5]), torch.tensor([0.0]))
        >>> values = evaluation.compute()
        >>> values["auc"], round(values["logloss"], 4), values["num_rows"]
        (1.0, 0.4714, 3)
    """

    def __init__(self, *, split: str | None = None, grouped: bool = False, no_group: int | None = None) -> None:
        self.sums = LossSums(split=split)
        self.store = ScoreStore(split=split, grouped=grouped, no_group=no_group)

    def update(self, logits_B: Tensor, labels_B: Tensor, groups_B: Tensor | None = None) -> None:
        """Adds a batch.

        Args:
            logits_B: scores before the sigmoid, any floating dtype.
            labels_B: 0 or 1.
            groups_B: codes, int64, if it is grouped.

        Raises:
            DataError: a label is neither 0 nor 1, shapes differ, or groups are missing.
            NonFiniteScoreError: a logit is NaN or infinite.
        """
        self.store.update(logits_B, labels_B, groups_B)
        self.sums.update(logits_B, labels_B)

    def compute(self) -> Values:
        """The metrics by name, ready for JSON.

        Returns:
            num_rows, num_positive, auc, auc_max_error (always 0: the AUC is exact), logloss, calibration (mean
            prediction / mean label); with groups also gauc, gauc_groups and gauc_rows (those that hold both classes),
            gauc_total_groups, and gauc_rows_without_group, which are in none of them. A metric that is undefined is
            None; then auc_undefined or gauc_undefined says why.
        """
        num_rows, num_positive = self.sums.num_rows, self.sums.num_positive
        reason = undefined_reason(num_positive, num_rows - num_positive, split=self.store.split)
        values: Values = {
            "num_rows": num_rows,
            "num_positive": num_positive,
            "auc": None if reason else roc_auc(self.store.scores(), self.store.positive()),
            "auc_max_error": 0.0,
            "logloss": self.sums.log_loss(),
            "calibration": self.sums.calibration(),
        }
        if reason is not None:
            values["auc_undefined"] = reason
        return values | _group_values(self.store) if self.store.grouped else values

    def merge(self, other: "Evaluation") -> None:
        """Adds another one's rows, for example another rank's.

        Raises:
            DataError: one has groups and the other has not.
        """
        self.store.merge(other.store)
        self.sums.merge(other.sums)

    def state_dict(self) -> dict[str, Any]:
        """Everything that `merge` or a resumed evaluation needs."""
        return {"sums": self.sums.state_dict(), "scores": self.store.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replaces the rows by saved ones; `split` and `grouped` must be those of the saved evaluation."""
        self.sums.load_state_dict(state["sums"])
        self.store.load_state_dict(state["scores"])


def _group_values(store: ScoreStore) -> Values:
    scores, positive, groups = store.scores(), store.positive(), store.groups()
    if store.no_group is not None:
        has_group = groups != store.no_group
        scores, positive, groups = scores[has_group], positive[has_group], groups[has_group]
    value, num_groups, num_rows, total_groups = group_auc(scores, positive, groups)
    num_without = store.num_rows - len(groups)
    values: Values = {
        "gauc": value,
        "gauc_groups": num_groups,
        "gauc_rows": num_rows,
        "gauc_total_groups": total_groups,
        "gauc_rows_without_group": num_without,
    }
    if value is None:
        without = f", {num_without} of them without a group key" if num_without else ""
        values["gauc_undefined"] = (
            f"group AUC is undefined: none of the {total_groups} groups of {describe(store.split)} holds both classes "
            f"({store.num_rows} rows{without}). Use more rows or a coarser group key."
        )
    return values
