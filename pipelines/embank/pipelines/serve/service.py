"""What each path answers."""

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from embank.pipelines.serve.access import refuse_strangers
from embank.pipelines.serve.arrow import ARROW, read_table, write_scores
from embank.pipelines.serve.batches import Batcher
from embank.pipelines.serve.bodies import JSON, Bodies, content_type
from embank.pipelines.serve.changes import Changes
from embank.pipelines.serve.documents import read_document
from embank.pipelines.serve.metrics import Metrics
from embank.pipelines.serve.models import Served, Snapshot
from embank.pipelines.serve.refused import RefusedRequestError, malformed
from embank.pipelines.serve.rows import only_names, refuse_too_many, rows_of
from embank.pipelines.serve.scoring import Rows, Scored, refused_data
from embank.pipelines.serve.settings import Settings
from embank.tables.errors import ConfigError, DataError
from embank.tables.wording import did_you_mean, listing, shortened

_SMALL_BODY = 32 * 2**10
"""Bytes that are parsed on the event loop: handing them to a thread would take longer."""
_T = TypeVar("_T")


class Service:
    """Answers requests with the model of a worker.

    Args:
        settings: limits and the token.
        served: the worker's snapshot.
        changes: of all workers of the server.
        metrics: gets what is counted.
    """

    def __init__(self, settings: Settings, *, served: Served, changes: Changes, metrics: Metrics) -> None:
        self.settings = settings
        self.served = served
        self.changes = changes
        self.metrics = metrics
        self.bodies = Bodies(most=settings.max_body)
        self.batcher = Batcher(
            batch_rows=settings.batch_rows,
            wait_s=settings.batch_wait_ms / 1000,
            max_rows=settings.max_rows,
            told=self._scored,
        )
        self.readers = ThreadPoolExecutor(2, thread_name_prefix="reading")
        self.changers = ThreadPoolExecutor(1, thread_name_prefix="reloading")

    async def score(self, request: Request) -> Response:
        """A score for each row, in their order."""
        snapshot = request.state.snapshot = self.served.snapshot
        async with self._limited():
            kind = content_type(request, allowed=(JSON, ARROW))
            with self.bodies.room() as room:
                body = await room.read(request)
                rows = await self._parsed(lambda: self._rows(body, kind=kind, snapshot=snapshot), size=len(body))
                scores_N = await self.batcher.scores(snapshot, rows) if len(rows) else np.empty(0)
        if kind == ARROW:
            return Response(write_scores(scores_N, metadata=snapshot.facts), headers=snapshot.headers, media_type=ARROW)
        return _json({"scores": scores_N.tolist(), **snapshot.facts}, snapshot)

    async def embed(self, request: Request) -> Response:
        """A vector for each value of a feature, in their order."""
        snapshot = request.state.snapshot = self.served.snapshot
        async with self._limited():
            content_type(request, allowed=(JSON,))
            with self.bodies.room() as room:
                document = await self._document(request, room)
                feature, values = self._values(document, snapshot)
                vectors_ND = await self._in(self.batcher.pool, lambda: _embedded(snapshot, feature, values))
                return _json({"vectors": vectors_ND.tolist(), **snapshot.facts}, snapshot)

    async def reload(self, request: Request) -> Response:
        """Another bundle, or what a delta makes of this one, for all workers; answers when they serve it."""
        refuse_strangers(request, token=self.settings.token)
        content_type(request, allowed=(JSON,))
        async with self._limited():
            with self.bodies.room() as room:
                document = await self._document(request, room)
        change = self._change(document)
        try:
            changed = await self._in(self.changers, change)
        except RefusedRequestError:
            self.metrics.reloads.labels("refused").inc()
            raise
        self.metrics.reloads.labels("incomplete" if changed.missing else "done").inc()
        if changed.missing:
            said = "; ".join(f"worker {number}: {why}" for number, why in sorted(changed.missing.items()))
            raise RefusedRequestError(503, "reload", f"not all workers serve the new bundle yet: {said}")
        return _json({"sequence": changed.snapshot.sequence, **changed.snapshot.facts}, changed.snapshot)

    async def health(self, request: Request) -> Response:
        """The process lives."""
        return _json({"status": "alive", **self.served.snapshot.facts}, self.served.snapshot)

    async def ready(self, request: Request) -> Response:
        """A model is loaded and has scored a row: a worker listens no sooner."""
        return _json({"status": "ready", **self.served.snapshot.facts}, self.served.snapshot)

    async def figures(self, request: Request) -> Response:
        """Counters of all workers, in Prometheus's text format."""
        text = await self._in(self.readers, self.metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    def close(self) -> None:
        """Lets the threads end."""
        for pool in (self.readers, self.changers):
            pool.shutdown(wait=False, cancel_futures=True)

    def _scored(self, scored: Scored, num_requests: int) -> None:
        self.metrics.scored(scored, num_requests)
        self.metrics.waiting.set(self.batcher.waiting_rows)

    def _limited(self) -> "_Limited":
        return _Limited(self.settings.timeout_s)

    def _rows(self, body: bytes, *, kind: str, snapshot: Snapshot) -> Rows:
        columns, most = snapshot.model.features, self.settings.max_rows
        if kind == ARROW:
            return read_table(body, columns=columns, most=most)
        return rows_of(read_document(body), columns=columns, most=most)

    def _values(self, document: Any, snapshot: Snapshot) -> tuple[str, list[Any]]:
        """What `/embed` is asked for."""
        values = only_names(document, ["feature", "values"])
        feature, asked = values["feature"], values["values"]
        known = list(snapshot.model.scorer.features)
        if not isinstance(feature, str) or feature not in known:
            question = did_you_mean(feature, known) if isinstance(feature, str) else ""
            raise malformed(
                f"no table has a feature {shortened(str(feature))!r}.{question or f' There are {listing(known)}'}",
                field="feature",
                value=feature,
                expected=known[:100],
            )
        if not isinstance(asked, list):
            raise malformed("'values' is not a list", field="values", value=asked, expected="a list of values")
        refuse_too_many(len(asked), most=self.settings.max_rows)
        return feature, asked

    def _change(self, document: Any) -> Callable[[], Any]:
        """What `/reload` is asked for."""
        expected = "{'bundle': PATH} or {'delta': PATH}"
        if not isinstance(document, dict) or len(document) != 1 or next(iter(document)) not in ("bundle", "delta"):
            raise malformed("the body names neither one bundle nor one delta", value=document, expected=expected)
        ((name, path),) = document.items()
        if not isinstance(path, str) or not path or "\0" in path:
            raise malformed(f"'{name}' is no path", field=name, value=path, expected="a path on the server's machine")
        return lambda: (self.changes.to_bundle if name == "bundle" else self.changes.by_delta)(path)

    async def _document(self, request: Request, room: Any) -> Any:
        body = await room.read(request)
        return await self._parsed(lambda: read_document(body), size=len(body))

    async def _parsed(self, parse: Callable[[], _T], *, size: int) -> _T:
        """What a parser makes of a body of so many bytes."""
        return parse() if size <= _SMALL_BODY else await self._in(self.readers, parse)

    async def _in(self, pool: ThreadPoolExecutor, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(pool, work)


class _Limited:
    """A time limit on a block, with an answer where it is exceeded."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self.timeout.__aenter__()

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            await self.timeout.__aexit__(kind, error, trace)
        except TimeoutError as late:
            raise RefusedRequestError(
                503, "timeout", f"there was no answer within {self.seconds:g} s; send fewer rows, or come again later"
            ) from late


def _embedded(snapshot: Snapshot, feature: str, values: list[Any]) -> np.ndarray:
    if not values:
        return np.empty((0, 0), dtype=np.float32)
    try:
        return snapshot.model.embed(feature, values)
    except DataError as error:
        raise refused_data(error) from error
    except ConfigError as error:  # a model without embeddings
        raise malformed(str(error), field=feature) from error


def _json(content: dict[str, Any], snapshot: Snapshot) -> Response:
    return Response(
        json.dumps(content, allow_nan=False, separators=(",", ":")), headers=snapshot.headers, media_type=JSON
    )


def refusal(error: RefusedRequestError, snapshot: Snapshot) -> Response:
    """The answer to a request that is refused."""
    return JSONResponse(
        {**error.body(), **snapshot.facts}, status_code=error.status, headers={**snapshot.headers, **error.headers}
    )
