"""Micro-batches: each request gets the scores of its own rows, and nobody waits for nothing."""

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embank.pipelines import load_model
from embank.pipelines.serve.batches import Batcher
from embank.pipelines.serve.models import Snapshot
from embank.pipelines.serve.refused import RefusedRequestError
from embank.pipelines.serve.scoring import Scored, score_requests
from tests.serve.logs import Bundles
from tests.serve.served import a_client, post


class Gated:
    """A model that waits for a gate before it scores, and keeps the sizes of its batches."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.gate = threading.Event()
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def score_encoded(self, encoded: Any) -> np.ndarray:
        self.gate.wait(30)
        self.sizes.append(encoded.num_rows)
        scores_N: np.ndarray = self.model.score_encoded(encoded)
        return scores_N


def batcher(told: list[Scored], *, batch_rows: int = 64, wait_s: float = 0.0, max_rows: int = 100) -> Batcher:
    return Batcher(batch_rows=batch_rows, wait_s=wait_s, max_rows=max_rows, told=lambda scored, _: told.append(scored))


async def all_of(
    batches: Batcher, snapshots: Sequence[Snapshot], requests: Sequence[Any], *, gate: threading.Event
) -> list[Any]:
    """The outcomes of requests that arrive while a batch is being scored."""
    task = asyncio.create_task(batches.run())
    asked = [asyncio.create_task(batches.scores(s, rows)) for s, rows in zip(snapshots, requests, strict=True)]
    await asyncio.sleep(0.05)
    gate.set()
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    task.cancel()
    return outcomes


def test_each_request_gets_its_own_scores(bundles: Bundles) -> None:
    """Requests of one to five rows, two models, one request that can't be read."""
    models = [Gated(load_model(bundle)) for bundle in (bundles.first, bundles.second)]
    models[1].gate = models[0].gate
    rng = np.random.default_rng(0)
    snapshots, requests = [], []
    for number in range(60):
        snapshots.append(Snapshot(model=models[number // 30], sequence=number // 30))  # type: ignore[arg-type]
        chosen = rng.integers(0, len(bundles.rows), rng.integers(1, 6))
        requests.append([bundles.rows[i] for i in chosen])
    snapshots = [snapshots[number // 30 * 30] for number in range(60)]
    requests[7] = [bundles.rows[0], bundles.rows[0] | {"price": "dear"}]
    told: list[Scored] = []

    async def run() -> list[Any]:
        return await all_of(batcher(told), snapshots, requests, gate=models[0].gate)

    outcomes = asyncio.run(run())
    refused = outcomes.pop(7)
    assert isinstance(refused, RefusedRequestError)
    assert (refused.facts["field"], refused.facts["row"]) == ("price", 1)
    for place, outcome in enumerate(outcomes):
        number = place + (place >= 7)
        expected_N = snapshots[number].model.model.score(requests[number])  # type: ignore[attr-defined]
        # A product of matrices of another size may round otherwise.
        np.testing.assert_allclose(outcome, expected_N, rtol=1e-5, err_msg=str(number))
    assert max(models[0].sizes + models[1].sizes) <= 64
    assert max(models[1].sizes) > 5  # there were batches
    assert sum(scored.num_rows for scored in told) == sum(len(r) for n, r in enumerate(requests) if n != 7)


def test_one_alone_does_not_wait(bundles: Bundles) -> None:
    model = load_model(bundles.first)
    snapshot = Snapshot(model=model, sequence=1)

    async def run() -> float:
        batches = batcher([], wait_s=1.0)
        task = asyncio.create_task(batches.run())
        begun = time.monotonic()
        for _ in range(3):
            await batches.scores(snapshot, bundles.rows[:1])
        task.cancel()
        return time.monotonic() - begun

    assert asyncio.run(run()) < 0.9


def test_under_load_a_batch_waits_for_company(bundles: Bundles) -> None:
    model = Gated(load_model(bundles.first))
    snapshot = Snapshot(model=model, sequence=1)  # type: ignore[arg-type]

    async def run() -> None:
        batches = batcher([], wait_s=0.3)
        task = asyncio.create_task(batches.run())
        model.gate.set()
        await asyncio.gather(*(batches.scores(snapshot, bundles.rows[:1]) for _ in range(3)))
        late = asyncio.create_task(batches.scores(snapshot, bundles.rows[:1]))
        await asyncio.sleep(0.05)
        await asyncio.gather(late, batches.scores(snapshot, bundles.rows[:1]))
        task.cancel()

    asyncio.run(run())
    assert model.sizes[-1] == 2


def test_too_many_rows_wait(bundles: Bundles) -> None:
    model = Gated(load_model(bundles.first))
    snapshot = Snapshot(model=model, sequence=1)  # type: ignore[arg-type]
    requests = [bundles.rows[:4]] * 30

    async def run() -> list[Any]:
        return await all_of(batcher([], batch_rows=4, max_rows=4), [snapshot] * 30, requests, gate=model.gate)

    outcomes = asyncio.run(run())
    refused = [outcome for outcome in outcomes if isinstance(outcome, RefusedRequestError)]
    assert len(refused) in (13, 14)  # 16 requests wait, and one may be scored already
    assert {error.status for error in refused} == {503}
    assert refused[0].headers["Retry-After"] == "1"


def test_time_limit(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    with a_client(bundles.first, timeout_s=0.1) as client:
        monkeypatch.setattr(
            "embank.pipelines.serve.batches.score_requests", lambda model, requests: gate.wait(30) and None
        )
        answer = post(client, "/score", {"rows": bundles.rows[:1]})
        gate.set()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "within 0.1 s" in answer.json()["error"]


def test_without_memory(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise MemoryError

    with a_client(bundles.first) as client:
        monkeypatch.setattr("embank.pipelines.serve.batches.score_requests", fail)
        assert post(client, "/score", {"rows": bundles.rows[:1]}).status_code == 503
        monkeypatch.undo()
        assert post(client, "/score", {"rows": bundles.rows[:1]}).status_code == 200


def test_a_value_means_the_same_in_any_company(bundles: Bundles) -> None:
    """Numbers, numbers as text, and lists of tags, in one batch."""
    model = load_model(bundles.first)
    row = bundles.rows[0]
    requests: list[Any] = [
        [row | {"price": 3.5}],
        [row | {"price": 7}],
        [row | {"price": "3.5"}],
        [row | {"user": 5}],
        [row | {"tags": ["a", "b"]}],
        [row | {"tags": "a|b"}, row],
        pa.Table.from_pylist([row]),
        [row] * 20,
    ]
    calls: list[int] = []
    encode = model.encode

    def counted(rows: Any) -> Any:
        calls.append(len(rows))
        return encode(rows)

    model.encode = counted  # type: ignore[method-assign]
    outcomes = score_requests(model, requests).outcomes
    model.encode = encode  # type: ignore[method-assign]
    for rows, outcome in zip(requests, outcomes, strict=True):
        np.testing.assert_allclose(outcome, model.score(rows), rtol=1e-5)  # type: ignore[arg-type]
    assert calls == [2, 1, 1, 1, 2, 1, 20]


def test_scores_that_are_no_numbers_are_refused(bundles: Bundles) -> None:
    model = load_model(bundles.first)
    model.score_encoded = lambda encoded: np.array([0.5, np.nan, 0.5])  # type: ignore[method-assign]
    [first, second] = score_requests(model, [bundles.rows[:1], bundles.rows[:2]]).outcomes
    assert isinstance(first, np.ndarray)
    assert isinstance(second, RefusedRequestError)
    assert second.facts["row"] == 0
