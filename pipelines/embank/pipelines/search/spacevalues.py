"""Values at the keys of a space: their order, how candidates hold them, the one nearest to another; and the model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from embank.ctr_models import MODELS
from embank.pipelines.config.run import parse_config
from embank.search.spaces import Value


def is_ordered(values: Sequence[Value]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def ordered(values: Sequence[Value]) -> tuple[Value, ...]:
    """Numbers rising; each value once. Lists among them are texts already, see `held`."""
    own = tuple(dict.fromkeys(values))
    return tuple(sorted(own)) if is_ordered(own) else own


def is_nested(value: Any) -> bool:
    return isinstance(value, list | tuple | Mapping)


def held(value: Any) -> Any:
    """A value as candidates hold it: of a list or a mapping its JSON text."""
    return json.dumps(value, default=str) if is_nested(value) else value


def nearest(values: Sequence[Value], wanted: Any) -> Value:
    if wanted in values or not is_ordered(values) or not isinstance(wanted, int | float):
        return wanted if wanted in values else values[0]
    return min(values, key=lambda value: abs(float(value) - wanted))


def set_model(raw: dict[str, Any], name: Value | None) -> None:
    """Another model, with those of the old one's hyper-parameters that it has as well."""
    if name is None or name == raw["model"]["name"]:
        return
    if name not in MODELS:
        parse_config({**raw, "model": {"name": name}})  # says which there are
    known = {field.name for field in fields(MODELS[str(name)].Config)}
    raw["model"] = {"name": name, **{key: value for key, value in raw["model"].items() if key in known}}
