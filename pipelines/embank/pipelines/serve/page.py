"""The OpenAPI page: what is sent and answered, with the columns and a row of the model that is served."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field

from embank.pipelines.serve.arrow import ARROW
from embank.pipelines.serve.bodies import JSON
from embank.pipelines.serve.models import Snapshot
from embank.pipelines.serve.settings import Settings


class Served(BaseModel):
    """Which model has answered."""

    version: str = Field(description="of the model")
    checksum: str = Field(description="of the bundle, SHA-256 in hexadecimal")


class Scores(Served):
    """Answer of /score."""

    scores: list[float] = Field(description="probabilities, in the order of the rows")


class Vectors(Served):
    """Answer of /embed."""

    vectors: list[list[float]] = Field(description="of each value, in their order")


class Reloaded(Served):
    """Answer of /reload."""

    sequence: int = Field(description="how often the bundle has changed, one for the first")


class Status(Served):
    """Answer of /health and /ready."""

    status: str


class Refusal(Served):
    """Why a request was refused."""

    error: str = Field(description="a fact and a cure")
    kind: str = Field(description="a word for it, as in the metric embank_errors")
    field: str | None = Field(default=None, description="the column, or the name in the body")
    row: int | None = Field(default=None, description="its number, from 0")
    value: Any = Field(default=None, description="that could not be used, shortened")
    expected: Any = Field(default=None, description="in its place")


_WHY = {
    400: "no JSON, or not in UTF-8",
    401: "the token is missing or wrong",
    403: "only this machine may reload",
    409: "the bundle has other columns, the delta does not follow, or another reload is under way",
    413: "too many bytes or rows",
    415: "another content type than those above",
    422: "rows, values or a bundle that can't be used: field, row and value say which",
    503: "too many requests, or no answer in time; Retry-After says when to come again",
}
_BODIES: dict[str, tuple[type[BaseModel], tuple[int, ...]]] = {
    "/score": (Scores, (400, 413, 415, 422, 503)),
    "/embed": (Vectors, (400, 413, 415, 422, 503)),
    "/reload": (Reloaded, (400, 401, 403, 409, 413, 415, 422, 503)),
    "/health": (Status, ()),
    "/ready": (Status, ()),
}


def responses(path: str) -> dict[int | str, dict[str, Any]]:
    """What a path answers, for FastAPI."""
    if path not in _BODIES:
        return {200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "figures"}}
    answer, statuses = _BODIES[path]
    said: dict[int | str, dict[str, Any]] = {200: {"model": answer, "description": "done"}}
    for status in statuses:
        said[status] = {"model": Refusal, "description": _WHY[status]}
    return said


def page(app: FastAPI, snapshot: Callable[[], Snapshot], settings: Settings) -> Callable[[], dict[str, Any]]:
    """What makes the page of an application, anew for each model."""
    made: dict[int, dict[str, Any]] = {}

    def describe() -> dict[str, Any]:
        now = snapshot()
        if now.sequence not in made:
            made.clear()
            made[now.sequence] = _page(app, now, settings)
        return made[now.sequence]

    return describe


def _page(app: FastAPI, snapshot: Snapshot, settings: Settings) -> dict[str, Any]:
    model = snapshot.model
    text = get_openapi(
        title=f"embank, model {model.version}",
        version=app.version,
        description="Scores of raw rows, and vectors of values, by a trained model.",
        routes=app.routes,
    )
    paths = text["paths"]
    paths["/score"]["post"]["requestBody"] = _body(
        _rows(model.features, most=settings.max_rows), example={"rows": [_plain(model.example)]}, arrow=True
    )
    paths["/score"]["post"]["responses"]["200"]["content"][ARROW] = {"schema": _BINARY}
    tables = list(model.scorer.features)
    paths["/embed"]["post"]["requestBody"] = _body(
        _object({"feature": {"enum": tables}, "values": _list(_TOKEN, settings)}),
        example={"feature": tables[0], "values": [str(model.example.get(tables[0], 1))]} if tables else None,
    )
    paths["/reload"]["post"]["requestBody"] = _body(
        {"oneOf": [_object({name: {"type": "string", "minLength": 1}}) for name in ("bundle", "delta")]},
        example={"bundle": "bundles/next"},
    )
    return text


_BINARY = {"type": "string", "format": "binary", "description": "Arrow IPC stream"}
_TOKEN = {"type": ["string", "number", "boolean", "null"]}
_LARGEST = 3e38
"""Of the numbers that a model reads, in 32 bits."""


def _rows(features: Mapping[str, Mapping[str, Any]], *, most: int) -> dict[str, Any]:
    row = _object({name: _cell(facts) for name, facts in features.items()})
    return _object({"rows": {"type": "array", "items": row, "maxItems": most}})


def _cell(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a column holds; null where a value is missing."""
    if facts["type"] == "numeric":
        return {"type": ["number", "null"], "minimum": -_LARGEST, "maximum": _LARGEST}
    if facts["type"] == "multivalued":
        members = {"type": ["array", "null"], "items": {"type": ["string", "number", "null"]}}
        if facts["separator"] is None:
            return members
        return members | {
            "type": ["string", "array", "null"],
            "description": f"values with {facts['separator']!r} between them; or lists of values, in all rows",
        }
    return dict(_TOKEN)


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _list(items: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    return {"type": "array", "items": dict(items), "maxItems": settings.max_rows}


def _body(schema: Mapping[str, Any], *, example: Any, arrow: bool = False) -> dict[str, Any]:
    content: dict[str, Any] = {JSON: {"schema": dict(schema)} | ({} if example is None else {"example": example})}
    if arrow:
        content[ARROW] = {"schema": _BINARY}
    return {"required": True, "content": content}


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(dict(row)))
    return values
