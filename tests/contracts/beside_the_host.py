"""Every registered method from its initial values to its packed form, on the host and beside it, as a program of its
own.

    python -m tests.contracts.beside_the_host OUT

writes to OUT, by (method, tier) and by (method, tier, "sequence"), either what both have computed or the error.
"""

import sys
import traceback
from collections.abc import Callable
from functools import partialmethod

import pytest
import torch
from torch import Tensor

from embank.tables import RowTier
from embank.tables.rows.torch_rows import TorchRows
from tests.contracts.all_stages import in_a_sequence, through_all_stages
from tests.contracts.simulated_gpu import simulated_gpu, tier
from tests.contracts.specs import NAMES

TIERS = ("host", "device")


def outcome(
    compute: Callable[[str, RowTier], list[Tensor]], method: str, name: str
) -> tuple[list[Tensor], list[Tensor]] | str:
    """What a method computes on the host and with a tier of the simulated GPU, or the error."""
    with pytest.MonkeyPatch.context() as patch:
        if (
            name == "device"
        ):  # the simulation has no sparse gradients; dense ones, as replicas have them, come to the same
            patch.setattr(TorchRows, "__init__", partialmethod(TorchRows.__init__, is_replica=True))
        try:
            here = compute(method, RowTier())
            with simulated_gpu(patch):
                there = compute(method, tier(name))
        except Exception:
            return traceback.format_exc()
        return here, there


if __name__ == "__main__":
    outcomes: dict[tuple[str, ...], object] = {}
    for method in NAMES:
        for name in TIERS:
            outcomes[method, name] = outcome(through_all_stages, method, name)
            outcomes[method, name, "sequence"] = outcome(in_a_sequence, method, name)
    torch.save(outcomes, sys.argv[1])
