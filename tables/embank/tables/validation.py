"""What pydantic finds wrong with a configuration, in the words of those who wrote it; and what it lets pass and should
not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

_LISTS = ("list_type", "tuple_type", "set_type", "frozen_set_type")
_MAPPINGS = ("model_type", "model_attributes_type", "dataclass_type", "dict_type", "mapping_type")


def problem_in_words(problem: Mapping[str, Any]) -> str:
    """The message of one entry of `ValidationError.errors()`, without names of classes and with a cure for words that
    YAML reads as something else.
    """
    if problem["type"] in _MAPPINGS:
        return "it must be a mapping of keys to values"
    if problem["type"] in _LISTS:
        return (
            f"it must be a list, such as [{problem['input']}]" if _is_scalar(problem["input"]) else "it must be a list"
        )
    if problem["type"] == "string_type" and problem["input"] is None:
        return "it must be text, and nothing stands there"
    if problem["type"] == "string_type" and isinstance(problem["input"], (bool, int, float, type(None))):
        return "it must be text; write it in quotes if that is what it is called"
    message: str = problem["msg"]
    return message[:1].lower() + message[1:]


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (str, int, float)) and len(str(value)) <= 40


def mistaken_boolean(value: Any, wanted: Any) -> str | None:
    """What a value must be that is true or false where a number is wanted, or the other way round; None when it is
    neither.

    pydantic takes true for 1 and 1 for true unless it is strict.

    Args:
        value: as it comes out of YAML; lists are looked through.
        wanted: the type, as `typing.get_type_hints` gives it.
    """
    if isinstance(value, (list, tuple)):
        return next((words for item in value if (words := mistaken_boolean(item, wanted))), None)
    leaves = _leaves(wanted)
    if isinstance(value, bool):
        return "it must be a number" if leaves & {int, float} and bool not in leaves else None
    if isinstance(value, (int, float)):
        return "it must be true or false" if bool in leaves and not leaves & {int, float} else None
    return None


def _leaves(hint: Any) -> set[Any]:
    if get_origin(hint) is Literal:
        return {type(value) for value in get_args(hint)}
    arguments = get_args(hint)
    return set().union(*map(_leaves, arguments)) if arguments else {hint}
