"""Metrics of click-through-rate models: exact, streaming over batches, mergeable over processes."""

from embank.ctr_models.metrics.auc import roc_auc
from embank.ctr_models.metrics.evaluation import Evaluation
from embank.ctr_models.metrics.group_auc import group_auc
from embank.ctr_models.metrics.loss import LossSums
from embank.ctr_models.metrics.scores import NonFiniteScoreError

__all__ = ["Evaluation", "LossSums", "NonFiniteScoreError", "group_auc", "roc_auc"]
