"""From looked-up rows to logits."""

import contextlib
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from embank.ctr_models.network import Network
from embank.tables.errors import WorkError
from embank.tables.wording import shortened

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""Names the folder in which torch keeps what it has compiled."""

_FAILED = "CppCompileError"
_MOST_NETWORKS = 10_000
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
    options: dict[str, str | int | bool | Callable[..., object]] = {"assert_indirect_indexing": False}
    # All networks of a process are one method to torch, which would leave the ninth one as it is without a word.
    compiled: Score = torch.compile(  # type: ignore[call-overload]
        network.score, dynamic=False, options=options, recompile_limit=_MOST_NETWORKS
    )
    was_stopped = False

    def scored(dense_BI: Tensor, values: Tensor) -> Tensor:
        nonlocal compiled, was_stopped
        try:
            return compiled(dense_BI, values)
        except RuntimeError as error:
            from torch._dynamo.exc import TorchDynamoException  # takes a second to import

            if not isinstance(error, TorchDynamoException):
                raise
            if _FAILED in str(error) and not was_stopped:  # Ctrl-C stops the C++ compiler, too: once more
                was_stopped = True
                return scored(dense_BI, values)
            cause = cause_of_failure(error)
            if not falls_back:
                raise WorkError(
                    f"train.compile is true, and the network can't be compiled here: {cause}. {_cure(error)}, or begin "
                    "a run with train.compile: false"
                ) from error
            _log.warning("the network can't be compiled here (%s), so it is evaluated as it is", cause)
            compiled = network.score
            return compiled(dense_BI, values)

    return scored


def cause_of_failure(error: BaseException) -> str:
    """What a compiler has said, in a line: the first error of the C++ compiler's, or else the first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = next(iter(lines), type(error).__name__)
    said = next((line for line in lines[1:] if "error:" in line), None)
    return shortened(first if said is None else f"{first}: {said}", most=300)


def _cure(error: BaseException) -> str:
    text = str(error)
    if "OSError" in text or "PermissionError" in text:
        return f"Point the variable {CACHE} to a folder that can be written"
    if _FAILED in text:
        return "Mend what the C++ compiler says (the variable CXX names another one)"
    return "Install a C++ compiler (or name one in the variable CXX)"


def autocast(precision: str, *, device: str) -> contextlib.AbstractContextManager[object]:
    """bf16 for the network, or nothing."""
    return torch.autocast(device, dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
