"""A short, seeded part of the faults; `python -m tests.faults` puts in as many as there is time for."""

import random

import pytest

from tests.faults.faults import FAULTS
from tests.faults.place import Place

# Of killed sweeps, which take a while, tests/sweep has its own.
COUNTS = {
    "damaged_data": 4,
    "damaged_run": 5,
    "damaged_end": 5,
    "damaged_bundle": 3,
    "killed_prepare": 3,
    "killed_train": 2,
    "killed_export": 2,
    "full_disk": 3,
    "fuzzed_yaml": 12,
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("kind", COUNTS)
def test_faults_are_refused_harmless_or_gone_on_from(place: Place, kind: str) -> None:
    for number in range(COUNTS[kind]):
        assert FAULTS[kind](place, random.Random(f"suite/{kind}/{number}"))
