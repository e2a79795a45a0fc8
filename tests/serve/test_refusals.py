"""Requests that are refused, each with what is wrong with it; none of them is a failure of the server."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.testclient import TestClient

from embank.pipelines.serve.arrow import ARROW
from embank.pipelines.serve.bodies import Bodies
from embank.pipelines.serve.refused import RefusedRequestError
from tests.serve.logs import Bundles
from tests.serve.served import JSON, a_client, post
from tests.serve.test_scores import stream
from tests.training.runs import train


def body_of(row: dict[str, Any], **changes: str) -> bytes:
    """One row as JSON text, some cells as given."""
    cells = {name: changes.get(name, json.dumps(value)) for name, value in row.items()}
    return ('{"rows": [{' + ", ".join(f'"{name}": {text}' for name, text in cells.items()) + "}]}").encode()


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "no JSON"),
        (b"{", 400, "line 1, column 2"),
        (b'{"rows": "\xff"}', 400, "byte 10 of the body is not UTF-8"),
        ('{"rows": []}'.encode("utf-16"), 400, "not UTF-8"),
        (b"[" * 100_000, 400, "nested too deeply"),
        (b"[]", 422, "the body is [], not an object"),
        (b"{}", 422, "the body lacks 'rows'"),
        (b'{"rows": [], "row": 1}', 422, "Did you mean 'rows'?"),
        (b'{"rows": [], "rows": []}', 422, "has the name 'rows' twice"),
        (b'{"rows": {}}', 422, "'rows' is not a list"),
        (b'{"rows": [1]}', 422, "row 0 is 1, not an object"),
        (b'{"rows": [null]}', 422, "row 0 is null, not an object"),
        (b'{"rows": [{}]}', 422, "row 0 lacks the column"),
    ],
)
def test_bodies(client: TestClient, body: bytes, status: int, message: str) -> None:
    answer = post(client, "/score", body)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"]
    assert {"kind", "version", "checksum"} <= set(answer.json())
    assert answer.headers["x-embank-checksum"] == answer.json()["checksum"]


@pytest.mark.parametrize(
    ("cells", "field"),
    [
        ({"price": "NaN"}, None),
        ({"price": "-Infinity"}, None),
        ({"price": "1e999"}, None),
        ({"price": "9" * 5000}, None),
        ({"price": "1" * 400 + ".5"}, None),
        ({"price": '"dear"'}, "price"),
        ({"price": "[1]"}, "price"),
        ({"user": "9" * 5000}, None),
        ({"user": '{"a": 1}'}, "user"),
        ({"user": '["u1"]'}, "user"),
        ({"item": '"\\ud800"'}, None),
        ({"tags": "{}"}, "tags"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_cells(client: TestClient, bundles: Bundles, cells: dict[str, str], field: str | None) -> None:
    answer = post(client, "/score", body_of(bundles.rows[0], **cells))
    assert answer.status_code == 422, answer.text
    if field is not None:
        assert answer.json()["field"] == field
        assert answer.json()["row"] == 0
        assert "value" in answer.json()


def test_the_row_is_that_of_the_request(client: TestClient, bundles: Bundles) -> None:
    rows = [*bundles.rows[:3], bundles.rows[0] | {"price": "dear"}]
    answer = post(client, "/score", {"rows": rows}).json()
    assert (answer["field"], answer["row"], answer["value"]) == ("price", 3, "dear")


def test_columns(client: TestClient, bundles: Bundles) -> None:
    row = dict(bundles.rows[0])
    del row["item"]
    for given_row in (row, row | {"itm": "i1"}):
        answer = post(client, "/score", {"rows": [bundles.rows[0], given_row]}).json()
        assert answer["row"] == 1
        assert "item" in answer["error"]
    table = pa.Table.from_pylist([row])
    answer = client.post("/score", content=stream(table), headers={"content-type": ARROW})
    assert answer.status_code == 422
    assert answer.json()["field"] == "item"
    twice = pa.Table.from_arrays([*table.columns, table["user"]], [*table.column_names, "user"])
    answer = client.post("/score", content=stream(twice), headers={"content-type": ARROW})
    assert "'user' twice" in answer.json()["error"]


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "no content type"),
        ({"content-type": "text/csv"}, "'text/csv'"),
        ({"content-type": "application/json; charset=latin-1"}, "'latin-1'"),
        (JSON | {"content-encoding": "gzip"}, "'gzip'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_content_types(client: TestClient, headers: dict[str, str], message: str) -> None:
    answer = client.post("/score", content=b'{"rows": []}', headers=headers)
    assert answer.status_code == 415
    assert message in answer.json()["error"]


@pytest.fixture(name="small", scope="module")
def _small(bundles: Bundles) -> Iterator[TestClient]:
    with a_client(bundles.first, max_rows=5, max_body=4096) as client:
        yield client


def test_too_much(small: TestClient, bundles: Bundles) -> None:
    rows = [bundles.rows[0]] * 6
    assert post(small, "/score", {"rows": rows[:5]}).status_code == 200
    table = pa.Table.from_pylist(rows)
    arrow = small.post("/score", content=stream(table), headers={"content-type": ARROW})
    values = post(small, "/embed", {"feature": "item", "values": ["a"] * 6})
    for answer in (post(small, "/score", {"rows": rows}), arrow, values):
        assert answer.status_code == 413, answer.text
        assert "--max-rows" in answer.json()["error"]
    announced = post(small, "/score", b" " * 5000)
    parts = small.post("/score", content=(b" " * 1000 for _ in range(5)), headers=JSON)
    for answer in (announced, parts):
        assert answer.status_code == 413
        assert "--max-body" in answer.json()["error"]


def test_arrow_that_would_fill_the_memory(client: TestClient, bundles: Bundles) -> None:
    """Compressed buffers, texts that a dictionary repeats, arrays without buffers."""
    rows = pa.Table.from_pylist(bundles.rows)
    for codec in ("zstd", "lz4"):
        answer = client.post("/score", content=stream(rows, compression=codec), headers={"content-type": ARROW})
        assert (answer.status_code, answer.json()["kind"]) == (415, "compression")
    user = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["x" * 100_000]))
    others = {name: pa.nulls(5000) for name in rows.column_names if name != "user"}
    answer = client.post("/score", content=stream(pa.table({"user": user, **others})), headers={"content-type": ARROW})
    assert answer.status_code == 413, answer.text
    empty = pa.record_batch({name: pa.Array.from_buffers(pa.null(), 2**31 - 1, [None]) for name in rows.column_names})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, empty.schema) as writer:
        writer.write_batch(empty)
    answer = client.post("/score", content=bytes(sink.getvalue()), headers={"content-type": ARROW})
    assert answer.status_code == 413, answer.text


def test_paths(client: TestClient) -> None:
    gone = client.get("/nothing")
    assert gone.status_code == 404
    assert "/docs" in gone.json()["error"]
    other = client.get("/score")
    assert other.status_code == 405
    assert other.headers["allow"] == "POST"
    assert other.headers["x-embank-version"]


def test_what_embed_refuses(client: TestClient) -> None:
    for content, message in (
        ({"feature": "itme", "values": []}, "Did you mean 'item'?"),
        ({"feature": "price", "values": []}, "no table has a feature 'price'"),
        ({"feature": ["item"], "values": []}, "no table has a feature"),
        ({"feature": "item", "values": "a"}, "'values' is not a list"),
        ({"feature": "item", "values": ["a", ["b"]]}, "'item'"),
        ({"feature": "item", "values": [{}]}, "'item'"),
    ):
        answer = post(client, "/embed", content)
        assert answer.status_code == 422, answer.text
        assert message in answer.json()["error"]


def test_a_model_without_embeddings_has_none_to_give(bundles: Bundles, tmp_path: Path) -> None:
    train(bundles.first.parents[1] / "data", tmp_path / "run", model={"name": "lr"}, train={"epochs": 1})
    with a_client(tmp_path / "run" / "bundle") as client:
        answer = post(client, "/embed", {"feature": "item", "values": ["a"]})
    assert answer.status_code == 422, answer.text
    assert "lr" in answer.json()["error"] or "embedding" in answer.json()["error"]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_nothing_that_is_sent_makes_it_fail(client: TestClient, bundles: Bundles, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["cell", "rows", "bytes", "arrow"]))
    row = bundles.rows[0]
    if kind == "cell":
        name = data.draw(st.sampled_from(sorted(row)))
        content = json.dumps({"rows": [row, row | {name: data.draw(anything)}]}).encode()
    elif kind == "rows":
        content = json.dumps({"rows": data.draw(anything)}).encode()
    elif kind == "bytes":
        content = data.draw(st.binary(max_size=200))
    else:
        whole = bytearray(stream(pa.Table.from_pylist(bundles.rows[:3])))
        for _ in range(data.draw(st.integers(1, 4))):
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        content = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    kind_sent = ARROW if kind == "arrow" else "application/json"
    answer = client.post("/score", content=content, headers={"content-type": kind_sent})
    assert answer.status_code in (200, 400, 413, 415, 422), answer.text


def test_bodies_that_a_worker_has_no_room_for() -> None:
    messages = [{"type": "http.request", "body": b"x" * 10, "more_body": False}, {"type": "http.disconnect"}]

    async def read(bodies: Bodies, message: dict[str, Any]) -> bytes:
        async def receive() -> dict[str, Any]:
            return message

        with bodies.room() as room:
            return await room.read(Request({"type": "http", "headers": []}, receive))

    bodies = Bodies(most=16)
    assert asyncio.run(read(bodies, messages[0])) == b"x" * 10
    with pytest.raises(RefusedRequestError) as gone:
        asyncio.run(read(bodies, messages[1]))
    assert gone.value.status == 400
    bodies.held = 8 * 16 - 5
    with pytest.raises(RefusedRequestError) as full:
        asyncio.run(read(bodies, messages[0]))
    assert full.value.status == 503
    assert bodies.held == 8 * 16 - 5
