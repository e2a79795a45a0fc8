"""The one YAML reader: words stay words, nothing is taken twice, and what can't be read is named with its line."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from embank.tables.errors import CheckpointError, ConfigError
from embank.tables.storage.yaml_text import parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[no, yes, on, off, y, N]", ["no", "yes", "on", "off", "y", "N"]),
        ("[true, False, TRUE]", [True, False, True]),
        ("[1, -5, 1_000, 0x1F, 0]", [1, -5, 1000, 31, 0]),
        ("[007, 12:30, 2024-01-01, 1e-3]", ["007", "12:30", "2024-01-01", "1e-3"]),
        ("[1.5, -0.5, 1.0e-3, .inf]", [1.5, -0.5, 0.001, math.inf]),
        ("[NULL, null, ~, \\N, None]", [None, None, None, "\\N", "None"]),
        ("{a: &x {b: 1, c: 2}, d: {<<: *x, c: 3}}", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
        ("", None),
    ],
)
def test_values(text: str, value: Any) -> None:
    assert parse_yaml(text, origin="x") == value
    assert parse_yaml(yaml.safe_dump(value), origin="x") == value


BAD = [
    ("a: 1\nb: 2\na: 3", "line 3: the key 'a' stands there twice, first in line 1; remove one."),
    ("a:\n  - {b: 1, c: 2, b: 1}", "line 2: the key 'b' stands there twice, first in line 2; remove one."),
    ("x: 1\na: " + "9" * 5000, f"line 2: '{'9' * 57}...', 5,000 characters long, is no number that can be used."),
    ("[" * 3000, "line 1: values are nested more than 100 levels deep."),
    ("\n".join(" " * depth + "a:" for depth in range(3000)), "line 100: values are nested more than 100 levels deep."),
    ("a: &x [*x]", "an anchor stands for itself or for too many values."),
    ("a: !!int x", "line 1: 'x' is no number that can be used."),
    ("a: !!python/object:os.system x", "line 1: could not determine a constructor for the tag"),
    ("a: !!timestamp 2024-99-99", "month must be in 1..12"),
    ("a: \0", "the character '\\x00' at position 3 may not be in it."),
    ("ok: 1\na: [1,", "line 2: "),
]


@pytest.mark.parametrize(("text", "expected"), BAD, ids=[text[:12] for text, _ in BAD])
def test_what_is_refused(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, origin="the configuration 'run.yaml'")
    assert str(caught.value).startswith(f"the configuration 'run.yaml' is not valid YAML: {expected}")


def test_few_lines_that_stand_for_many_values() -> None:
    lines = ["- &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"- &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 9)]
    with pytest.raises(ConfigError, match="an anchor stands for itself or for too many values"):
        parse_yaml("\n".join(lines), origin="x")


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    with pytest.raises(ConfigError, match=r"^run can't be read: No such file or directory$"):
        read_yaml(path, origin="run")
    with pytest.raises(CheckpointError, match=r"^run can't be read: Is a directory$"):
        read_yaml(tmp_path, origin="run", error=CheckpointError)
    path.write_bytes("a: 1\nb: caf\u00e9\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"^run is not in UTF-8: line 2 holds the byte 0xE9\. Save it as UTF-8\.$"):
        read_yaml(path, origin="run")
    path.write_bytes("\ufeffa: caf\u00e9\n".encode())
    assert read_yaml(path, origin="run") == {"a": "caf\u00e9"}


@pytest.mark.parametrize("seed", range(40))
def test_any_damage_ends_in_a_value_or_an_error_of_ours(seed: int) -> None:
    rng = random.Random(seed)
    text = list("data: {path: [a, b], batch_size: 4096}\nmodel:\n  - name: &x 'dlrm'\n  - *x\n" * 2)
    for _ in range(50):
        damaged = text.copy()
        for _ in range(rng.randrange(1, 6)):
            damaged[rng.randrange(len(damaged))] = rng.choice("\0\t\n:{}[]&*!|>'\"%@`,#?-~0e\u00e9\ud800")
        try:
            parse_yaml("".join(damaged), origin="x")
        except ConfigError as error:
            assert str(error).startswith("x is not valid YAML: ")
