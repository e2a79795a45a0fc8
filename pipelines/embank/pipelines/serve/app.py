"""The application of one worker: paths, errors, and what is noted of each request."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embank.pipelines.serve.metrics import Metrics
from embank.pipelines.serve.models import Served
from embank.pipelines.serve.page import page, responses
from embank.pipelines.serve.refused import RefusedRequestError
from embank.pipelines.serve.service import Service, refusal
from embank.tables.version import embank_version

_log = logging.getLogger(__name__)

Follow = Callable[[], Coroutine[Any, Any, None]]


def build_app(service: Service, *, follow: Follow | None = None) -> FastAPI:
    """The application that uvicorn runs.

    Args:
        service: answers.
        follow: runs beside it, and takes up what other workers have been asked to serve.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(service.batcher.run())]
        if follow is not None:
            tasks.append(asyncio.create_task(follow()))
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        service.close()

    app = FastAPI(title="embank", version=embank_version(), lifespan=lifespan, redoc_url=None, redirect_slashes=False)
    for path, method, answer in (
        ("/score", "POST", service.score),
        ("/embed", "POST", service.embed),
        ("/reload", "POST", service.reload),
        ("/health", "GET", service.health),
        ("/ready", "GET", service.ready),
        ("/metrics", "GET", service.figures),
    ):
        app.add_api_route(
            path, answer, methods=[method], response_model=None, response_class=Response, responses=responses(path)
        )
    app.openapi = page(app, lambda: service.served.snapshot, service.settings)  # type: ignore[method-assign]
    _answer_errors(app, service)
    app.add_middleware(_Noted, served=service.served, metrics=service.metrics)
    return app


def _answer_errors(app: FastAPI, service: Service) -> None:
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedRequestError)
        service.metrics.errors.labels(error.kind).inc()
        # By the model that the request came to; another one may have taken its place since.
        return refusal(error, getattr(request.state, "snapshot", service.served.snapshot))

    async def by_library(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = {
            404: f"there is no path '{request.url.path[:200]}' here; /docs lists them",
            405: f"'{request.url.path}' is not asked with {request.method}; /docs says how",
        }.get(error.status_code, str(error.detail))
        answer = await refused(request, RefusedRequestError(error.status_code, "path", message))
        answer.headers.update(error.headers or {})
        return answer

    async def out_of_memory(request: Request, error: Exception) -> Response:
        return await refused(
            request, RefusedRequestError(503, "memory", "there is not enough memory for this request; send fewer rows")
        )

    async def defect(request: Request, error: Exception) -> Response:
        _log.error("a request to %s failed", request.url.path, exc_info=error)
        return await refused(
            request, RefusedRequestError(500, "defect", f"the server failed ({type(error).__name__}); its log says how")
        )

    handlers: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
        RefusedRequestError: refused,
        HTTPException: by_library,
        MemoryError: out_of_memory,
        Exception: defect,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


class _Noted:
    """Counts each request and its time; gives answers that lack them version and checksum."""

    def __init__(self, app: ASGIApp, *, served: Served, metrics: Metrics) -> None:
        self.app = app
        self.served = served
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.setdefault("headers", [])
                if not any(name.lower() == b"x-embank-version" for name, _ in headers):
                    headers.extend(
                        (name.lower().encode(), value.encode()) for name, value in self.served.snapshot.headers.items()
                    )
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            self.metrics.answered(scope["path"], status=status, seconds=time.perf_counter() - begun)
