"""A worker in this process, without sockets, and what tests ask of it."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from starlette.testclient import TestClient

from embank.pipelines.serve.models import features_of, tried_model
from embank.pipelines.serve.settings import Settings
from embank.pipelines.serve.state import Current, StateFolder
from embank.pipelines.serve.worker import Worker

HERE = "http://127.0.0.1:8000"
JSON = {"content-type": "application/json"}


@contextmanager
def a_worker(bundle: Path, **settings: Any) -> Iterator[Worker]:
    """A worker, the only one of its server."""
    with StateFolder.made() as state:
        model = tried_model(bundle, verify=True)
        state.publish(Current(sequence=1, bundle=str(bundle), checksum=model.checksum, features=features_of(model)))
        state.tell_workers({0: os.getpid()})
        worker = Worker(0, settings=Settings(**settings), state=state, is_shared=False)
        worker.tell()
        yield worker


@contextmanager
def a_client(bundle: Path, *, base_url: str = HERE, peer: str = "127.0.0.1", **settings: Any) -> Iterator[TestClient]:
    """A client of such a worker, with a connection from `peer`."""
    with (
        a_worker(bundle, **settings) as worker,
        TestClient(worker.app, base_url=base_url, client=(peer, 50_000), raise_server_exceptions=False) as client,
    ):
        yield client


def post(client: TestClient, path: str, content: Any, **headers: str) -> httpx2.Response:
    """Sends bytes as they are, anything else as JSON."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return client.post(path, content=body, headers=JSON | {k.replace("_", "-"): v for k, v in headers.items()})
