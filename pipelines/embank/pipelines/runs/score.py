"""From looked-up rows to logits."""

import contextlib
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from embank.ctr_models.network import Network
from embank.tables.errors import WorkError

_log = logging.getLogger(__name__)

Score = Callable[[Tensor, Tensor], Tensor]
"""`Network.score`, compiled or not: numeric inputs [B, I] and what tables return [B, columns] to logits [B]."""


def score(network: Score, dense_BI: Tensor, values: Tensor, *, precision: str) -> Tensor:
    """Logits [B], fp32, of what the tables have returned."""
    with autocast(precision, device=dense_BI.device.type):
        logits_B = network(dense_BI, values)
    return logits_B.float()


def compiled_score(network: Network, *, falls_back: bool = False) -> Score:
    """`Network.score` as one graph, for one number of rows in training and one in evaluation.

    The numbers of columns that networks pick are their own, so the kernels do not look whether each is in range.

    Args:
        network: whose method it is.
        falls_back: where this machine can't compile, take the method as it is, and warn once; else its first call
            raises WorkError.
    """
    compiled = torch.compile(network.score, dynamic=False, options={"assert_indirect_indexing": False})

    def scored(dense_BI: Tensor, values: Tensor) -> Tensor:
        nonlocal compiled
        try:
            return compiled(dense_BI, values)
        except RuntimeError as error:
            from torch._dynamo.exc import TorchDynamoException  # takes a second to import

            if not isinstance(error, TorchDynamoException):
                raise
            cause = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            if not falls_back:
                raise WorkError(
                    f"train.compile is true, and the network can't be compiled here: {cause}. Install a C++ compiler "
                    "(or name one in the variable CXX), or begin a run with train.compile: false"
                ) from error
            _log.warning("the network can't be compiled here (%s), so it is evaluated as it is", cause)
            compiled = network.score
            return compiled(dense_BI, values)

    return scored


def autocast(precision: str, *, device: str) -> contextlib.AbstractContextManager[object]:
    """bf16 for the network, or nothing."""
    return torch.autocast(device, dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
