"""Numbers of NumPy, torch and others as Python's own, which JSON, YAML and messages can hold."""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np

from embank.tables.errors import ConfigError, EmbankError


def whole(value: Any, *, what: str, least: int, error: type[EmbankError] = ConfigError) -> int:
    """A whole number of any integer type as an `int`. Booleans and floats are none, 5.0 neither.

    Args:
        what: subject of the message, "table 't' has num_embeddings".
        least: smallest value that is right.

    Raises:
        error: "{what} {value}; it must be a whole number of at least {least}".
    """
    number = as_whole(value)
    if number is None or number < least:
        raise error(f"{what} {value!r}; it must be a whole number of at least {least}")
    return number


def as_whole(value: Any) -> int | None:
    """A value of any integer type as an `int`, None if it is no whole number."""
    dtype = str(getattr(value, "dtype", ""))
    if isinstance(value, (bool, np.bool_)) or dtype.endswith("bool"):
        return None  # torch's booleans have an index as Python's have
    try:
        return operator.index(value)
    except (TypeError, ValueError):
        return None


def plain(value: Any) -> Any:
    """A value with NumPy's numbers and texts as Python's own, in dicts, lists, tuples and dataclasses too; itself if it
    has none."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        items = {plain(key): plain(item) for key, item in value.items()}
        return value if _identical([*items, *items.values()], [*value, *value.values()]) else items
    if type(value) in (list, tuple):
        members = type(value)(plain(item) for item in value)
        return value if _identical(members, value) else members
    if is_dataclass(value) and not isinstance(value, type):
        old = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        changed = {name: new for name, item in old.items() if (new := plain(item)) is not item}
        return replace(value, **changed) if changed else value
    return value


def _identical(new: Collection[Any], old: Collection[Any]) -> bool:
    return all(one is other for one, other in zip(new, old, strict=True))
