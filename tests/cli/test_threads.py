"""How OpenMP's threads wait: decided before torch is imported, unless someone has."""

import os
import subprocess
import sys

import pytest

READ = "import os, embank.pipelines.cli.app; print(*(os.environ.get(n) for n in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')))"


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, "PASSIVE 20000"),
        ({"GOMP_SPINCOUNT": "7"}, "PASSIVE 7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
    ],
)
def test_waiting_is_short_unless_told_otherwise(own: dict[str, str], expected: str) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {key: value for key, value in os.environ.items() if key not in names} | own
    done = subprocess.run([sys.executable, "-c", READ], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
