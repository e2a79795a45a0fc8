"""The options of methods: of the right class, every value of the type that its class states, and alike where they act
for all tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from embank.tables.errors import ConfigError
from embank.tables.specs import TableSpec

if TYPE_CHECKING:
    from embank.tables.method.base import Method

Config = TypeVar("Config")
Class = TypeVar("Class")

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a finite number",
    bool: "True or False",
    str: "a text",
    NoneType: "None",
}


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def option_class(cls: type[Class]) -> type[Class]:
    """A class of options: a frozen dataclass, its fields given by name, which refuses misspelt keys of a configuration.

    For the `Config` of a method or a model, and for sections of a configuration.

    Args:
        cls: the class, with annotated fields and their defaults.

    Returns:
        The class as a dataclass.

    Example:
        >>> from embank.tables import option_class
        >>> @option_class
        ... class Config:
        ...     num_rows: int = 100
        >>> Config(num_rows=7)
        Config(num_rows=7)
    """
    cls.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined] # pydantic reads it from any dataclass
    return dataclass(frozen=True, kw_only=True)(cls)


def options_of(spec: TableSpec, config: type[Config]) -> Config:
    """A table's options, or the defaults of its method's.

    Args:
        spec: of the table.
        config: the method's `Config`.

    Raises:
        ConfigError: the options are another method's, or a value is of another type than the class states; names table,
            option and value.
    """
    options = spec.options if spec.options is not None else config()
    if not isinstance(options, config):
        raise ConfigError(
            f"table '{spec.name}' has method '{spec.method}' but options of type {type(options).__name__}; give "
            f"{config.__module__}.{config.__qualname__}"
        )
    refuse_wrong_types(options, where=f"table '{spec.name}' has ")
    return options


def refuse_wrong_types(options: Any, *, where: str = "", prefix: str = "") -> None:
    """Refuses values of another type than their dataclass states: a text, a boolean or 5.0 for a whole number, NaN for
    any.

    Args:
        options: an instance of a dataclass; those that it holds are checked as well. Anything else passes.
        where: what the message begins with.
        prefix: of the options' names.

    Raises:
        ConfigError: names the option and its value.
    """
    if not is_dataclass(options):
        return
    kinds: dict[str, Any] = _types_of(type(options))  # type: ignore[arg-type]
    for item in fields(options):
        value, kind = getattr(options, item.name), kinds[item.name]
        if not _fits(value, kind):
            raise ConfigError(f"{where}{prefix}{item.name} {value!r}; it must be {_words(kind)}")
        refuse_wrong_types(value, where=where, prefix=f"{prefix}{item.name}.")


def refuse_differing(methods: Sequence["Method"]) -> None:
    """Refuses tables of one method whose options differ where the method acts on all of them at once.

    Raises:
        ConfigError: names the option, and two tables with their values.
    """
    for cls in dict.fromkeys(type(method) for method in methods):
        first, *others = (method for method in methods if type(method) is cls)
        for name in cls.traits.schedule.common_options:
            value = getattr(first.options, name)
            for method in others:
                other = getattr(method.options, name)
                if other != value:
                    raise ConfigError(
                        f"table '{first.spec.name}' has {name} {value} and table '{method.spec.name}' has {name} "
                        f"{other}, but method '{first.spec.method}' acts on all of its tables at once; give them one "
                        f"{name}"
                    )


@cache
def _types_of(cls: type) -> dict[str, Any]:
    """The types that a dataclass states for its fields."""
    return get_type_hints(cls)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type. Types that are not known here fit."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in get_args(kind))
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    if origin is tuple and get_args(kind)[1:] == (...,):
        return isinstance(value, tuple) and all(_fits(part, get_args(kind)[0]) for part in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(kind, type) or origin is not None or isinstance(value, kind)


def _words(kind: Any) -> str:
    """What a value must be."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return " or ".join(_words(part) for part in get_args(kind))
    if origin is Literal:
        return " or ".join(repr(choice) for choice in get_args(kind))
    if origin is tuple:
        return f"a tuple, each item {_words(get_args(kind)[0])}"
    return _WORDS.get(kind) or f"an instance of {getattr(kind, '__qualname__', kind)}"
