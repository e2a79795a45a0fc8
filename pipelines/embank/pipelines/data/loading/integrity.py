"""Prepared data that has changed since `embank prepare` wrote it is refused, before anything is trained or scored on
it.

A prepared folder has `checksums.json` over all of its files. Training checks every split and vocabulary when it begins,
and
evaluation the split that it reads: one pass over the files at the speed of SHA-256, a percent of an epoch. Nothing less
tells two parts apart that have the same number of rows and bytes. What is damaged later, while it is read, fails the
checksum of its Parquet page.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from embank.pipelines.data.loading.parts import Parts
from embank.pipelines.data.schema import CONFIG_FILE, LIKE_FILE, SPLIT_NAMES, UNCHECKED_VERSION, VOCAB_FOLDER, Schema
from embank.pipelines.reporting import Reporter
from embank.tables.errors import CheckpointError, DataError
from embank.tables.storage.checksums import CHECKSUMS, text_digest, verify_checksums, write_checksums
from embank.tables.storage.json_text import read_json

LARGE_NBYTES = 2**32
_CURE = "Restore it from a copy, or prepare the data again"


def seal(folder: Path) -> None:
    """Writes the checksums of a prepared folder, as the last of its files."""
    write_checksums(folder)


def content_of(folder: Path, schema: Schema) -> str | None:
    """Digest of rows, labels, numbers, vocabularies and counts: of the checksums of all parts and vocabularies.

    Cheap: no part is read. None for a folder of an earlier version, which says nothing of its parts.

    Raises:
        DataError: the folder has lost its checksums, or they are damaged.
    """
    if schema.format_version == UNCHECKED_VERSION:
        return None
    listed = {name: entry for name, entry in _listing(folder).items() if _is_in(name, (*SPLIT_NAMES, VOCAB_FOLDER))}
    return text_digest(json.dumps(listed, sort_keys=True))


def verify_prepared(
    folder: Path,
    schema: Schema,
    *,
    splits: Sequence[str] = SPLIT_NAMES,
    vocabularies: bool = True,
    reporter: Reporter | None = None,
) -> None:
    """Refuses a prepared folder that has lost or changed anything since it was written.

    Its configuration is checked in any case: raw rows that are scored, or prepared like it, are read by it.

    Args:
        folder: the prepared folder.
        schema: its schema.
        splits: those that will be read.
        vocabularies: whether they will be.
        reporter: is told what can't be checked, and of checks that take a while.

    Raises:
        DataError: names the file.
    """
    reporter = reporter or Reporter()
    for split in splits:
        Parts(folder, split, schema=schema)  # row counts and columns, and before the slow part: nothing missing
    if schema.format_version == UNCHECKED_VERSION:
        reporter.note(
            f"'{folder}' was prepared by an earlier version, without checksums: whether its files are undamaged and "
            "in their places can't be "
            "checked. Prepare the data again to have that"
        )
        return
    listing = _listing(folder)
    for split in splits:
        for path in sorted((folder / split).glob("part-*.parquet")):
            if f"{split}/{path.name}" not in listing:
                raise DataError(f"'{path}' is not one of the files that `embank prepare` wrote. {_CURE}.")
    wanted = (*splits, CONFIG_FILE, LIKE_FILE, *([VOCAB_FOLDER] if vocabularies else []))
    nbytes = sum(_nbytes(entry) for name, entry in listing.items() if _is_in(name, wanted))
    if nbytes > LARGE_NBYTES:
        reporter.note(f"checking {nbytes / 2**30:.1f} GiB of prepared data in '{folder}' against its checksums")
    try:
        verify_checksums(folder, kind="prepared folder", cure=f"{_CURE}.", only=lambda name: _is_in(name, wanted))
    except CheckpointError as error:
        raise DataError(str(error)) from error


def is_sealed(folder: Path, name: str) -> bool:
    """Whether a file is one of those that a prepared folder had when it was written.

    Raises:
        DataError: the folder's checksums are damaged.
    """
    return (folder / CHECKSUMS).is_file() and name in _listing(folder)


def _listing(folder: Path) -> dict[str, object]:
    if not (folder / CHECKSUMS).is_file():
        raise DataError(
            f"'{folder}' has lost its {CHECKSUMS}, so nothing tells whether its files are undamaged. {_CURE}."
        )
    try:
        return read_json(folder / CHECKSUMS)
    except CheckpointError as error:
        raise DataError(f"{error}. {_CURE}.") from error


def _is_in(name: str, folders: Sequence[str]) -> bool:
    return name.partition("/")[0] in folders


def _nbytes(entry: object) -> int:
    nbytes = entry.get("nbytes") if isinstance(entry, dict) else None
    return nbytes if isinstance(nbytes, int) else 0
