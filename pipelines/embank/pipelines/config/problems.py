"""What is wrong with a configuration, in one style for all of them: the key with its path, its value, and a cure.

Whoever reads a configuration puts before it where it was written: `columns.yaml: label.column is 5: it must be text.`
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from embank.tables.errors import ConfigError
from embank.tables.validation import mistaken_boolean, problem_in_words
from embank.tables.wording import did_you_mean, listing, shown

MOST_KEYS = 40
"""So many are listed: the longest section has fewer, data with many features may have more."""

ORIGIN = "the configuration"
"""Where one was written that comes from no file."""


@contextmanager
def written_in(origin: str) -> Iterator[None]:
    """Says of every problem that comes up where the configuration was written.

    Args:
        origin: such as a file name.

    Raises:
        ConfigError: the problem, with the origin before it.
    """
    try:
        yield
    except ConfigError as error:
        raise type(error)(f"{origin}: {error}") from error


def unknown_key(path: str, known: Iterable[str]) -> str:
    """A key that means nothing.

    Args:
        path: of the key, joined by dots.
        known: keys that may stand where it does.

    Example:
        >>> unknown_key("train.epoch", ["epochs", "lr"])
        "unknown key 'train.epoch'. Did you mean 'epochs'? Known keys here: epochs, lr."
    """
    known = list(known)
    name = path.rpartition(".")[2]
    keys = f"Known keys here: {listing(known, most=MOST_KEYS)}." if known else "There are no keys here."
    return f"unknown key {path!r}.{did_you_mean(name, known)} {keys}"


def missing_key(path: str) -> str:
    """A key that must be there."""
    return f"key {path!r} is missing; it is required."


def wrong_value(path: str, value: Any, words: str) -> str:
    """A value that a key can't have.

    Args:
        path: of the key.
        value: as it was read.
        words: what it must be, without a full stop.

    Example:
        >>> wrong_value("train.lr", -1.0, "it must be 0 or more")
        'train.lr is -1.0: it must be 0 or more.'
    """
    return f"{path} is {shown(value)}: {words}."


def refuse_unknown(values: Any, known: Iterable[str], *, path: str) -> None:
    """Refuses what is no mapping, or has other keys than these.

    Args:
        values: as they were read.
        known: keys that may stand there.
        path: of the mapping; empty at the top.

    Raises:
        ConfigError: names the key.
    """
    known = list(known)
    if not isinstance(values, Mapping):
        what = f"it must be a mapping of keys to values; the keys are {listing(known)}"
        raise ConfigError(wrong_value(path or ORIGIN, values, what))
    for key in values:
        if key not in known:
            raise ConfigError(unknown_key(f"{path}.{key}" if path else str(key), known))


def refuse_boolean(value: Any, wanted: Any, *, path: str) -> None:
    """Refuses true and false where a number is wanted, and numbers where they are.

    Raises:
        ConfigError: names the key.
    """
    words = mistaken_boolean(value, wanted)
    if words:
        raise ConfigError(wrong_value(path, value, words))


def first_problem(error: ValidationError) -> Mapping[str, Any]:
    """Of all that pydantic has found, what is told: an unknown key before anything else, since it may explain the
    rest."""
    return dict(sorted(error.errors(), key=lambda found: found["type"] != "extra_forbidden")[0])


_KINDS = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "text"}


def choices_of(found: Mapping[str, Any], error: ValidationError) -> list[str]:
    """What a value of several types may be, where it is none of them; empty for a value of one type.

    Args:
        found: the problem that is told.
        error: all of them: pydantic has one for each of the types, whose place ends with the type.
    """
    told: dict[str, str] = {}
    for problem in error.errors():
        *place, last = problem["loc"] or [""]
        if tuple(place) == found["loc"][:-1] and (last in _KINDS or str(last).startswith("literal[")):
            told[str(last)] = _KINDS.get(str(last)) or str(problem["ctx"]["expected"])
    return list(told.values()) if len(told) > 1 and str(found["loc"][-1]) in told else []


def problem_of(found: Mapping[str, Any], *, path: str) -> str:
    """What pydantic has found, other than an unknown key.

    Args:
        found: an entry of `ValidationError.errors()`.
        path: of the key.
    """
    if found["type"] == "missing":
        return missing_key(path)
    if found["type"] == "value_error":
        message = str(found["ctx"]["error"])
        message += "" if message.endswith(("?", ".")) else "."
        return f"{path}: {message}" if path else message
    return wrong_value(path, found["input"], problem_in_words(found))
