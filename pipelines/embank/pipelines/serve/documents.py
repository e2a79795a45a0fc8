"""JSON of requests, read strictly: what another reader would take in another way is refused."""

import json
import math
import re
from typing import Any

from embank.pipelines.serve.refused import RefusedRequestError, malformed
from embank.tables.wording import shortened

_EXTREME = re.compile(rb"\d{300}|[eE]\+?\d{3}")
"""Numbers that may be infinite, or have thousands of digits."""
_MOST_DIGITS = 300
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_document(body: bytes) -> Any:
    """The value of a JSON text.

    Args:
        body: UTF-8.

    Raises:
        RefusedRequestError: 400 where it is no JSON in UTF-8; 422 for NaN, infinite and huge numbers, names that an
            object has twice, halves of surrogate pairs.

    Example:
        >>> read_document(b'{"rows": []}')
        {'rows': []}
    """
    hooks: dict[str, Any] = {"object_pairs_hook": _object, "parse_constant": _refuse_constant}
    if _EXTREME.search(body):  # seldom: the hooks cost as much as the rest
        hooks |= {"parse_int": _integer, "parse_float": _number}
    try:
        document = json.loads(body.decode("utf-8"), **hooks)
    except UnicodeDecodeError as error:
        raise RefusedRequestError(
            400, "encoding", f"byte {error.start:,} of the body is not UTF-8; send JSON in UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise RefusedRequestError(
            400, "json", f"the body is no JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        ) from error
    except RecursionError as error:
        raise RefusedRequestError(400, "json", "the body is nested too deeply; send rows of plain values") from error
    if _SURROGATE.search(body):
        _refuse_surrogates(document)
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise malformed(f"an object of the body has the name {shortened(twice)!r} twice; send it once", field=twice)
    return values


def _refuse_constant(text: str) -> Any:
    raise malformed(f"the body holds {text}, which is no JSON; send null for a missing number", value=text)


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise malformed(f"the integer {shortened(text)} has {len(text):,} digits; send it as a string", value=text)
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise malformed(f"the number {shortened(text)} is too large for 64 bits", value=text)
    return value


def _refuse_surrogates(document: Any) -> None:
    try:
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise malformed(
            "a string of the body has half of a surrogate pair (\\ud800 to \\udfff), which is no character",
            value=error.object[error.start : error.end],
        ) from error
