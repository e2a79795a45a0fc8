"""Plain values, as they come out of YAML, as dataclasses and their types."""

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
        ConfigError: an unknown key (with the nearest right one), or a value of another type.
    """
    assert is_dataclass(cls)
    refuse_unknown(raw, field_names(cls), path=path)
    types = get_type_hints(cls)
    for key, value in raw.items():
        refuse_boolean(value, types[key], path=f"{path}.{key}")
    return validated_as(cls, as_numbers(cls, raw), path=path)


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
