"""CTR models over any embedding collection, and their metrics."""

from embank.ctr_models.metrics import roc_auc
from embank.ctr_models.model import CTRModel
from embank.ctr_models.narrowed import narrowed
from embank.ctr_models.network import Inputs, Network
from embank.ctr_models.registry import MODELS, build_config, build_model, build_network

__all__ = [
    "MODELS",
    "CTRModel",
    "Inputs",
    "Network",
    "build_config",
    "build_model",
    "build_network",
    "narrowed",
    "roc_auc",
]
