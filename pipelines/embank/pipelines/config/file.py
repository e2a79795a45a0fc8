"""A configuration as the user writes it: YAML, and keys that are set on the command line."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from embank.tables.errors import ConfigError
from embank.tables.storage.yaml_text import parse_yaml, read_yaml

SECTIONS = ("data", "model", "tables", "train", "rows")


def read_config(path: str | Path, *, overrides: Sequence[str] = (), keys: Iterable[str] = SECTIONS) -> dict[str, Any]:
    """Reads a YAML configuration as plain dicts.

    Args:
        path: the file.
        overrides: "section.key=value" with the value as YAML; applied in order.
        keys: that it may have, for messages.

    Raises:
        ConfigError: no such file, not YAML, a wrong override.
    """
    raw = read_mapping(path, keys=keys)
    for override in overrides:
        set_key(raw, override)
    return raw


def told_origin(path: str | Path, overrides: Sequence[str] = ()) -> str:
    """What to call a configuration in messages: its file, and what the command line has set in it."""
    return " ".join([str(path), *(["with"] if overrides else []), *(f"--set {override}" for override in overrides)])


def read_mapping(path: str | Path, *, keys: Iterable[str]) -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        path: the file.
        keys: that it may have, for messages.

    Raises:
        ConfigError: no such file, no YAML, or no mapping.
    """
    try:
        values = read_yaml(path, origin=str(path))
    except ConfigError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise ConfigError(f"there is no configuration file '{path}'; give the path of a YAML file") from error
        raise
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: it must be a mapping with the keys {', '.join(keys)}")
    return values


def set_key(raw: dict[str, Any], override: str) -> None:
    """Sets a key of a configuration in place, "section.key=value" with the value as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override!r} is not of the form KEY=VALUE, for example train.lr=0.01")
    *parents, last = key.strip().split(".")
    node = raw
    for depth, parent in enumerate(parents):
        child = node.setdefault(parent, {})
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override!r}: '{'.'.join(parents[: depth + 1])}' is a value, not a section")
        node = child
    node[last] = parse_yaml(text, origin=f"--set {override!r}: the value")
