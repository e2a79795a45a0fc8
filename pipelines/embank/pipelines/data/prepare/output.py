"""The output folder: written under a temporary name beside its place, synced, and given its name when it is whole."""

from __future__ import annotations

import contextlib
import errno
import glob
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from embank.pipelines.data.schema import SCHEMA_FILE
from embank.pipelines.locks import hold_lock
from embank.tables.errors import CheckpointError, DataError, WorkError
from embank.tables.storage.atomic import exchange_folder, sync_folder, sync_name, temporary_folder
from embank.tables.storage.checksums import CHECKSUMS
from embank.tables.storage.json_text import read_json
from embank.tables.storage.refusals import cause_of, is_full, refused

_log = logging.getLogger(__name__)
_UNLISTED = re.compile(
    r"(schema|like|synth|checksums)\.json|config\.yaml|vocab/[^/]+\.parquet|(times/)?(train|valid|test)/part-\d+\.parquet"
)
"""Names of what is in prepared folders, for those whose checksums don't say it: of an earlier version, or damaged."""


@contextlib.contextmanager
def output_folder(out: Path, *, overwrite: bool, inputs: Sequence[Path] = ()) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the block ends well, and vanishes when it does not.

    One process at a time writes an `out`. What is replaced and what replaces it change places in one step where the
    file system can do that (those of Linux can), so that a kill at any moment leaves one of them at `out`.

    An `out` that is a link stays one: what it leads to is made or replaced.

    Args:
        overwrite: replace an `out` that holds prepared data and nothing else.
        inputs: files and folders that must not lie in `out`, by whatever links they are reached.

    Raises:
        DataError: `out` is in use, or can't be replaced.
        WorkError: the disk is full or fails; the message says where and how to go on.
        ConfigError: what is written there can't be, see `refused`.
    """
    if out.is_symlink() and not out.exists():
        raise DataError(f"{out} is a link to nothing. Remove it, or give another --out.")
    out = Path(os.path.realpath(out))
    _check_free(out, overwrite=overwrite, inputs=inputs)
    with _parent(out), _lock(out):
        _name_leftovers(out)
        try:
            with temporary_folder(f"{out.name}.tmp-", parent=out.parent) as folder:
                yield folder
                sync_folder(folder)
                try:
                    _publish(folder, out, overwrite=overwrite, inputs=inputs)
                except _AppearedError as error:
                    kept = folder.rename(_free_name(out))
                    raise DataError(
                        f"{error} What was prepared is whole, in {kept}: move it where you want it."
                    ) from error
        except OSError as error:
            if is_full(error):
                raise WorkError(_full_message(out)) from error
            raise refused(error)(
                f"{error.filename or out}: {cause_of(error)}. Nothing was left behind; mend it or give another --out."
            ) from error


class _AppearedError(Exception):
    """Something is at the place of the output that was not there at the start."""


def _publish(folder: Path, out: Path, *, overwrite: bool, inputs: Sequence[Path]) -> None:
    """Gives a complete folder its name; looks again at what is there, since a preparation may take hours."""
    try:
        _check_free(out, overwrite=overwrite, inputs=inputs)
        if out.is_dir() and any(out.iterdir()):
            exchange_folder(folder, out)
        else:
            os.rename(folder, out)  # over nothing or an empty folder; the system refuses anything else
    except DataError as error:
        raise _AppearedError(f"{out} has appeared in the meantime and was left alone ({error}).") from error
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise _AppearedError(f"{out} has appeared in the meantime and was left alone.") from error
    sync_name(out)


@contextlib.contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Keeps a second process from writing the same output.

    Raises:
        DataError: one is at it.
    """
    path = out.with_name(f".{out.name}.lock")
    held = f"another process is writing {out}. Wait for it, or give another --out."
    with hold_lock(path, held=held, error=DataError):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _parent(out: Path) -> Iterator[None]:
    """Makes the folder that the output goes into, and removes it again if nothing was put there."""
    made = [folder for folder in out.parents if not folder.exists()]
    try:  # around the making as well: a signal may come right after it
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(out.parent, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise (WorkError if is_full(error) else DataError)(
                f"can't create a folder beside {out}: {cause_of(error)}. Give another --out."
            ) from error
        yield
    finally:
        with contextlib.suppress(OSError):  # it holds something, so those above do as well
            for folder in made:
                folder.rmdir()


def _name_leftovers(out: Path) -> None:
    for stale in out.parent.glob(f"{glob.escape(out.name)}.tmp-*"):
        _log.warning("%s was left behind by a run that was killed; delete it", stale)
    for moved in out.parent.glob(f"{glob.escape(out.name)}.old-*/{glob.escape(out.name)}"):
        _log.warning("%s is what %s held before an --overwrite that was killed; move it back or delete it", moved, out)


def _free_name(out: Path) -> Path:
    """A name beside the output that nothing has."""
    return next(path for number in range(1, 10_000) if not (path := out.with_name(f"{out.name}-{number}")).exists())


def _check_free(out: Path, *, overwrite: bool, inputs: Sequence[Path]) -> None:
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file. Give --out a folder that does not exist yet.")
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise DataError(f"{out} is not empty. Give another --out, or --overwrite to replace it.")
    if not (out / SCHEMA_FILE).is_file():
        raise DataError(
            f"{out} holds no {SCHEMA_FILE}, so it is no prepared data and is not overwritten. Give another --out."
        )
    for path in inputs:
        place = Path(os.path.realpath(path))
        if place.is_relative_to(out):
            verb = "is" if place == out else "lies in"
            raise DataError(f"the input {path} {verb} {out}, which --overwrite would delete. Give another --out.")
    foreign = next(_foreign(out), None)
    if foreign is not None:
        raise DataError(
            f"{foreign} is not one of the files that `embank prepare` wrote to {out}, and --overwrite would delete it. "
            "Move it to another place, or give another --out."
        )


def _foreign(out: Path) -> Iterator[Path]:
    """Files and links in a prepared folder that its checksums don't list."""
    listed = _listed(out)
    for folder, folders, files in os.walk(out, onerror=_raise):
        links = [name for name in folders if Path(folder, name).is_symlink()]  # which are not gone into
        for path in (Path(folder, name) for name in sorted([*files, *links])):
            name = path.relative_to(out).as_posix()
            if not (_UNLISTED.fullmatch(name) if listed is None else name in listed or name == CHECKSUMS):
                yield path


def _raise(error: OSError) -> None:
    """Of a folder that can't be looked into, nobody knows what it holds."""
    raise DataError(
        f"{error.filename} can't be read: {cause_of(error)}. Check its permissions, or give another --out."
    ) from error


def _listed(out: Path) -> Collection[str] | None:
    """The files that the checksums of a prepared folder list; None where they are missing or damaged."""
    try:
        return read_json(out / CHECKSUMS) if (out / CHECKSUMS).is_file() else None
    except CheckpointError:
        return None


def _full_message(out: Path) -> str:
    free = shutil.disk_usage(out.parent).free
    return (
        f"no space left while writing {out} ({free / 2**20:,.0f} MiB are free there now). Nothing was left behind. "
        "Free some space, or give --out on another disk; about as much as the unpacked input takes is needed."
    )
