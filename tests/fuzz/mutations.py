"""What may become of files: damage as disks, copies and people do it, and content that somebody made up.

Each strategy gives a function of a folder, which changes files in it and returns in words what it did. Files are named
by their number in the order of their paths, so that a case fits any folder.
"""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from embank.tables.storage.checksums import CHECKSUMS, file_digest

Mutation = Callable[[Path], str]

NUMBERS = (0, 1, -1, 2, 3, 7, 255, 2**16, 10**6, 2**31, 2**32 + 1, 10**9, 2**53, 2**63, 2**64, 10**30, -(2**63))
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    *NUMBERS,
    0.5,
    -1e308,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\ud800",
    "\x00",
    "../../x",
    "/etc/passwd",
    "a" * 5000,
    "full",
    "os.system",
    "__class__",
    [],
    {},
    [None],
    [[]],
    [10**9] * 3,
    list(range(100)),
    {"how": "same"},
    [[[[[[[[[[]]]]]]]]]],
)


def files_of(folder: Path) -> list[Path]:
    """The files of a folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def reseal(folder: Path) -> None:
    """Checksums that fit what is there: those who make up content can do that."""
    checksums = {
        str(path.relative_to(folder)): file_digest(path) for path in files_of(folder) if path.name != CHECKSUMS
    }
    (folder / CHECKSUMS).write_text(json.dumps(checksums, indent=1, sort_keys=True))


@st.composite
def damage(draw: st.DrawFn) -> Mutation:
    """Something happens to the bytes of a file."""
    number, place, more = draw(st.integers(0, 99)), draw(st.integers(0, 10**6)), draw(st.integers(0, 10**6))
    how = draw(st.sampled_from(["flip", "flip", "flip", "cut", "extend", "zero", "empty", "remove", "folder", "copy"]))

    def mutate(folder: Path) -> str:
        files = files_of(folder)
        path, other = files[number % len(files)], files[more % len(files)]
        content = bytearray(path.read_bytes())
        at = place % max(1, len(content))
        if how == "flip" and content:
            content[at] ^= 1 << more % 8
        elif how == "cut":
            del content[at:]
        elif how == "extend":
            content += bytes(1 + more % 5000)
        elif how == "zero":
            content[at : at + 1 + more % 64] = bytes(len(content[at : at + 1 + more % 64]))
        elif how == "empty":
            content.clear()
        elif how == "copy":
            content = bytearray(other.read_bytes())
        path.unlink()
        if how == "folder":
            path.mkdir()
        elif how != "remove":
            path.write_bytes(content)
        return f"{how} of '{path.relative_to(folder)}' at {at} ({more})"

    return mutate


@st.composite
def edits(draw: st.DrawFn) -> Mutation:
    """A few values of a JSON file, or of the header of a file of tensors, become others, or move."""
    number = draw(st.integers(0, 99))
    steps = draw(st.lists(st.tuples(st.integers(0, 10**4), _edit()), min_size=1, max_size=3))

    def mutate(folder: Path) -> str:
        files = [path for path in files_of(folder) if path.suffix in (".json", ".safetensors")]
        path = files[number % len(files)]
        is_json = path.suffix == ".json"
        header, rest = (path.read_text(), b"") if is_json else _split(path)
        content, told = json.loads(header), []
        for where, (how, value) in steps:
            told.append(_change(content, where, how, value))
        text = json.dumps(content)
        if is_json:
            path.write_text(text, encoding="utf-8", errors="surrogatepass")
        else:
            encoded = text.encode(errors="surrogatepass")
            path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + rest)
        return f"'{path.relative_to(folder)}': {'; '.join(told)}"

    return mutate


def _edit() -> st.SearchStrategy[tuple[str, Any]]:
    return st.one_of(
        st.tuples(st.just("set"), st.sampled_from(VALUES)),
        st.tuples(st.just("add"), st.integers(-3, 3)),
        st.tuples(st.sampled_from(["drop", "double", "rename"]), st.none()),
        st.tuples(st.just("move"), st.integers(0, 10**4)),
    )


def _split(path: Path) -> tuple[str, bytes]:
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return content[8:end].decode(), content[end:]


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a document."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield content, key
        yield from _places(value)


def _change(content: Any, where: int, how: str, value: Any) -> str:
    places = list(_places(content))
    if not places:
        return "nothing"
    parent, key = places[where % len(places)]
    old = parent[key]
    if how == "drop":
        del parent[key]
    elif how == "double" and isinstance(parent, list):
        parent.append(old)
    elif how == "rename" and isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)
    elif how == "add" and type(old) in (int, float):
        parent[key] = old + value
    elif how == "move":
        other, from_key = places[value % len(places)]
        parent[key] = deepcopy(other[from_key])
    elif how == "set":
        parent[key] = deepcopy(value)
    return f"{how} {key!r}: {str(old)[:40]!r} -> {str(value)[:40]!r}"


@st.composite
def tensors(draw: st.DrawFn) -> Mutation:
    """Bytes of the tensors in a file become others, its header stays."""
    number, place = draw(st.integers(0, 99)), draw(st.integers(0, 10**6))
    pattern = draw(st.sampled_from([b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\x7f", b"\x00\x00\x80\x7f"]))
    length = draw(st.sampled_from([1, 4, 8, 64, 10**6]))

    def mutate(folder: Path) -> str:
        files = [path for path in files_of(folder) if path.suffix == ".safetensors"]
        path = files[number % len(files)]
        header, rest = _split(path)
        at = place % max(1, len(rest))
        size = len(rest[at : at + length])
        rest = rest[:at] + (pattern * size)[:size] + rest[at + size :]
        path.write_bytes(len(header.encode()).to_bytes(8, "little") + header.encode() + rest)
        return f"'{path.relative_to(folder)}': {size} bytes of tensors at {at} become {pattern!r}"

    return mutate
