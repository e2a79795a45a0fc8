"""From looked-up rows to logits."""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from embank.ctr_models.network import Network


def score(network: Callable[[Tensor, Tensor], Tensor], dense_BI: Tensor, values: Tensor, *, precision: str) -> Tensor:
    """Logits [B], fp32, of what the tables have returned; `network` is `Network.score`, compiled or not."""
    with autocast(precision, device=dense_BI.device.type):
        logits_B = network(dense_BI, values)
    return logits_B.float()


def compiled_score(network: Network) -> Callable[[Tensor, Tensor], Tensor]:
    """`Network.score` as one graph, for one number of rows.

    The numbers of columns that networks pick are their own, so the kernels do not look whether each is in range.
    """
    return torch.compile(network.score, dynamic=False, options={"assert_indirect_indexing": False})


def autocast(precision: str, *, device: str) -> contextlib.AbstractContextManager[object]:
    """bf16 for the network, or nothing."""
    return torch.autocast(device, dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
