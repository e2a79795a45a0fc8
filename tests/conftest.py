"""Settings for the whole suite."""

import os

# The suite runs on several processes, whose threads would only fight; torch asks when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import signal
from collections.abc import Iterator

import pytest

from tests.distributed.ranks import Ranks

# A shell starts what it puts into the background with Ctrl-C ignored, and so would every process of these tests be.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def two() -> Iterator[Ranks]:
    """Two processes that work together, for the tests of a module."""
    group = Ranks(2)
    yield group
    group.close()
