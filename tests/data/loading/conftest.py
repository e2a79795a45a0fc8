"""What tests of the loader share."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.data.prepared import write_prepared


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name == "embank-loader"] == []


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 + 70 rows, two single-valued and two multi-valued features, a group key."""
    path = tmp_path_factory.mktemp("mixed") / "data"
    write_prepared(
        path,
        rows={"train": 300, "valid": 70},
        bags={"genres": 5, "tags": 9},
        numeric=("row", "age"),
        group=True,
        parts=3,
    )
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """100 rows of single-valued features."""
    write_prepared(tmp_path / "plain", rows={"train": 100})
    return tmp_path / "plain"
