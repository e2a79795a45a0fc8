"""What every raw format looks like to `prepare`: a source of chunks of named raw columns that knows where each row came
from."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import pyarrow as pa

from embank.pipelines.config.columns import PrepareConfig, pattern_problem
from embank.pipelines.data.sources.formats.header import named_twice
from embank.tables.errors import DataError
from embank.tables.storage.refusals import cause_of
from embank.tables.wording import did_you_mean, listing


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some consecutive rows.

    Attributes:
        frame: raw columns, String for text formats and the file's own types for Parquet; a missing cell is null, an
            empty string never occurs.
        where: row of `frame` to its place in words, such as "train.txt, line 12".
        num_bytes: bytes of input that this chunk used up.
        path: the file that the rows are from; None where they are from several.
    """

    frame: pl.DataFrame
    where: Callable[[int], str]
    num_bytes: int
    path: Path | None = None


class Source(Protocol):
    """An opened input."""

    @property
    def name(self) -> str:
        """What to call it in messages: its (first) file."""

    @property
    def files(self) -> Sequence[Path]:
        """All files that it reads, those beside the rows' too."""

    @property
    def suffixes(self) -> Sequence[str]:
        """What names of files end in that a folder stands for; nothing where folders are not read so."""

    @property
    def columns(self) -> Sequence[str]:
        """The raw columns that it can give."""

    @property
    def twice(self) -> Collection[str]:
        """Names that several of its columns have, which therefore can't be asked for."""

    @property
    def total_bytes(self) -> int:
        """Size of the input files."""

    @property
    def default(self) -> Mapping[str, Any] | None:
        """The configuration that belongs to the format, as plain values; None for generic formats."""

    def types(self, column: str) -> Mapping[Path, pa.DataType]:
        """What a column is read as, by file, where the files say it; nothing for text."""

    def chunks(self, columns: Sequence[str]) -> Iterator[Chunk]:
        """Read everything once, from the first row to the last."""


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How a user says that CSV or TSV files are written; None keeps the format's own separator."""

    separator: str | None = None
    quote: str | None = '"'
    escape: str | None = None


@dataclass(frozen=True, kw_only=True)
class Format:
    """A raw format.

    Args:
        name: what `--format` calls it.
        summary: one line for `--help`.
        open: opens files of it.
        needs_config: the format says nothing about columns, so a configuration must.
        open_rows: opens files of it to score their rows, which need no label; None where `open` does that.
        needs: raw columns that features are derived from, given the features; None where features are raw columns.
        derive: a chunk with those raw columns to the features, row by row; None where features are raw columns.
        example: values of raw columns from which features are derived.
    """

    name: str
    summary: str
    open: Callable[[Sequence[Path], TextOptions], Source]
    needs_config: bool = False
    open_rows: Callable[[Sequence[Path], TextOptions], Source] | None = None
    needs: Callable[[Sequence[str]], Sequence[str]] | None = None
    derive: Callable[[Chunk, Sequence[str]], Chunk] | None = None
    example: Mapping[str, Any] | None = None


def trimmed(frame: pl.DataFrame) -> pl.DataFrame:
    """Text columns without white space around their cells; a cell of which nothing is left is missing."""
    text = [name for name, dtype in frame.schema.items() if dtype == pl.String]
    return frame.with_columns(_trimmed(pl.col(name)).alias(name) for name in text)


def _trimmed(column: pl.Expr) -> pl.Expr:
    stripped = column.str.strip_chars()
    return pl.when(stripped != "").then(stripped)


def check_inputs(paths: Sequence[Path]) -> None:
    """Refuse inputs that are not there or are no plain files.

    Raises:
        DataError: naming the path and what to give instead.
    """
    if not paths:
        raise DataError("no input file is given. Name one or more with --input.")
    _refuse_twice(paths)
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise DataError(f"{path} is a link to {path.readlink()}, which is not there. Check --input.")
        if not path.exists():
            siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
            raise DataError(f"there is no file {path}.{did_you_mean(path.name, siblings)} Check --input.")
        if path.is_dir():
            raise DataError(f"{path} is a folder. Name the files in it with --input.")
        if not path.is_file():
            raise DataError(f"{path} is a device or a pipe, and input is read twice. Write it to a file first.")
        _refuse_unreadable(path)


def _refuse_twice(paths: Sequence[Path]) -> None:
    places: dict[str, Path] = {}
    for path in paths:
        other = places.setdefault(os.path.realpath(path), path)
        if other is not path:
            raise DataError(
                f"{path} is given twice (as {other}), so that its rows would count twice. Name each file once."
            )


def _refuse_unreadable(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise DataError(
            f"{path} can't be read: {cause_of(error)}. Check its permissions, or give another --input."
        ) from error


def check_columns(source: Source, config: PrepareConfig) -> None:
    """Refuse a configuration that names columns the source does not have.

    Raises:
        DataError: naming the file, the column, its place in the configuration, and the nearest column there is.
    """
    for column in config.columns:
        check_column(source, column, whose=f"the configuration names under {_role(column, config)}")


def check_column(source: Source, column: str, *, whose: str) -> None:
    """Refuse a column that the source does not have, or that can't be read by its name.

    Args:
        whose: who asks for it, as in "the configuration names under numeric".

    Raises:
        DataError: naming the file, the column, and the nearest column there is.
    """
    if problem := pattern_problem(column):
        raise DataError(f"{source.name}: {problem} in the file.", field=column)
    if column in source.twice:
        raise DataError(f"{source.name}, line 1: {named_twice(column)}", field=column)
    if column not in source.columns:
        hint = (
            _same_when_normalised(column, source.columns)
            or _other_separator(column, source.columns)
            or did_you_mean(column, source.columns)
        )
        raise DataError(
            f"{source.name} has no column {column!r}, which {whose}.{hint} Its columns: {listing(source.columns)}.",
            field=column,
        )


def _same_when_normalised(column: str, columns: Sequence[str]) -> str:
    """Says so where a column looks like the one that is asked for, and is spelled with other characters."""
    for other in columns:
        if unicodedata.normalize("NFC", other) == unicodedata.normalize("NFC", column):
            spelled = (
                " ".join(f"U+{ord(character):04X}" for character in name if not character.isascii())
                for name in (other, column)
            )
            return (
                " It has one that looks the same, with {} where the configuration has {}. Copy the name from the file."
            ).format(*spelled)
    return ""


def _other_separator(column: str, columns: Sequence[str]) -> str:
    """Says so where the names are not separated as the format has it."""
    if columns[0].startswith("sep="):
        return f" The first line, {columns[0]!r}, is Excel's word about the separator and no header. Delete it."
    for separator in ";\t|,":
        if separator in columns[0] and column in columns[0].split(separator):
            other = ", or give --format tsv" if separator == "\t" else ""
            return (
                f" The names are separated by {separator!r}: set `separator: {json.dumps(separator)}` in the "
                f"configuration{other}."
            )
    return ""


def _role(column: str, config: PrepareConfig) -> str:
    roles = {
        "label.column": [config.label.column],
        "hashed": [name for name in config.hashed if name not in config.multivalued],
        "categorical": config.categorical,
        "multivalued": config.multivalued,
        "numeric": config.numeric,
        "group": [config.group],
    }
    return next((role for role, names in roles.items() if column in names), "split")
