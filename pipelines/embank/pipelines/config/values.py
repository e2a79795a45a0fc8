"""Plain values, as they come out of YAML, as dataclasses and their types."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from embank.pipelines.config.problems import (
    choices_of,
    first_problem,
    problem_of,
    refuse_boolean,
    refuse_unknown,
    wrong_value,
)
from embank.tables import ConfigError


def validated(cls: type, raw: Any, *, path: str) -> Any:
    """A mapping as a dataclass.

    Args:
        cls: the dataclass.
        raw: as it comes out of YAML.
        path: of the mapping in the configuration.

    Raises:
        ConfigError: an unknown key (with the nearest right one), a value of another type, or a number that is not
            finite.
    """
    assert is_dataclass(cls)
    refuse_unknown(raw, field_names(cls), path=path)
    types = get_type_hints(cls)
    for key, value in raw.items():
        refuse_boolean(value, types[key], path=f"{path}.{key}")
    numbers = as_numbers(cls, raw)
    endless = {own.name for own in fields(cls) if own.metadata.get("may_be_infinite")}
    for key, value in numbers.items():
        if key in endless and value == math.inf:
            continue
        if float in (types[key], *get_args(types[key])) or isinstance(value, Mapping):
            _refuse_non_finite(value, path=f"{path}.{key}")
    return validated_as(cls, numbers, path=path)


def _refuse_non_finite(value: Any, *, path: str) -> None:
    """Raises ConfigError for infinity and NaN, which no rate, penalty or share can be; names the key. What lists may
    hold, their sections say."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(item, str):  # whether a number is meant is not known here
                _refuse_non_finite(item, path=f"{path}.{key}")
    elif is_non_finite(value):
        raise ConfigError(wrong_value(path, value, "it must be a finite number"))


def is_non_finite(value: Any) -> bool:
    """Whether a value is infinity or NaN, or a text that pydantic takes for it ("inf", "Infinity")."""
    try:
        return isinstance(value, (float, str)) and not math.isfinite(float(value))
    except ValueError:
        return False


def validated_as(kind: Any, value: Any, *, path: str) -> Any:
    """A value as its type.

    Raises:
        ConfigError: it is of another one; names the key.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raised = [problem.get("ctx", {}).get("error") for problem in error.errors()]
        own = next((cause for cause in raised if isinstance(cause, ConfigError)), None)
        if own is not None:  # a ValueError, which pydantic takes for a finding of its own
            raise own from error
        found = first_problem(error)
        choices = choices_of(found, error)
        if choices:
            where = ".".join([path, *(str(part) for part in found["loc"][:-1])])
            raise ConfigError(wrong_value(where, found["input"], f"it must be {' or '.join(choices)}")) from error
        where = ".".join([path, *(str(part) for part in found["loc"])])
        raise ConfigError(problem_of(found, path=where)) from error


def field_names(cls: type) -> list[str]:
    """The fields of a dataclass."""
    return [f.name for f in fields(cls)]


def as_numbers(cls: type, raw: Mapping[str, Any]) -> dict[str, Any]:
    """YAML 1.1 reads 1e-3 as text; takes it as the number that was meant where the dataclass wants one."""
    types = get_type_hints(cls)
    return {key: as_number(value, types.get(key)) for key, value in raw.items()}


def as_number(value: Any, wanted: Any) -> Any:
    """The same for one value."""
    is_number = bool({int, float} & {wanted, *get_args(wanted)})
    if not is_number or not isinstance(value, str) or "e" not in value.lower():
        return value
    try:
        return float(value)
    except ValueError:
        return value
