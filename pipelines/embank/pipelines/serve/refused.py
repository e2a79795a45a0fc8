"""Requests that can't be answered: an HTTP status, and what a client needs to mend them."""

import json
import math
from typing import Any

from embank.tables.errors import EmbankError
from embank.tables.wording import shortened


class RefusedRequestError(EmbankError):
    """A request that is not answered with what it asked for.

    Args:
        status: of HTTP.
        kind: a word for it, which `/metrics` counts.
        message: a fact and a cure.
        facts: what else the answer says: `field`, `row` (from 0), `value`, `expected`.
    """

    def __init__(self, status: int, kind: str, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.facts = facts

    @property
    def headers(self) -> dict[str, str]:
        """When to come again, where that may help; how to say who one is."""
        by_status = {503: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}
        return by_status.get(self.status, {})

    def body(self) -> dict[str, Any]:
        """The answer, as JSON."""
        facts = {name: _plain(value) for name, value in self.facts.items()}
        return {"error": _encodable(str(self)), "kind": self.kind, **facts}


def malformed(message: str, **facts: Any) -> RefusedRequestError:
    """A request whose content can't be used: 422."""
    return RefusedRequestError(422, "malformed", message, **facts)


def overloaded(message: str) -> RefusedRequestError:
    """More than the server can hold: 503."""
    return RefusedRequestError(503, "overload", message)


def _plain(value: Any) -> Any:
    """A value that JSON can hold, short."""
    if value is None or isinstance(value, bool) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return [_encodable(shortened(name, most=200)) for name in value[:100]]
    return _encodable(shortened(value if isinstance(value, str) else _text(value), most=200))


def as_json(value: Any) -> str:
    """A value of a request as messages show it, cut when it is very long."""
    return shortened(_text(value), most=120)


def _text(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError:  # of Arrow: dates, bytes
        return repr(value)
    except (ValueError, RecursionError):  # integers of thousands of digits; lists in lists in lists
        return f"a very large {type(value).__name__}"


def _encodable(text: str) -> str:
    """Halves of surrogate pairs have no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
