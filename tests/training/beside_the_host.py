"""A run on the simulated GPU and the same one on the host, as a program of its own: see
`tests.contracts.simulated_gpu`.

python -m tests.training.beside_the_host DATA OUT METHOD
"""

import sys
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.checkpoint import filesystem

from tests.contracts.simulated_gpu import simulated_gpu, tier
from tests.training.runs import train


def main(data: Path, out: Path, method: str) -> None:
    """Trains in OUT/here and OUT/there."""
    options: dict[str, Any] = {
        "tables": {"method": method, "budget": 0.5, "plain_below": 0},
        "rows": {"backend": "torch", "tier": "host"},
        "train": {"embedding_l2": 1e-5},
    }
    train(data, out / "here", **options)
    with pytest.MonkeyPatch.context() as patch, simulated_gpu(patch):
        patch.setattr("embank.pipelines.runs.build.row_tier", lambda *_args, **_kwargs: tier("host"))
        # The other one copies on streams, of which the simulation has none.
        patch.setattr(filesystem, "_OverlappingCpuLoader", lambda resolve, **_: filesystem._SerialCpuLoader(resolve))
        train(data, out / "there", **options)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
