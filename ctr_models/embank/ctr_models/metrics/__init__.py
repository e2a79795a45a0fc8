"""Metrics of click-through-rate models: exact or with a stated error, streaming, mergeable."""

from embank.ctr_models.metrics.auc import AUC, ExactAUC, roc_auc
from embank.ctr_models.metrics.binned_auc import BinnedAUC
from embank.ctr_models.metrics.evaluation import Evaluation
from embank.ctr_models.metrics.group_auc import GroupAUC, GroupedAUC, group_auc
from embank.ctr_models.metrics.loss import LossSums
from embank.ctr_models.metrics.scores import NonFiniteScoreError

__all__ = [
    "AUC",
    "BinnedAUC",
    "Evaluation",
    "ExactAUC",
    "GroupAUC",
    "GroupedAUC",
    "LossSums",
    "NonFiniteScoreError",
    "group_auc",
    "roc_auc",
]
