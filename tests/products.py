"""Whether a row came out as it does in other company, on processors that multiply the same row in more than one way."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

LAST_BITS = 1e-6


@cache
def are_alike() -> bool:
    """Whether matrix products give a row the same bits whatever groups of eight rows are beside it: not on Intel's
    processors, where MKL takes another kernel for few rows than for many."""
    info = Path("/proc/cpuinfo")
    return not (info.is_file() and "GenuineIntel" in info.read_text())


def same(found: Tensor, expected: Tensor) -> bool:
    """Equal to the bit where products are alike, and but for their last bits elsewhere."""
    if are_alike():
        return torch.equal(found, expected)
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=0, atol=LAST_BITS)
