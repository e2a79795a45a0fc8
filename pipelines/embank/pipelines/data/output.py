"""The output folder: written under a temporary name beside its place, synced, and renamed when it is whole."""

from __future__ import annotations

import contextlib
import errno
import glob
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from embank.pipelines.data.schema import SCHEMA_FILE
from embank.tables.errors import DataError, WorkError

_log = logging.getLogger(__name__)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def output_folder(out: Path, *, overwrite: bool, inputs: Sequence[Path] = ()) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the block ends well, and vanishes when it does not.

    Args:
        overwrite: replace an `out` that holds prepared data.
        inputs: files that must not lie in `out`.

    Raises:
        DataError: `out` is in use, or can't be replaced.
        WorkError: the disk is full; the message says where and how to go on.
    """
    out = Path(os.path.abspath(out))
    _check_free(out, overwrite=overwrite, inputs=inputs)
    folder = _make_temporary(out)
    try:
        os.chmod(folder, 0o777 & ~_umask())
        yield folder
        _sync(folder)
        _replace(folder, out)
    except OSError as error:
        if not _is_full(error):
            raise
        shutil.rmtree(folder, ignore_errors=True)
        raise WorkError(_full_message(out)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_temporary(out: Path) -> Path:
    for stale in out.parent.glob(f"{glob.escape(out.name)}.tmp-*"):
        _log.warning(
            "%s was left behind by a run that was killed (or is still going); delete it if it is not needed", stale
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{out.name}.tmp-", dir=out.parent))
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise DataError(f"can't create a folder beside {out}: {error.strerror}. Give another --out.") from error


def _is_full(error: OSError) -> bool:
    # polars raises OSError without an errno; its text ends in "(os error 28)".
    return error.errno in _FULL or any(f"(os error {number})" in str(error) for number in _FULL)


def _check_free(out: Path, *, overwrite: bool, inputs: Sequence[Path]) -> None:
    if out.is_file():
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
        if Path(os.path.abspath(path)).is_relative_to(out):
            raise DataError(f"the input {path} lies in {out}, which --overwrite would delete. Give another --out.")


def _replace(folder: Path, out: Path) -> None:
    old: Path | None = None
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f"{out.name}.old-", dir=out.parent))
        os.rename(out, old / out.name)
    try:
        os.rename(folder, out)
    except BaseException:
        if old is not None:
            os.rename(old / out.name, out)
            old.rmdir()
        raise
    _sync_one(out.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            _sync_one(Path(root) / name)
        _sync_one(Path(root))


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _full_message(out: Path) -> str:
    free = shutil.disk_usage(out.parent).free
    return (
        f"no space left while writing {out} ({free / 2**20:,.0f} MiB are free there now). Nothing was left behind. "
        "Free some space, or give --out on another disk; about as much as the unpacked input takes is needed."
    )
