"""Checksums: of files and folders, of texts. SHA-256 everywhere."""

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from embank.tables.errors import CheckpointError
from embank.tables.storage.json_text import read_json
from embank.tables.storage.refusals import cause_of
from embank.tables.wording import shown

CHECKSUMS = "checksums.json"

_HASH_THREADS = 4
_MAX_NAME = 256
"""Bytes of a file's or a folder's name; systems refuse longer ones with errors of their own."""


def write_checksums(folder: Path, *, known: Mapping[str, Any] | None = None) -> None:
    """Adds `checksums.json` over all other files of a folder: SHA-256 and bytes of each.

    Args:
        folder: has no such file yet.
        known: what it says of some of them, by name; they are not read.
    """
    known = known or {}
    files = {name: path for path in _files(folder) if (name := str(path.relative_to(folder))) not in known}
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        checksums = dict(zip(files, pool.map(file_digest, files.values()), strict=True))
    (folder / CHECKSUMS).write_text(checksums_text({**known, **checksums}))


def checksums_text(checksums: Mapping[str, Any]) -> str:
    """What `checksums.json` says of files."""
    return json.dumps(checksums, indent=1, sort_keys=True)


def refuse_bad_listing(checksums: Mapping[str, Any], *, what: str, cure: str) -> None:
    """Refuses what `checksums.json` never holds, such as files outside of its folder.

    Raises:
        CheckpointError: a name, a checksum or a size is none.
    """
    for name, expected in checksums.items():
        if not is_inside(name):
            raise CheckpointError(f"{what} is damaged: {name!r} is no file inside of its folder. {cure}")
        kinds = {key: type(value) for key, value in expected.items()} if isinstance(expected, dict) else None
        if kinds != {"sha256": str, "nbytes": int}:
            raise CheckpointError(f"{what} is damaged: its entry {name!r} is {shown(expected)}. {cure}")


def is_inside(name: str) -> bool:
    """Whether a name leads to a file in a folder and nowhere else, and systems take it."""
    try:
        parts = name.encode().split(b"/")
    except UnicodeEncodeError:
        return False
    return all(part not in (b"", b".", b"..") and b"\0" not in part and len(part) < _MAX_NAME for part in parts)


def verify_checksums(
    folder: Path,
    *,
    kind: str,
    cure: str,
    read: Callable[[str], bool] = lambda name: True,
    only: Callable[[str], bool] = lambda name: True,
) -> dict[str, Any]:
    """Checks the files of a folder against its `checksums.json`; files that are not listed there are left alone.

    Args:
        folder: what is checked.
        kind: what it is, for messages.
        cure: what to do about a damaged file, a sentence.
        read: whose SHA-256 is compared, by name; of the others the size alone.
        only: which of the listed files are looked at, by name.

    Returns:
        The listing: `{"sha256": ..., "nbytes": ...}` by file.

    Raises:
        CheckpointError: incomplete, truncated or altered; names the file.
    """
    listing = folder / CHECKSUMS
    if not folder.exists():
        raise CheckpointError(f"there is no {kind} at '{folder}'. {cure}")
    if not listing.is_file():
        raise CheckpointError(f"'{folder}' is not a complete {kind}: it has no {CHECKSUMS}. {cure}")
    checksums = read_json(listing, cure=cure)
    refuse_bad_listing(checksums, what=f"'{listing}'", cure=cure)
    looked_at = {name: expected for name, expected in checksums.items() if only(name)}
    for name, expected in looked_at.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{kind} '{folder}' lacks '{name}'. {cure}")
        size = path.stat().st_size
        if size != expected["nbytes"]:
            raise CheckpointError(
                f"'{path}' has {size:,} bytes where {expected['nbytes']:,} were written; it is truncated or altered. "
                f"{cure}"
            )
    _compare_digests(folder, {name: expected for name, expected in looked_at.items() if read(name)}, cure=cure)
    return checksums


def _compare_digests(folder: Path, listed: dict[str, Any], *, cure: str) -> None:
    with ThreadPoolExecutor(_HASH_THREADS) as pool:  # hashing lets go of the interpreter
        for (name, expected), found in zip(
            listed.items(), pool.map(_digest_or_cause, map(folder.__truediv__, listed)), strict=True
        ):
            if isinstance(found, OSError):
                raise CheckpointError(f"'{folder / name}' can't be read: {cause_of(found)}. {cure}") from found
            if found != expected:
                raise CheckpointError(
                    f"'{folder / name}' has been altered: its SHA-256 differs from the one written with it. {cure}"
                )


def text_digest(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> dict[str, Any]:
    """SHA-256 and bytes of a file."""
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "nbytes": path.stat().st_size}


def _digest_or_cause(path: Path) -> dict[str, Any] | OSError:
    try:
        return file_digest(path)
    except OSError as error:
        return error


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
