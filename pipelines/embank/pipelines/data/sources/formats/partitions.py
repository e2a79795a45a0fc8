"""Folders of files, and the columns that their names hold: `logs/dt=2024-01-01/part-0.parquet`, as Hive and Spark write
them.

A folder stands for the files in it and in its partitions, `NAME=VALUE` folders to any depth. Each NAME is a column like
those in the files, text, percent-decoded; `__HIVE_DEFAULT_PARTITION__` is a missing value.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

import polars as pl
import pyarrow as pa

from embank.pipelines.data.prepare.times import same_time
from embank.pipelines.data.prepare.token_kinds import TokenKinds
from embank.pipelines.data.prepare.tokens import as_tokens
from embank.pipelines.data.sources.formats.base import Chunk, Source
from embank.tables.errors import DataError
from embank.tables.wording import listing

_log = logging.getLogger(__name__)
_MISSING = "__HIVE_DEFAULT_PARTITION__"
_DATA = frozenset({".csv", ".tsv", ".parquet", ".parq", ".pq"})
_PACKED = re.compile(r"\.(gz|bz2|zst|zstd|xz|lzma|lz4|lzo|snappy|deflate|br|zip|7z|z)$")
Keys = Mapping[str, str | None]


class FileSource(Source, Protocol):
    """A source of plain files, of which some may lack a column that others have."""

    def lacking(self, column: str) -> Collection[Path]:
        """The files with rows that have no such column."""

    def chunks(self, columns: Sequence[str], *, where_held: Collection[str] = ()) -> Iterator[Chunk]:
        """Read everything once: some columns, and others of those files that have them."""


class OpenFiles(Protocol):
    """What opens plain files of a format."""

    def __call__(self, paths: list[Path], *, suffixes: Sequence[str]) -> FileSource: ...


def open_folders(paths: Sequence[Path], suffixes: Sequence[str], open_files: OpenFiles) -> Source:
    """Open files, or all files of folders and their partitions, as one source that has the partitions' keys as columns.

    Args:
        suffixes: what the names of data files in a folder end in, in capitals too; a file that is given itself may have
            any name.
        open_files: opens plain files, and is told of the suffixes.

    Raises:
        DataError: a folder without data files, with some that are packed so that they can't be read, or with some in a
            folder that is no partition.
    """
    files = [file for path in paths for file in _files(path, suffixes)]
    source = open_files(files, suffixes=suffixes)
    keys_of = {file: partition_keys(file) for file in files}
    return PartitionedSource(source, keys_of) if any(keys_of.values()) else source


class PartitionedSource:
    """A source with columns more, which are the same for all rows of a file.

    A key that all files hold as a column is read from there. One that some of them lack is text in all: the folder's,
    or of a file in no such folder its own.

    Args:
        base: chunks of it say which file they are from.
        keys_of: file to its columns and their value.
    """

    def __init__(self, base: FileSource, keys_of: Mapping[Path, Keys]) -> None:
        self.name, self.total_bytes, self.default = base.name, base.total_bytes, base.default
        self.twice, self.files, self.suffixes = base.twice, base.files, base.suffixes
        self._base, self._keys_of = base, keys_of
        keys = dict.fromkeys(name for keys in keys_of.values() for name in keys)
        self.columns = tuple(dict.fromkeys([*base.columns, *keys]))

    def types(self, column: str) -> Mapping[Path, pa.DataType]:
        """What a column of the files is read as; nothing for a partition's key, which is text."""
        return {} if self._is_key(column) and self._base.lacking(column) else self._base.types(column)

    def chunks(self, columns: Sequence[str]) -> Iterator[Chunk]:
        """Yield the named columns of all rows.

        Raises:
            DataError: a file neither lies in a partition of a wanted key nor holds the column, or does both, with
                another value; or files hold the column in types that write one value in two ways.
        """
        own = [name for name in columns if not self._is_key(name)]
        keys = [name for name in columns if self._is_key(name)]
        lacking = {name: self._base.lacking(name) for name in keys}
        for name, files in lacking.items():
            self._refuse_without(name, files)
        as_text = [name for name, files in lacking.items() if files]
        kinds = TokenKinds(as_text)
        for chunk in self._base.chunks(own or self._any_column(), where_held=keys):
            assert chunk.path is not None
            kinds.check(chunk)
            keys_of_file = {name: value for name, value in self._keys_of[chunk.path].items() if name in keys}
            yield _with_keys(chunk, keys_of_file, columns, as_text=as_text)

    def _is_key(self, name: str) -> bool:
        return any(name in keys for keys in self._keys_of.values())

    def _any_column(self) -> Sequence[str]:
        """A column to count the rows by, where keys alone are wanted."""
        return [name for name in self._base.columns if not self._is_key(name)][:1] or self._base.columns[:1]

    def _refuse_without(self, name: str, files: Collection[Path]) -> None:
        for file in files:
            if name not in self._keys_of[file]:
                raise DataError(
                    f"{file} lies in no folder {name}=VALUE, as other files do, so its rows have no {name!r}. "
                    "Move the file, or leave it out."
                )


def _with_keys(chunk: Chunk, keys: Keys, columns: Sequence[str], *, as_text: Collection[str]) -> Chunk:
    """Rows of a file with the columns of its partition.

    Args:
        keys: of the file.
        as_text: keys that are not columns of all files.
    """
    for name, value in keys.items():
        if name in chunk.frame.columns:
            _refuse_difference(chunk, name, value)
    literals = {name: value for name, value in keys.items() if name in as_text or name not in chunk.frame.columns}
    texts = [as_tokens(chunk, name).alias(name) for name in as_text if name not in literals]
    frame = chunk.frame.with_columns(
        *texts, *(pl.lit(value, dtype=pl.String).alias(name) for name, value in literals.items())
    )
    return Chunk(frame=frame.select(columns), where=chunk.where, num_bytes=chunk.num_bytes, path=chunk.path)


def _refuse_difference(chunk: Chunk, name: str, value: str | None) -> None:
    """A column of the file that is also in its path must say the same."""
    tokens = chunk.frame.select(as_tokens(chunk, name)).to_series()
    same = tokens.eq_missing(pl.Series([value], dtype=pl.String))
    if value is not None and not same.all():
        same |= _means(chunk.frame[name], tokens, value)
    if not same.all():
        row = same.arg_min()
        assert row is not None
        raise DataError(
            f"{chunk.where(row)}: column {name!r} is {tokens[row]!r}, and the folder's name says {value!r}. Leave the "
            "column out of the "
            "files, or rename the folder."
        )


def _means(values: pl.Series, tokens: pl.Series, text: str) -> pl.Series:
    """Whether each value is what a text means in its type, spelled otherwise: 1 and 01, true and True, a time with more
    digits."""
    if values.dtype == pl.Boolean:
        return (tokens == text.lower()).fill_null(False)
    if values.dtype.is_temporal():
        return same_time(values, text)
    number = pl.Series([text]).cast(pl.Float64, strict=False)
    return (tokens.cast(pl.Float64, strict=False) == number).fill_null(False)


def partition_keys(file: Path) -> dict[str, str | None]:
    """Names and values of the `NAME=VALUE` folders that a file lies in, the outermost first.

    Raises:
        DataError: a name that is not UTF-8 once it is percent-decoded, or that two of the folders have.
    """
    keys: dict[str, str | None] = {}
    folder = Path(
        os.path.normpath(file)
    ).parent  # as it was named: a current directory called a=b is no part of the input
    while is_partition(folder):
        name, value = (_decoded(part, folder).strip() for part in folder.name.split("=", 1))
        if name in keys:
            raise DataError(
                f"{file} lies in two folders that say what its {name!r} is, {folder.name} and one in it. Rename one of "
                "them, or leave the file out."
            )
        keys = {name: None if value in (_MISSING, "") else value, **keys}
        folder = folder.parent
    return keys


def is_partition(folder: Path) -> bool:
    """Whether a folder's name is `NAME=VALUE`."""
    return "=" in folder.name[1:]


def _decoded(text: str, folder: Path) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise DataError(
            f"the name of the folder {folder} is not UTF-8 when it is percent-decoded. Rename it, or leave it out."
        ) from None


def _files(path: Path, suffixes: Sequence[str]) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = list(_inside(path, suffixes))
    if not files:
        raise DataError(f"the folder {path} holds no {_shown(suffixes)} file. Check --input, or name the files in it.")
    return files


def _inside(folder: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """Data files of a folder and its partitions, in the order of names, numbers in them by value.

    Raises:
        DataError: a file is packed so that it can't be read, or lies in a folder that is no partition.
    """
    left_out = []
    for entry in sorted(folder.iterdir(), key=_natural):
        if is_hidden(Path(entry.name)):
            continue  # _SUCCESS, _metadata, .part-0.crc: what Hive and Spark keep beside the data
        if not entry.is_dir():
            if _is_data(entry, suffixes):
                yield entry
            elif _looks_like_data(entry, suffixes):
                left_out.append(entry.name)
        elif is_partition(entry):
            yield from _inside(entry, suffixes)
        else:
            _refuse_other_folder(entry, suffixes)
    if left_out:
        _log.warning(
            "%s: files that are named like data are left out (%s); %s files are read",
            folder,
            listing(left_out),
            _shown(suffixes),
        )


def is_hidden(inside: Path) -> bool:
    """Whether a folder of inputs leaves a file or folder in it out, given its path from there."""
    return any(name.startswith(("_", ".")) for name in inside.parts)


def _is_data(file: Path, suffixes: Sequence[str]) -> bool:
    return file.name.lower().endswith(tuple(suffixes))


def _looks_like_data(file: Path, suffixes: Sequence[str]) -> bool:
    """Whether a file that is not read is named like data.

    Raises:
        DataError: it is what is read, packed.
    """
    name = file.name.lower()
    if _PACKED.search(name) and _PACKED.sub("", name).endswith(tuple(suffixes)):
        raise DataError(
            f"{file} can't be read as it is packed, so its rows would be left out; {_shown(suffixes)} files are read. "
            "Unpack it, move it out of the folder, or name the files to read with --input."
        )
    return not _DATA.isdisjoint(Path(name).suffixes)


def _shown(suffixes: Sequence[str]) -> str:
    return " or ".join(f"*{suffix}" for suffix in suffixes)


def _refuse_other_folder(folder: Path, suffixes: Sequence[str]) -> None:
    lost = next((file for file in sorted(folder.glob("*")) if _is_data(file, suffixes)), None)
    if lost is not None:
        raise DataError(
            f"{lost} lies in a folder that is no partition (NAME=VALUE), so whether it belongs to the input is not "
            "clear. "
            "Name the folders or files that do with --input, each by itself."
        )


def _natural(entry: Path) -> list[tuple[int, int, str]]:
    """Order of `hour=9` before `hour=10`."""
    parts = re.split(r"(\d+)", entry.name)
    return [(1, int(part), part) if part.isdecimal() else (0, 0, part) for part in parts]
