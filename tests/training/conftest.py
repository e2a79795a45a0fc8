"""What tests of training share."""

import shutil
from pathlib import Path

import pytest

from tests.training.raw_runs import MODEL, TABLES, TRAIN, write_raw
from tests.training.runs import train, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of 800 rows."""
    return write_data(tmp_path_factory.mktemp("data") / "prepared")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with labels that follow its rows, and its last tenth, which is the test split."""
    return write_raw(tmp_path_factory.mktemp("raw"), num_rows=2000)


@pytest.fixture(scope="module")
def run(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose data folder is gone."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(raw / "data", folder / "data")
    train(folder / "data", folder / "run", tables=TABLES, model=MODEL, train=TRAIN)
    shutil.rmtree(folder / "data")
    return folder / "run"
