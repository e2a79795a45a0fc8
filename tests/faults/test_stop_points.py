"""A short part of `python -m tests.faults.stop_points`: work on bundles that is killed, or finds the disk full."""

import shutil

import pytest

from tests.faults.stop_points import JOBS, start


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_nothing_or_all_of_it_is_there() -> None:
    ends = start(points=2, seed=0, jobs=list(JOBS))
    for job, found in ends.items():
        assert found["points"] > 15, job
        assert found["killed: nothing"] + found["killed: done"] == 2, job
        assert found["full: nothing"] + found["full: done"] == 2, job
