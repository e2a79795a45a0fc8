"""Another bundle for a server that runs: who may ask for it, and what is refused."""

import errno
import gc
import json
import os
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from embank.pipelines import load_model, make_delta
from embank.pipelines.serve import changes
from embank.pipelines.serve.models import tried_model
from embank.pipelines.serve.source import current_bundle
from embank.pipelines.serve.state import Loaded, StateFolder
from embank.tables import CheckpointError, ConfigError, TableCollection, TableSpec, save_bundle
from embank.tables.storage.atomic import temporary_file
from tests.serve.logs import Bundles
from tests.serve.served import HERE, a_client, a_worker, post


def test_reload_changes_what_is_served(bundles: Bundles) -> None:
    with a_client(bundles.first) as client:
        before = post(client, "/score", {"rows": bundles.rows}).json()
        answer = post(client, "/reload", {"bundle": str(bundles.second)})
        assert answer.status_code == 200, answer.text
        second = load_model(bundles.second)
        assert answer.json() == {"sequence": 2, "version": second.version, "checksum": second.checksum}
        after = post(client, "/score", {"rows": bundles.rows}).json()
        assert after["checksum"] == second.checksum
        assert after["scores"] == second.score(bundles.rows).tolist()
        assert after["scores"] != before["scores"]
        assert post(client, "/reload", {"bundle": str(bundles.first)}).json()["sequence"] == 3
        assert post(client, "/score", {"rows": bundles.rows}).json() == before


def test_what_can_not_be_served_changes_nothing(bundles: Bundles, tmp_path: Path) -> None:
    damaged = shutil.copytree(bundles.second, tmp_path / "damaged")
    network = damaged / "network.safetensors"
    content = bytearray(network.read_bytes())
    content[-1] ^= 1
    network.write_bytes(content)
    with a_client(bundles.first) as client:
        for content, status, message in (
            ({"bundle": str(tmp_path / "gone")}, 422, "holds no bundle"),
            ({"bundle": str(damaged)}, 422, "has been altered"),
            ({"bundle": str(bundles.other_columns)}, 409, "it adds shop"),
            ({"bundle": "x" * 5000}, 422, "nothing was reloaded"),
            ({"bundle": ""}, 422, "is no path"),
            ({"bundle": 1}, 422, "is no path"),
            ({"bundle": "a", "delta": "b"}, 422, "neither one bundle nor one delta"),
            ([], 422, "neither one bundle nor one delta"),
            ({"bundel": "a"}, 422, "neither one bundle nor one delta"),
        ):
            answer = post(client, "/reload", content)
            assert answer.status_code == status, answer.text
            assert message in answer.json()["error"]
        served = post(client, "/score", {"rows": bundles.rows}).json()
        assert served["scores"] == load_model(bundles.first).score(bundles.rows).tolist()


def test_one_reload_at_a_time(bundles: Bundles) -> None:
    with (
        a_worker(bundles.first) as worker,
        TestClient(worker.app, base_url="http://localhost", client=("127.0.0.1", 1)) as client,
        worker.state.changing(waits=True),
    ):
        answer = post(client, "/reload", {"bundle": str(bundles.second)})
    assert answer.status_code == 409
    assert "another reload" in answer.json()["error"]


@pytest.mark.parametrize(
    ("peer", "host", "headers", "status"),
    [
        ("127.0.0.1", "localhost:8000", {}, 422),
        ("::1", "[::1]:8000", {}, 422),
        ("::ffff:127.0.0.1", "127.0.0.1", {}, 422),
        ("192.0.2.7", "127.0.0.1", {}, 403),
        ("127.0.0.1", "rebound.example", {}, 403),
        ("127.0.0.1", "localhost", {"x_forwarded_for": "127.0.0.1"}, 403),
        ("192.0.2.7", "localhost", {"x_forwarded_for": "127.0.0.1"}, 403),
    ],
    ids=str,
)
def test_only_this_machine_reloads(
    bundles: Bundles, peer: str, host: str, headers: dict[str, str], status: int
) -> None:
    with a_client(bundles.first, base_url=f"http://{host}", peer=peer) as client:
        assert post(client, "/reload", {"bundle": "gone"}, **headers).status_code == status
        assert post(client, "/score", {"rows": bundles.rows[:1]}).status_code == 200


def test_a_token_is_needed_once_there_is_one(bundles: Bundles) -> None:
    token = "correct horse battery"
    with a_client(bundles.first, token=token, peer="192.0.2.7", base_url="http://shop.example") as client:
        for given in ("", "Bearer", "Bearer wrong", f"Basic {token}", f"Bearer {token}x", "Bearer \xe9"):
            answer = client.post(
                "/reload",
                content=json.dumps({"bundle": str(bundles.second)}),
                headers=[(b"content-type", b"application/json"), (b"authorization", given.encode("latin-1"))],
            )
            assert answer.status_code == 401, given
            assert answer.headers["www-authenticate"] == "Bearer"
        answer = post(client, "/reload", {"bundle": str(bundles.second)}, authorization=f"Bearer {token}")
        assert answer.status_code == 200, answer.text
    with a_client(bundles.first, token=token) as client:
        assert post(client, "/reload", {"bundle": str(bundles.second)}).status_code == 401


def test_what_is_a_bundle(bundles: Bundles, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "bundle").symlink_to(bundles.first)
    assert current_bundle(run) == bundles.first.resolve()
    assert current_bundle(bundles.first) == bundles.first.resolve()

    folder = tmp_path / "bundles"
    folder.mkdir()
    shutil.copytree(bundles.first, folder / "monday")
    with pytest.raises(CheckpointError, match="holds no bundle and no run"):
        current_bundle(folder)
    (folder / "current").write_text("monday\n")
    assert current_bundle(folder) == (folder / "monday").resolve()
    (folder / "current").write_text("sunday")
    with pytest.raises(CheckpointError, match="'sunday', which holds no bundle|sunday', which holds no bundle"):
        current_bundle(folder)
    (folder / "current").unlink()
    (folder / "current").symlink_to("monday")
    assert current_bundle(folder) == (folder / "monday").resolve()


def test_folders_of_killed_servers_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    killed = tmp_path / "embank-serve-killed"
    (killed / "applied").mkdir(parents=True)
    other = tmp_path / "embank-serve-other"
    other.mkdir()
    with StateFolder.made() as first:
        assert not killed.exists()
        with StateFolder.made() as second:
            assert first.path.is_dir()
            assert (first.path.stat().st_mode & 0o777) == 0o700
        assert not second.path.exists()
        assert other.is_dir()  # not known to be one


def test_a_worker_that_does_not_follow_is_named(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "WAIT_S", 0.2)
    with (
        a_worker(bundles.first) as worker,
        TestClient(worker.app, base_url=HERE, client=("127.0.0.1", 1)) as client,
    ):
        worker.state.tell_workers({0: os.getpid(), 1: 1, 2: 2})
        old = load_model(bundles.first)
        facts = {"sequence": 1, "version": old.version, "checksum": old.checksum}
        worker.state.tell_loaded(2, Loaded(pid=2, failed=(2, "there is no memory"), **facts))  # type: ignore[arg-type]
        answer = post(client, "/reload", {"bundle": str(bundles.second)})
        assert answer.status_code == 503
        assert "worker 1: it has not answered yet; worker 2: there is no memory" in answer.json()["error"]
        assert client.get("/ready").json()["checksum"] == load_model(bundles.second).checksum


@pytest.mark.parametrize("name", ["current", "loaded/0"])
def test_a_folder_of_the_server_that_can_not_be_written_is_no_fault_of_the_request(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with (
        a_worker(bundles.first) as worker,
        TestClient(worker.app, base_url=HERE, client=("127.0.0.1", 1)) as client,
    ):
        write, own = Path.write_text, temporary_file(worker.state.path / name)

        def refuse(path: Path, *arguments: Any, **named: Any) -> int:
            if path == own:
                raise PermissionError(errno.EACCES, "Permission denied")
            return write(path, *arguments, **named)

        monkeypatch.setattr(Path, "write_text", refuse)
        answer = post(client, "/reload", {"bundle": str(bundles.second)})
        monkeypatch.undo()
    assert answer.status_code == 503
    assert "can't be written: Permission denied" in answer.json()["error"]


def test_deltas_in_order(bundles: Bundles, tmp_path: Path) -> None:
    make_delta(bundles.first, bundles.second, tmp_path / "forth")
    make_delta(bundles.second, bundles.first, tmp_path / "back")
    shutil.copytree(tmp_path / "forth", tmp_path / "damaged")
    (tmp_path / "damaged/manifest.json").write_text("{}")
    with (
        a_worker(bundles.first) as worker,
        TestClient(worker.app, base_url=HERE, client=("127.0.0.1", 1)) as client,
    ):
        applied = worker.state.applied
        first, second = load_model(bundles.first), load_model(bundles.second)
        for number, (delta, status, served) in enumerate(
            (
                ("back", 409, first),  # out of order
                ("gone", 422, first),
                ("damaged", 422, first),
                ("forth", 200, second),
                ("forth", 409, second),  # repeated
                ("back", 200, first),
            )
        ):
            answer = post(client, "/reload", {"delta": str(tmp_path / delta)})
            assert answer.status_code == status, answer.text
            scored = post(client, "/score", {"rows": bundles.rows}).json()
            assert scored["checksum"] == served.checksum, number
            assert scored["scores"] == served.score(bundles.rows).tolist()
            assert len(list(applied.iterdir())) == (number > 2)  # what is not served any more is gone
        assert post(client, "/reload", {"bundle": str(bundles.second)}).status_code == 200
        assert list(applied.iterdir()) == []
        assert bundles.first.is_dir()
        text = client.get("/metrics").text
        assert 'embank_reloads_total{outcome="done"} 3.0' in text
        assert 'embank_reloads_total{outcome="refused"} 4.0' in text


def test_tables_alone_are_not_served(tmp_path: Path) -> None:
    spec = TableSpec(name="item", num_embeddings=10, embedding_dim=2, feature_names=["item"])
    save_bundle(tmp_path / "tables", TableCollection([spec]))
    with pytest.raises(ConfigError, match="preprocess.json"):
        tried_model(tmp_path / "tables", verify=True)


def test_a_model_that_is_replaced_is_let_go(bundles: Bundles) -> None:
    """Also without the collector, which workers keep from looking at what they began with: its files stay mapped
    otherwise."""
    with (
        a_worker(bundles.first) as worker,
        TestClient(worker.app, base_url=HERE, client=("127.0.0.1", 1)) as client,
    ):
        old = weakref.ref(worker.served.snapshot.model)
        assert client.get("/openapi.json").status_code == 200
        for path, content in (("/score", {"rows": bundles.rows}), ("/embed", {"feature": "item", "values": ["i1"]})):
            assert post(client, path, content).status_code == 200
        gc.collect()
        gc.disable()
        try:
            assert post(client, "/reload", {"bundle": str(bundles.second)}).status_code == 200
            assert post(client, "/score", {"rows": bundles.rows}).status_code == 200
            assert old() is None
        finally:
            gc.enable()
