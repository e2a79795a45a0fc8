"""Take some files out of a wheel, a zip, a tar file or a folder."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from embank.tables.errors import DataError


def read_members(source: Path, members: Mapping[str, tuple[str, ...]]) -> dict[str, bytes]:
    """Contents of the wanted files.

    Args:
        source: archive or folder.
        members: name to the path endings that the file may have inside, the best first.

    Raises:
        DataError: there is no such archive, it is damaged, or a file is not in it.
    """
    if not source.exists():
        raise DataError(f"there is no file or folder {source}. Check --from.")
    try:
        with ExitStack() as stack:
            names, read = _open(source, stack)
            return {name: read(_find(source, names, endings)) for name, endings in members.items()}
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise DataError(f"{source} is damaged ({error}). Download it again.") from error


def _open(source: Path, stack: ExitStack) -> tuple[list[str], Callable[[str], bytes]]:
    if source.is_dir():
        files = {file.relative_to(source).as_posix(): file for file in sorted(source.rglob("*")) if file.is_file()}
        return list(files), lambda name: files[name].read_bytes()
    if zipfile.is_zipfile(source):
        archive = stack.enter_context(zipfile.ZipFile(source))
        return archive.namelist(), archive.read
    if tarfile.is_tarfile(source):
        tar = stack.enter_context(tarfile.TarFile.open(source))
        return tar.getnames(), lambda name: _read_tar(tar, name)
    raise DataError(f"{source} is no wheel, zip or tar file, and no folder. Give one of these with --from.")


def _read_tar(tar: tarfile.TarFile, name: str) -> bytes:
    member = tar.extractfile(name)
    if member is None:
        raise tarfile.TarError(f"{name} is no plain file")
    return member.read()


def _find(source: Path, names: Sequence[str], endings: tuple[str, ...]) -> str:
    for ending in endings:
        for name in names:
            if name == ending or name.endswith("/" + ending):
                return name
    raise DataError(f"{source} holds no {endings[0]}, so it is not the expected package. Check --from.")
