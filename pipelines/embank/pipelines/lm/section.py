"""A section of a configuration as the dataclass that describes it."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from embank.tables.errors import ConfigError
from embank.tables.validation import mistaken_boolean, problem_in_words
from embank.tables.wording import nearest_or_all

Section = TypeVar("Section")


def section(cls: type[Section], raw: Any, *, path: str) -> Section:
    """Checks plain values against a dataclass.

    Args:
        cls: the dataclass.
        raw: a mapping of keys to values, as YAML gives them.
        path: of the section, for messages.

    Raises:
        ConfigError: an unknown key (with the nearest right one), or a value of a wrong type.
    """
    assert is_dataclass(cls)
    known = [f.name for f in fields(cls)]
    if not isinstance(raw, Mapping):
        raise ConfigError(f"'{path}' must be a mapping with the keys {', '.join(known)}; it is {raw!r}")
    types = get_type_hints(cls)
    for key, value in raw.items():
        if key not in known:
            hint = nearest_or_all(str(key), known, label="known keys")
            raise ConfigError(f"unknown key '{path}.{key}' in the configuration; {hint}")
        if words := mistaken_boolean(value, types[key]):
            raise ConfigError(f"'{path}.{key}' is {value!r}: {words}")
    try:
        return TypeAdapter(cls).validate_python({key: _number(value, types[key]) for key, value in raw.items()})
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join([path, *(str(part) for part in problem["loc"])])
        raise ConfigError(f"'{where}' is {problem['input']!r}: {problem_in_words(problem)}") from error


def _number(value: Any, wanted: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; takes it as the number that was meant."""
    if not isinstance(value, str) or not {int, float} & {wanted, *get_args(wanted)}:
        return value
    try:
        return float(value)
    except ValueError:
        return value
