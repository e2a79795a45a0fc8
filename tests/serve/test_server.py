"""The server as a whole: processes, sockets, signals."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from embank.pipelines import load_model
from tests.serve.logs import Bundles

pytestmark = pytest.mark.slow


class Running:
    """A server that was started, and its address."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self.log = log
        self.url = self.said(r"at (http://\S+) with")[1]

    def said(self, pattern: str, *, seconds: float = 120) -> re.Match[str]:
        """Waits for a line on stderr."""
        end = time.monotonic() + seconds
        while (found := re.search(pattern, self.log.read_text())) is None:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)
        return found

    def pids(self) -> dict[str, int]:
        """Of the workers, by number."""
        (folder,) = [Path(p) for p in _state_folders(self.process.pid)]
        pids: dict[str, int] = json.loads((folder / "workers").read_text())
        return pids


def _state_folders(pid: int) -> list[str]:
    """The state folder stands in the environment that the workers were started with."""
    found = set()
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        content = Path(f"/proc/{child}/environ").read_bytes().decode()
        found |= set(re.findall(r"PROMETHEUS_MULTIPROC_DIR=([^\0]*)/metrics", content))
    return sorted(found)


@contextmanager
def serving(bundle: Path, *arguments: str, log: Path) -> Iterator[Running]:
    command = [sys.executable, "-m", "embank", "serve", str(bundle), "--port", "0", *arguments]
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, stdout=file, text=True)
    try:
        yield Running(process, log)
    finally:
        process.kill()
        process.wait()


@contextmanager
def load(url: str, ask: Callable[[httpx2.Client, int], None], *, clients: int) -> Iterator[list[BaseException]]:
    """Clients that ask all the time; what has gone wrong for them."""
    failures: list[BaseException] = []
    ended = threading.Event()

    def work(number: int) -> None:
        try:
            with httpx2.Client(base_url=url, timeout=60) as client:
                while not ended.is_set():
                    ask(client, number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_reloads_deaths_and_the_end(bundles: Bundles, tmp_path: Path) -> None:
    """Twelve reloads under load, a worker that is killed, a pointer, and SIGTERM, with one server."""
    models = {m.checksum: m for m in map(load_model, (bundles.first, bundles.second))}
    expected = {checksum: model.score(bundles.rows[:5]) for checksum, model in models.items()}
    assert not np.allclose(*expected.values(), rtol=1e-3)
    answered: dict[str, int] = dict.fromkeys(models, 0)
    content = json.dumps({"rows": bundles.rows[:5]})
    headers = {"content-type": "application/json"}

    def score(client: httpx2.Client, number: int) -> None:
        answer = client.post("/score", content=content, headers=headers)
        assert answer.status_code == 200, answer.text
        values = answer.json()
        assert answer.headers["x-embank-checksum"] == values["checksum"]
        np.testing.assert_allclose(values["scores"], expected[values["checksum"]], rtol=1e-5)
        answered[values["checksum"]] += 1

    folder = tmp_path / "bundles"
    for name, bundle in (("a", bundles.first), ("b", bundles.second)):
        shutil.copytree(bundle, folder / name)
    (folder / "current").write_text("a")
    with serving(folder, "--workers", "2", log=tmp_path / "log") as server:
        with load(server.url, score, clients=4) as failures, httpx2.Client(base_url=server.url, timeout=120) as client:
            for number in range(12):
                bundle = (bundles.second, bundles.first)[number % 2]
                answer = client.post("/reload", json={"bundle": str(bundle)})
                assert answer.status_code == 200, answer.text
                # Whoever asks from now on, by whatever connection, meets the new one.
                fresh = [httpx2.get(f"{server.url}/ready").json()["checksum"] for _ in range(4)]
                assert set(fresh) == {answer.json()["checksum"]}
            before = server.pids()
        assert not failures, failures[0]
        assert min(answered.values()) > 5, answered

        os.kill(before["0"], signal.SIGKILL)
        for _ in range(20):  # the other one answers meanwhile
            assert httpx2.post(f"{server.url}/score", content=content, headers=headers).status_code == 200
        server.said("worker 0 has ended .signal 9. and is started again")
        _until(lambda: server.pids()["0"] != before["0"] and _num_loaded(server) == 2)
        assert server.pids()["1"] == before["1"]
        text = httpx2.get(f"{server.url}/metrics").text
        assert 'embank_reloads_total{outcome="done"} ' in text
        assert text.count("embank_model_info{") == 2

        (folder / "next").write_text("b")
        (folder / "next").rename(folder / "current")
        server.said("/bundles/b' from now on")
        assert httpx2.get(f"{server.url}/ready").json()["checksum"] == load_model(bundles.second).checksum

        state = Path(_state_folders(server.process.pid)[0])
        with load(server.url, score, clients=2) as failures:
            scores = _ask_while_it_ends(server, bundles.rows)
            assert server.process.wait(60) == 0
        assert scores.shape == (40,)
        # What had begun was answered; no more was taken.
        assert all(isinstance(error, httpx2.TransportError) for error in failures), failures
        assert not state.exists()
        assert "Traceback" not in server.log.read_text()


def _ask_while_it_ends(server: Running, rows: list[dict[str, Any]]) -> np.ndarray:
    """The scores of rows of which half are sent before SIGTERM, and half after it."""
    body = json.dumps({"rows": rows}).encode()
    head = f"POST /score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
        connection.sendall(head.encode() + body[:100])
        time.sleep(0.5)
        server.process.terminate()
        time.sleep(0.5)
        with pytest.raises(ConnectionRefusedError):  # at once, so that a client may ask another server
            socket.create_connection(connection.getpeername(), timeout=5).close()
        connection.sendall(body[100:])
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200"), answer
    return np.asarray(json.loads(answer.partition(b"\r\n\r\n")[2])["scores"])


def _until(holds: Callable[[], bool], *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def _num_loaded(server: Running) -> int:
    return httpx2.get(f"{server.url}/metrics").text.count("embank_model_info{")
