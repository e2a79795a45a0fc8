"""YAML as embank reads it everywhere: words stay words, nothing is taken twice, and what can't be read is named with
its line.

Of YAML 1.1's surprises only those are kept that people rely on (`1_000_000`): `no`, `yes`, `on` and `off` are text, and
so are dates, times (`12:30` is 750 there) and numbers that start with a zero.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NoReturn

import yaml

from embank.tables.errors import ConfigError, EmbankError
from embank.tables.storage.refusals import cause_of
from embank.tables.wording import shortened

MAX_DEPTH = 100
MAX_VALUES = 1_000_000


class _Loader(yaml.SafeLoader):
    """Refuses keys that stand twice and deep nesting."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            _refuse(f"values are nested more than {MAX_DEPTH} levels deep", self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                spelled = (key.tag, key.value)
                if spelled in lines:
                    _refuse(
                        f"the key {shortened(key.value)!r} stands there twice, first in line {lines[spelled]}; remove "
                        "one",
                        key.start_mark,
                    )
                lines[spelled] = key.start_mark.line + 1
        return node

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        construct = self.construct_yaml_int if node.tag.endswith("int") else self.construct_yaml_float
        try:
            return construct(node)
        except ValueError:
            length = f", {len(node.value):,} characters long," if len(node.value) > MAX_DEPTH else ""
            _refuse(f"{shortened(node.value)!r}{length} is no number that can be used", node.start_mark)


def _refuse(problem: str, mark: Any) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


_RESOLVED = {
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:int": (r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)", "-+0123456789"),
}
_KEPT = ("tag:yaml.org,2002:float", "tag:yaml.org,2002:merge", "tag:yaml.org,2002:null")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _KEPT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, (_pattern, _first) in _RESOLVED.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list(_first))
for _tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
    _Loader.add_constructor(_tag, _Loader.construct_number)


def parse_yaml(text: str, *, origin: str, error: type[EmbankError] = ConfigError) -> Any:
    """The value that a YAML text holds.

    Args:
        origin: what to call it in messages.
        error: what to raise.

    Raises:
        EmbankError: of the type `error`: it is no YAML, a key stands twice, a number is too long, or values are nested
            too deeply.
    """
    try:
        value = _Loader(text).get_single_data()
        _count(value, depth=0, seen=0)
    except yaml.YAMLError as problem:
        raise error(f"{origin} is not valid YAML: {_in_words(problem)}.") from None
    except (ValueError, TypeError, RecursionError) as problem:
        raise error(f"{origin} is not valid YAML: {' '.join(str(problem).split())}.") from None
    return value


def read_yaml(path: str | Path, *, origin: str, error: type[EmbankError] = ConfigError) -> Any:
    """The value in a YAML file.

    Raises:
        EmbankError: of the type `error`: as `parse_yaml`, or the file can't be read or is not in UTF-8.
    """
    try:
        data = Path(path).read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as problem:
        raise error(f"{origin} can't be read: {cause_of(problem)}") from problem
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise error(
            f"{origin} is not in UTF-8: line {line} holds the byte 0x{data[problem.start]:02X}. Save it as UTF-8."
        ) from None
    return parse_yaml(text, origin=origin, error=error)


def _count(value: Any, *, depth: int, seen: int) -> int:
    """Number of values with those inside it; anchors can make few lines stand for very many, or for themselves."""
    if depth > MAX_DEPTH or seen > MAX_VALUES:
        raise yaml.YAMLError("an anchor stands for itself or for too many values")
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in inside:
        seen = _count(item, depth=depth + 1, seen=seen + 1)
    return seen


def _in_words(problem: yaml.YAMLError) -> str:
    if isinstance(problem, yaml.MarkedYAMLError) and problem.problem_mark is not None:
        return f"line {problem.problem_mark.line + 1}: {' '.join(str(problem.problem).split())}"
    if isinstance(problem, yaml.reader.ReaderError):
        return f"the character {chr(problem.character)!r} at position {problem.position} may not be in it"
    return " ".join(str(problem).split())
