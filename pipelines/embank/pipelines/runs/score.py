"""From looked-up rows to logits."""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from embank.ctr_models import CTRModel


def score(
    model: CTRModel, network: Callable[..., Tensor], dense_BI: Tensor, values: Tensor, *, precision: str
) -> Tensor:
    """Logits [B], fp32, of what the tables have returned; `network` is the model's, compiled or not."""
    sizes = [model.num_embedding_columns, model.num_first_order_columns]
    embeddings_BE, first_order_BF = torch.split(values, sizes, dim=1)
    with autocast(precision, device=dense_BI.device.type):
        logits_B = network(dense_BI, embeddings_BE, first_order_BF)
    return logits_B.float()


def autocast(precision: str, *, device: str) -> contextlib.AbstractContextManager[object]:
    """bf16 for the network, or nothing."""
    return torch.autocast(device, dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
