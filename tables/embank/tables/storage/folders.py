"""Folders that are written as a whole and checked when they are read: checksums, syncing, renaming into place."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embank.tables.errors import CheckpointError, WorkError

CHECKSUMS = "checksums.json"

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a full disk, a used-up quota and a limit on the size of files say."""

_HASH_THREADS = 4
_RUST = re.compile(r"\(os error (\d+)\)")  # polars and safetensors give the system's refusal in words


def write_checksums(folder: Path) -> None:
    """Adds `checksums.json` over all other files of a folder: SHA-256 and bytes of each."""
    files = _files(folder)
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        checksums = {
            str(path.relative_to(folder)): found for path, found in zip(files, pool.map(digest, files), strict=True)
        }
    (folder / CHECKSUMS).write_text(json.dumps(checksums, indent=1, sort_keys=True))


def verify_checksums(
    folder: Path, *, kind: str, cure: str, read: bool = True, only: Callable[[str], bool] = lambda name: True
) -> dict[str, Any]:
    """Checks the files of a folder against its `checksums.json`; files that are not listed there are left alone.

    Args:
        folder: what is checked.
        kind: what it is, for messages.
        cure: what to do about a damaged file, a sentence.
        read: False compares sizes only.
        only: which of the listed files are looked at, by name.

    Returns:
        The listing: `{"sha256": ..., "nbytes": ...}` by file.

    Raises:
        CheckpointError: incomplete, truncated or altered; names the file.
    """
    listing = folder / CHECKSUMS
    if not listing.is_file():
        raise CheckpointError(f"'{folder}' is not a complete {kind}: it has no {CHECKSUMS}. {cure}")
    checksums = read_json(listing)
    looked_at = {name: expected for name, expected in checksums.items() if only(name)}
    for name, expected in looked_at.items():
        path = folder / name
        if not isinstance(expected, dict) or set(expected) != {"sha256", "nbytes"}:
            raise CheckpointError(f"'{listing}' is damaged: its entry '{name}' is {expected!r}. {cure}")
        if not path.is_file():
            raise CheckpointError(f"{kind} '{folder}' lacks '{name}'. {cure}")
        size = path.stat().st_size
        if size != expected["nbytes"]:
            raise CheckpointError(
                f"'{path}' has {size:,} bytes where {expected['nbytes']:,} were written; it is truncated or altered. "
                f"{cure}"
            )
    if read:
        with ThreadPoolExecutor(_HASH_THREADS) as pool:  # hashing lets go of the interpreter
            for (name, expected), found in zip(
                looked_at.items(), pool.map(_digest_or_cause, map(folder.__truediv__, looked_at)), strict=True
            ):
                if isinstance(found, OSError):
                    raise CheckpointError(f"'{folder / name}' can't be read: {cause_of(found)}. {cure}") from found
                if found != expected:
                    raise CheckpointError(
                        f"'{folder / name}' has been altered: its SHA-256 differs from the one written with it. {cure}"
                    )
    return checksums


def digest(path: Path) -> dict[str, Any]:
    """SHA-256 and bytes of a file."""
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "nbytes": path.stat().st_size}


def _digest_or_cause(path: Path) -> dict[str, Any] | OSError:
    try:
        return digest(path)
    except OSError as error:
        return error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; CheckpointError if it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"'{path}' can't be read: {cause_of(error)}") from error
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno} is no JSON" if isinstance(error, json.JSONDecodeError) else "it is no JSON"
        raise CheckpointError(f"'{path}' can't be read: {where}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"'{path}' does not hold a JSON object")
    return content


def temporary_beside(folder: Path) -> Path:
    """Where a folder is written before it gets its name: hidden, and of this process alone."""
    return folder.with_name(f".{folder.name}.tmp-{os.getpid()}")


def publish(temporary: Path, folder: Path) -> None:
    """Gives a complete folder its name, durably."""
    sync_folder(temporary)  # first: a name that outlives a crash must not lead to files that did not
    temporary.rename(folder)
    sync_entry(folder.parent)  # the name itself is written with the folder around it


def sync_entry(path: Path) -> None:
    """fsync of one file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """fsync of a folder and everything in it."""
    for path in (*folder.rglob("*"), folder):
        sync_entry(path)


@contextmanager
def writing(what: str, *, cure: str) -> Iterator[None]:
    """Says what could not be written, in place of the operating system's bare refusal.

    Args:
        what: the file or folder, for the message.
        cure: what to do about it, a sentence.

    Raises:
        WorkError: a full disk, no permission, a disk that fails.
    """
    try:
        yield
    except OSError as error:
        raise WorkError(f"{what} can't be written: {cause_of(error)}. {cure}") from error


def is_full(error: BaseException) -> bool:
    """Whether the disk, a quota or a limit on the size of files has led to an error."""
    return any(refusal.errno in FULL for refusal in _refusals(error))


def cause_of(error: BaseException, *, folder: Path | None = None) -> str:
    """The operating system's own words where there are any, else the last line of the message.

    Args:
        error: what was raised.
        folder: where the work was done. Libraries that lose the system's words (torch says "unexpected pos" on a full
            disk) are made up for by trying to write there.
    """
    for refusal in _refusals(error):
        if refusal.errno == errno.ENOSPC:
            return "no space left"
        if refusal.strerror:
            return refusal.strerror
    if folder is not None and (refused := _refusal_in(folder)) is not None:
        return cause_of(refused)
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _refusals(error: BaseException) -> Iterator[OSError]:
    """The operating system's refusals behind an error, the nearest first."""
    waiting: list[Any] = [error]
    seen: set[int] = set()
    while waiting:
        found = waiting.pop(0)
        if not isinstance(found, BaseException) or id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, shutil.Error):  # a list of (source, target, words)
            yield from (_numbered(str(words)) for _, _, words in found.args[0])
        elif (rust := _RUST.search(str(found))) is not None:
            yield OSError(int(rust[1]), os.strerror(int(rust[1])))
        elif isinstance(found, OSError):
            yield found
        failures = getattr(found, "failures", None)  # of torch's CheckpointException: by rank (error, its traceback)
        if isinstance(failures, dict):
            waiting += [pair[0] for pair in failures.values()]
        waiting += [found.__cause__, found.__context__]


def _numbered(words: str) -> OSError:
    """`[Errno 28] No space left on device: 'file'` as the error that it came from."""
    number = words.partition("[Errno ")[2].partition("]")[0]
    return OSError(int(number), os.strerror(int(number))) if number.isdecimal() else OSError(words)


def _refusal_in(folder: Path) -> OSError | None:
    """What the operating system says to another mebibyte in a folder; None if it takes it."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
