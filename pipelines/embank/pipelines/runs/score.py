"""From looked-up rows to logits."""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from embank.ctr_models.network import Network

Score = Callable[[Tensor, Tensor], Tensor]
"""`Network.score`, compiled or not: numeric inputs [B, I] and what tables return [B, columns] to logits [B]."""


def score(network: Score, dense_BI: Tensor, values: Tensor, *, precision: str) -> Tensor:
    """Logits [B], fp32, of what the tables have returned."""
    with autocast(precision, device=dense_BI.device.type):
        logits_B = network(dense_BI, values)
    return logits_B.float()


def compiled_score(network: Network) -> Score:
    """`Network.score` as one graph, for one number of rows in training and one in evaluation.

    The numbers of columns that networks pick are their own, so the kernels do not look whether each is in range.
    """
    return torch.compile(network.score, dynamic=False, options={"assert_indirect_indexing": False})


def autocast(precision: str, *, device: str) -> contextlib.AbstractContextManager[object]:
    """bf16 for the network, or nothing."""
    return torch.autocast(device, dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
