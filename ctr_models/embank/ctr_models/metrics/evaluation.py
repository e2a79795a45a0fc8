"""All metrics of a CTR model on a split, from batches of logits, labels and groups."""

from typing import Any

from torch import Tensor

from embank.ctr_models.metrics.auc import AUC, exact_auc
from embank.ctr_models.metrics.binned_auc import BinnedAUC
from embank.ctr_models.metrics.group_auc import exact_group_auc
from embank.ctr_models.metrics.loss import LossSums
from embank.ctr_models.metrics.scores import ScoreStore
from embank.tables.errors import ConfigError

Values = dict[str, float | int | str | None]


class Evaluation:
    """AUC, log loss, calibration and, with groups, group AUC.

    Args:
        split: name of the rows, for messages.
        grouped: batches come with group codes.
        no_group: code of the rows that belong to no group; None where every row has one. Group AUC leaves them out and
            counts them.
        exact: keep all scores (5 bytes a row, 13 with groups) for the exact AUC; otherwise 4 MiB of bins and a bound on
            the error.

    Raises:
        ConfigError: grouped, but not exact.
    """

    def __init__(
        self, *, split: str | None = None, grouped: bool = False, no_group: int | None = None, exact: bool = True
    ) -> None:
        if grouped and not exact:
            raise ConfigError(
                "group AUC needs every score, but exact is False. Use exact=True or leave the groups out."
            )
        self.sums = LossSums(split=split)
        self.store = ScoreStore(split=split, grouped=grouped, no_group=no_group) if exact else None
        self.bins = None if exact else BinnedAUC(split=split)

    def update(self, logits_B: Tensor, labels_B: Tensor, groups_B: Tensor | None = None) -> None:
        """Add a batch.

        Raises:
            DataError: a label is neither 0 nor 1, shapes differ, or groups are missing.
            NonFiniteScoreError: a logit is NaN or infinite.
        """
        if self.store is not None:
            self.store.update(logits_B, labels_B, groups_B)
        if self.bins is not None:
            self.bins.update(logits_B, labels_B)
        self.sums.update(logits_B, labels_B)

    def compute(self) -> Values:
        """The metrics by name, ready for JSON.

        Returns:
            num_rows, num_positive, auc, auc_max_error (0 if exact), logloss, calibration (mean prediction / mean
            label); with groups also gauc, gauc_groups and gauc_rows (those that hold both classes), gauc_total_groups,
            and gauc_rows_without_group, which are in none of them. A metric that is undefined is None; then
            auc_undefined or gauc_undefined says why.
        """
        auc = self._auc()
        values: Values = {
            "num_rows": self.sums.num_rows,
            "num_positive": self.sums.num_positive,
            "auc": auc.value,
            "auc_max_error": auc.max_error,
            "logloss": self.sums.log_loss(),
            "calibration": self.sums.calibration(),
        }
        if auc.reason is not None:
            values["auc_undefined"] = auc.reason
        if self.store is not None and self.store.grouped:
            values |= _group_values(self.store)
        return values

    def _auc(self) -> AUC:
        if self.bins is not None:
            return self.bins.compute()
        assert self.store is not None
        return exact_auc(self.store)

    def merge(self, other: "Evaluation") -> None:
        """Add another one's rows, for example another rank's.

        Raises:
            ConfigError: one is exact and the other is not.
        """
        self.sums.merge(other.sums)
        if self.store is not None and other.store is not None:
            self.store.merge(other.store)
        elif self.bins is not None and other.bins is not None:
            self.bins.merge(other.bins)
        else:
            raise ConfigError("one evaluation is exact and the other is not. Make both with the same 'exact'.")

    def state_dict(self) -> dict[str, Any]:
        """Everything that `merge` or a resumed evaluation needs."""
        scores = self.store if self.store is not None else self.bins
        assert scores is not None
        return {"sums": self.sums.state_dict(), "scores": scores.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the rows by saved ones; `split`, `grouped` and `exact` must be those of the saved evaluation."""
        scores = self.store if self.store is not None else self.bins
        assert scores is not None
        self.sums.load_state_dict(state["sums"])
        scores.load_state_dict(state["scores"])


def _group_values(store: ScoreStore) -> Values:
    result = exact_group_auc(store)
    values: Values = {
        "gauc": result.value,
        "gauc_groups": result.num_groups,
        "gauc_rows": result.num_rows,
        "gauc_total_groups": result.total_groups,
        "gauc_rows_without_group": result.rows_without_group,
    }
    if result.reason is not None:
        values["gauc_undefined"] = result.reason
    return values
