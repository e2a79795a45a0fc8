"""Bundles that tests of the server share."""

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from tests.serve.logs import Bundles, trained_bundles
from tests.serve.served import a_client


@pytest.fixture(name="bundles", scope="session")
def _bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    return trained_bundles(tmp_path_factory.mktemp("served"))


@pytest.fixture(name="client", scope="session")
def _client(bundles: Bundles) -> Iterator[TestClient]:
    with a_client(bundles.first) as client:
        yield client
