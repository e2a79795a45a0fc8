"""Every registered method with its rows, dense parameters and arithmetic on a device beside the host: nothing is mixed
up.

The device is simulated, see `simulated_gpu`; values and updates must equal those of the host but for the order of sums.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.contracts.beside_the_host import TIERS
from tests.contracts.specs import NAMES

pytestmark = pytest.mark.slow

LOOSE = {"autosrh": 5e-2}
"""Its search divides gradients by their own means, which blows up how sums were rounded, and an entry at the edge may
fall."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("gpu") / "outcomes.pt"
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "tests.contracts.beside_the_host", str(path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", TIERS)
@pytest.mark.parametrize("method", NAMES)
def test_a_method_beside_the_host_computes_the_same(outcomes: Any, method: str, name: str) -> None:
    outcome = outcomes[method, name]
    assert not isinstance(outcome, str), outcome
    for here, there in zip(*outcome, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-5, atol=LOOSE.get(method, 1e-6))


@pytest.mark.parametrize("name", TIERS)
@pytest.mark.parametrize("method", NAMES)
def test_sequences_beside_the_host_compute_the_same(outcomes: Any, method: str, name: str) -> None:
    outcome = outcomes[method, name, "sequence"]
    assert not isinstance(outcome, str), outcome
    for here, there in zip(*outcome, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-5, atol=LOOSE.get(method, 1e-6))
