"""What a server answers: scores and vectors, as JSON and Arrow, with the version of the model."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from embank.pipelines import load_model
from embank.pipelines.serve.arrow import ARROW
from tests.serve.logs import Bundles
from tests.serve.served import a_client, post

HEADERS = {"content-type": ARROW}


def stream(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=7)
    return bytes(sink.getvalue())


def test_json_and_arrow_give_the_scores_of_the_model_to_the_bit(client: TestClient, bundles: Bundles) -> None:
    model = load_model(bundles.first)
    expected_N = model.score(bundles.rows)
    assert np.unique(expected_N).size > 10  # rows differ, or the test could not fail

    answer = post(client, "/score", {"rows": bundles.rows})
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"scores", "version", "checksum"}
    assert np.array_equal(np.asarray(answer.json()["scores"], dtype=expected_N.dtype), expected_N)
    facts = {"version": model.version, "checksum": model.checksum}
    assert {name: answer.json()[name] for name in facts} == facts
    assert answer.headers["x-embank-version"] == model.version
    assert answer.headers["x-embank-checksum"] == model.checksum

    table = pa.Table.from_pylist(bundles.rows)
    arrow = client.post("/score", content=stream(table), headers=HEADERS)
    assert arrow.status_code == 200, arrow.text
    assert arrow.headers["content-type"] == ARROW
    read = pa.ipc.open_stream(arrow.content).read_all()
    assert read.column_names == ["score"]
    assert np.array_equal(read["score"].to_numpy(), expected_N)
    assert {name.decode(): value.decode() for name, value in read.schema.metadata.items()} == facts


def test_arrow_columns_may_be_of_other_types_of_the_same_values(client: TestClient, bundles: Bundles) -> None:
    table = pa.Table.from_pylist(bundles.rows)
    texts = [name for name in table.column_names if pa.types.is_string(table[name].type)]
    expected_N = load_model(bundles.first).score(bundles.rows)
    for kind in (pa.string_view(), pa.binary(), pa.binary_view()):
        other = table
        for name in texts if kind == pa.string_view() else set(texts) - {"tags"}:  # bytes have no separators
            other = other.set_column(other.column_names.index(name), name, other[name].cast(pa.binary()).cast(kind))
        answer = client.post("/score", content=stream(other.slice(3)), headers=HEADERS)
        assert answer.status_code == 200, answer.text
        scores_N = pa.ipc.open_stream(answer.content).read_all()["score"].to_numpy()
        np.testing.assert_allclose(scores_N, expected_N[3:], atol=1e-6)
    views = np.tile(np.array([100_000, int.from_bytes(b"xxxx", "little"), 0, 0], dtype=np.int32), 4000)
    buffers = [None, pa.py_buffer(views), pa.py_buffer(b"x" * 100_000)]  # each row is all of one text
    long = pa.Array.from_buffers(pa.string_view(), 4000, buffers)
    bomb = pa.table({name: long if name == texts[0] else table[name].take([0] * 4000) for name in table.column_names})
    refused = client.post("/score", content=stream(bomb), headers=HEADERS)
    assert refused.status_code == 413, refused.text
    dates = table.set_column(table.column_names.index(texts[0]), texts[0], pa.array([0] * len(table), pa.date32()))
    assert client.post("/score", content=stream(dates), headers=HEADERS).status_code == 200


def test_arrow_columns_may_be_dictionaries_in_any_order(client: TestClient, bundles: Bundles) -> None:
    table = pa.Table.from_pylist(bundles.rows)
    names = table.column_names[::-1]
    coded = pa.table(
        {n: table[n].dictionary_encode() if pa.types.is_string(table[n].type) else table[n] for n in names}
    )
    answer = client.post("/score", content=stream(coded), headers=HEADERS)
    assert answer.status_code == 200, answer.text
    scores_N = pa.ipc.open_stream(answer.content).read_all()["score"].to_numpy()
    assert np.array_equal(scores_N, load_model(bundles.first).score(bundles.rows))


def test_no_rows_have_no_scores(client: TestClient, bundles: Bundles) -> None:
    assert post(client, "/score", {"rows": []}).json()["scores"] == []
    table = pa.Table.from_pylist(bundles.rows).slice(0, 0)
    answer = client.post("/score", content=stream(table), headers=HEADERS)
    assert pa.ipc.open_stream(answer.content).read_all().num_rows == 0


def test_null_is_a_missing_value(client: TestClient, bundles: Bundles) -> None:
    rows = [dict.fromkeys(bundles.rows[0])]
    answer = post(client, "/score", {"rows": rows})
    assert answer.status_code == 200, answer.text
    assert answer.json()["scores"] == load_model(bundles.first).score(rows).tolist()


def test_vectors_of_values(client: TestClient, bundles: Bundles) -> None:
    values = ["i1", "i2", "never seen"]
    answer = post(client, "/embed", {"feature": "item", "values": values})
    assert answer.status_code == 200, answer.text
    model = load_model(bundles.first)
    assert np.array_equal(np.asarray(answer.json()["vectors"], dtype=np.float32), model.embed("item", values))
    assert answer.json()["checksum"] == model.checksum
    assert post(client, "/embed", {"feature": "item", "values": []}).json()["vectors"] == []


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_states(client: TestClient, bundles: Bundles, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.json()["checksum"] == load_model(bundles.first).checksum


def test_the_page_has_an_example_that_works(client: TestClient, bundles: Bundles) -> None:
    page = client.get("/openapi.json").json()
    for path in ("/score", "/embed"):
        content = page["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        answer = post(client, path, content["example"])
        assert answer.status_code == 200, answer.text
    row = page["paths"]["/score"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(row["properties"]["rows"]["items"]["properties"]) == set(bundles.rows[0])
    assert "swagger" in client.get("/docs").text


def test_figures(client: TestClient, bundles: Bundles) -> None:
    def figure(name: str) -> float:
        lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
        return float(lines[0].rpartition(" ")[2]) if lines else 0.0

    names = {
        "embank_rows_total": 3,
        'embank_unknown_ids_total{feature="item"}': 2,
        "embank_batch_rows_count": 1,
        'embank_errors_total{kind="json"}': 1,
        'embank_requests_total{path="/score",status="200"}': 1,
        'embank_request_seconds_count{path="/score"}': 2,
    }
    before = {name: figure(name) for name in names}
    rows = [bundles.rows[0] | {"item": item} for item in ("i1", "unheard of", "nor this")]
    assert post(client, "/score", {"rows": rows}).status_code == 200
    assert post(client, "/score", b"{").status_code == 400
    assert {name: figure(name) - before[name] for name in names} == names
    model = load_model(bundles.first)
    info = f'embank_model_info{{checksum="{model.checksum}",version="{model.version}",worker="0"}}'
    assert figure(info) == 1


def test_more_rows_than_are_scored_at_once(bundles: Bundles) -> None:
    rows = bundles.rows * 225
    with a_client(bundles.first, max_rows=10_000) as client:
        answer = post(client, "/score", {"rows": rows})
    assert answer.status_code == 200, answer.text
    assert answer.json()["scores"] == load_model(bundles.first).score(rows).tolist()
