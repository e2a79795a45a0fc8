"""What tests of training share."""

from pathlib import Path

import pytest

from tests.training.runs import write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of 800 rows."""
    return write_data(tmp_path_factory.mktemp("data") / "prepared")
