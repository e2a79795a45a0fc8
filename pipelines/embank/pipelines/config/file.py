"""A configuration as the user writes it: YAML, and keys that are set on the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embank.tables.errors import ConfigError
from embank.tables.storage.yaml_text import parse_yaml, read_yaml

SECTIONS = ("data", "model", "tables", "train", "rows")


def read_config(path: str | Path, *, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Reads a YAML configuration as plain dicts.

    Args:
        path: the file.
        overrides: "section.key=value" with the value as YAML; applied in order.

    Raises:
        ConfigError: no such file, not YAML, a wrong override.
    """
    raw = read_yaml(path, origin=f"the configuration '{path}'")
    if not isinstance(raw, dict):
        raise ConfigError(f"the configuration '{path}' must be a mapping with the keys {', '.join(SECTIONS)}")
    for override in overrides:
        set_key(raw, override)
    return raw


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
