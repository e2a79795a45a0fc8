"""Numbers under `null_values` as the file has them: YAML makes 9.9 of an unquoted 9.90, which cells of text are not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from embank.tables.errors import ConfigError
from embank.tables.wording import shortened, shown


def as_written(path: str | Path, values: list[Any]) -> list[Any]:
    """What stands under `null_values` in a columns file, with the text of numbers in place of them.

    Args:
        path: the file, which has been read already.
        values: that it has there.

    Raises:
        ConfigError: a number that is none to readers of data: 0x1F, 1_000.
    """
    nodes = _nodes(path) if any(type(value) in (int, float) for value in values) else []
    if len(nodes) != len(values):  # merged from elsewhere in the file
        return values
    return [_text(path, value, node) for value, node in zip(values, nodes, strict=True)]


def _nodes(path: str | Path) -> list[yaml.Node]:
    root = yaml.compose(Path(path).read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    lists = [node for key, node in pairs if key.value == "null_values" and isinstance(node, yaml.SequenceNode)]
    return lists[0].value if lists else []


def _text(path: str | Path, value: Any, node: yaml.Node) -> Any:
    if type(value) not in (int, float) or not math.isfinite(value):  # .nan and .inf are YAML's own spellings
        return value
    written = str(node.value)
    try:
        is_same = "_" not in written and type(value)(written) == value
    except ValueError:
        is_same = False
    if not is_same:
        raise ConfigError(
            f"{path}: null_values has {shortened(written)}, which YAML reads as {shown(value)}; write the number that "
            f"is meant, or quote it where the cells are this text: '{shortened(written)}'"
        )
    return written
