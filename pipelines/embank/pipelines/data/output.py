"""The output folder: written under a temporary name beside its place, synced, and renamed when it is whole."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from embank.pipelines.data.schema import SCHEMA_FILE
from embank.tables.errors import DataError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def output_folder(out: Path, *, overwrite: bool, inputs: Sequence[Path] = ()) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the block ends well, and vanishes when it does not.

    Args:
        overwrite: replace an `out` that holds prepared data.
        inputs: files that must not lie in `out`.

    Raises:
        DataError: `out` is in use, or can't be replaced.
        OSError: the disk is full or can't be written; the message says which and how to go on.
    """
    out = Path(os.path.abspath(out))
    _check_free(out, overwrite=overwrite, inputs=inputs)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{out.name}.tmp-", dir=out.parent))
    try:
        os.chmod(folder, 0o777 & ~_umask())
        yield folder
        _sync(folder)
        _replace(folder, out)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        shutil.rmtree(folder, ignore_errors=True)
        raise OSError(error.errno, _full_message(out)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
        "Free some space, or give --out on another disk; about twice the size of the unpacked input is needed."
    )
