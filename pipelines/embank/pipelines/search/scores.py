"""The score of a candidate on a frozen supernet: masks and the network, on rows that were looked up once."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from embank.ctr_models.metrics import Evaluation
from embank.pipelines.runs.score import score
from embank.pipelines.search.held import BATCH_SIZE, HeldSplit
from embank.pipelines.search.supernet import Supernet, batch_norms
from embank.search.spaces import Shape

Metric = Literal["auc", "logloss"]
Pruned = Callable[[int, float], bool]
"""Told the number of a rung and the score so far; whether to stop there."""

LADDER = (1 / 16, 1 / 4, 1.0)
"""Shares of validation on which a candidate is scored, one after the other: a poor one need not be scored on all."""

LEAST_ROWS = 4096
"""A share with fewer rows says too little; it is left out."""

CALIBRATION_ROWS = (2048, 16_384)
"""Fewest and most training rows on which the statistics of batch normalisation are taken anew for a candidate; between
them as many as a quarter of validation has."""


class Scorer:
    """Scores candidates on a supernet.

    Scores are exact and repeatable: the same candidate has the same score, whoever computes it.

    Args:
        supernet: stays as it is.
        data: the prepared folder.
        metric: "auc", or "logloss", whose negative is the score.
        precision: of the network, fp32 or bf16.
        max_rows: of validation; None takes all that memory holds, see `HeldSplit`.
    """

    def __init__(
        self,
        supernet: Supernet,
        *,
        data: Path,
        metric: Metric = "auc",
        precision: str = "fp32",
        max_rows: int | None = None,
    ) -> None:
        self.model, self.metric, self.precision = supernet.model, metric, precision
        self.valid = HeldSplit(supernet.model, data, "valid", fields=supernet.fields, max_rows=max_rows)
        self.norms = batch_norms(supernet.model.network)
        self.calibration: HeldSplit | None = None
        if self.norms:
            least, most = CALIBRATION_ROWS
            num = min(most, max(least, self.valid.num_rows // 4))
            self.calibration = HeldSplit(supernet.model, data, "train", fields=supernet.fields, max_rows=num)
        num_rows = self.valid.num_rows
        self.rungs = [n for n in (round(share * num_rows) for share in LADDER[:-1]) if n >= LEAST_ROWS] + [num_rows]

    @torch.no_grad()
    def __call__(self, shapes: Mapping[str, Shape], *, is_hopeless: Pruned = lambda rung, value: False) -> float | None:
        """The score of a candidate, higher is better; None if it was given up on the way.

        Args:
            shapes: by field; those that are missing stay whole.
            is_hopeless: asked after each rung of the ladder but the last.
        """
        with self.calibrated(shapes):
            evaluation = Evaluation(split="valid")
            start, value = 0, 0.0
            for rung, stop in enumerate(self.rungs):
                for first in range(start, stop, BATCH_SIZE):
                    last = min(first + BATCH_SIZE, stop)
                    evaluation.update(self._logits(self.valid, shapes, first, last), self.valid.labels_V[first:last])
                value = self._value(evaluation)
                start = stop
                if rung + 1 < len(self.rungs) and is_hopeless(rung, value):
                    return None
            return value

    def _value(self, evaluation: Evaluation) -> float:
        values = evaluation.compute()
        auc, logloss = values["auc"], values["logloss"]
        assert isinstance(logloss, float)
        return float(auc) if self.metric == "auc" and auc is not None else -logloss

    def _logits(self, held: HeldSplit, shapes: Mapping[str, Shape], start: int, stop: int) -> Tensor:
        values_BE = held.masked(shapes, start=start, stop=stop)
        return score(self.model.network.score, held.dense_VI[start:stop], values_BE, precision=self.precision)

    @contextmanager
    def calibrated(self, shapes: Mapping[str, Shape]) -> Iterator[None]:
        """The network with batch statistics of a candidate, and its own again afterwards.

        Those of the supernet are of random widths, on average half as wide: they favour candidates of that size.
        """
        if self.calibration is None:
            yield
            return
        before = [(norm, norm.momentum, {k: v.clone() for k, v in norm.state_dict().items()}) for norm in self.norms]
        try:
            for norm in self.norms:
                norm.reset_running_stats()
                norm.momentum = None  # the mean over all batches
                norm.train()
            for start in range(0, self.calibration.num_rows, BATCH_SIZE):
                stop = min(start + BATCH_SIZE, self.calibration.num_rows)
                self._logits(self.calibration, shapes, start, stop)
            for norm in self.norms:
                norm.eval()
            yield
        finally:
            for norm, momentum, state in before:
                norm.eval()
                norm.momentum = momentum
                norm.load_state_dict(state)
