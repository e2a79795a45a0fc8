"""Log loss and calibration, streaming in float64."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from embank.ctr_models.metrics.scores import Bools, Floats, to_numpy


class LossSums:
    """Sums over rows from which log loss and calibration follow; 40 bytes whatever the number of rows.

    Args:
        split: name for messages.
    """

    def __init__(self, *, split: str | None = None) -> None:
        self.split = split
        self.num_rows = 0
        self.num_positive = 0
        self.loss = 0.0
        self.predicted = 0.0

    def update(self, logits_B: Tensor, labels_B: Tensor) -> None:
        """Add a batch.

        Raises:
            DataError: a label is neither 0 nor 1.
            NonFiniteScoreError: a logit is NaN or infinite.
        """
        self.add(*to_numpy(logits_B, labels_B, split=self.split, num_before=self.num_rows))

    def add(self, scores: Floats, positive: Bools) -> None:
        """Add rows that are checked already."""
        logits = scores.astype(np.float64)
        self.num_rows += len(logits)
        self.num_positive += int(positive.sum())
        # log(1 + exp(z)) with the sign of z turned by the label: neither a probability near 0 or 1 nor a cancellation.
        self.loss += float(np.logaddexp(0.0, np.where(positive, -logits, logits)).sum())
        self.predicted += float(_sigmoid(logits).sum())

    def log_loss(self) -> float | None:
        """Mean negative log likelihood in nats; None without rows."""
        return self.loss / self.num_rows if self.num_rows else None

    def calibration(self) -> float | None:
        """Mean predicted probability / mean label (1 is perfect; above 1 overestimates); None without a positive
        row."""
        return self.predicted / self.num_positive if self.num_positive else None

    def merge(self, other: "LossSums") -> None:
        """Add another one's rows, for example another rank's."""
        self.load_state_dict({key: value + getattr(other, key) for key, value in self.state_dict().items()})

    def state_dict(self) -> dict[str, Any]:
        """The sums."""
        return {key: getattr(self, key) for key in ("num_rows", "num_positive", "loss", "predicted")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the sums by saved ones."""
        self.num_rows, self.num_positive = state["num_rows"], state["num_positive"]
        self.loss, self.predicted = state["loss"], state["predicted"]


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(-log(1 + exp(-z))): no overflow on either side."""
    sigmoid: NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -logits))
    return sigmoid
