"""Parquet input, read row group by row group."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from embank.pipelines.data.loading.ahead import Clock, run_ahead
from embank.pipelines.data.sources.formats.arrow_types import first_unfit, plain_series, plain_type, refuse_type
from embank.pipelines.data.sources.formats.base import Chunk, check_inputs, trimmed
from embank.pipelines.data.sources.formats.blocks import file_bytes
from embank.tables.errors import DataError
from embank.tables.storage.resources import refuse_exhausted

BATCH_ROWS = 131_072
_log = logging.getLogger(__name__)

_MAGIC = b"PAR1"


class ParquetSource:
    """Parquet files with the same columns, read one after the other; files without rows may have others.

    Raises:
        DataError: a file is missing or damaged, none has rows, or (while reading) one lacks a column that is read, has
            it twice, or in a type that nothing is read from.
    """

    default = None
    twice: Collection[str] = ()

    def __init__(self, paths: Sequence[Path], *, suffixes: Sequence[str] = ()) -> None:
        check_inputs(paths)
        self.name = str(paths[0])
        self.files = list(paths)
        self.suffixes = tuple(suffixes)
        self.total_bytes = file_bytes(self.files)
        schemas = {path: _schema(path) for path in paths}
        self._schemas = {path: schema for path, schema in schemas.items() if schema is not None}
        if not self._schemas:
            raise DataError(f"{self.name} has no rows. Check that the file is complete.")
        self.columns: tuple[str, ...] = tuple(dict.fromkeys(next(iter(self._schemas.values())).names))

    def types(self, column: str) -> Mapping[Path, pa.DataType]:
        """The plain type of a column, by file; of files that lack it, or that nothing is read from, see `chunks`."""
        held = {path: schema.field(column).type for path, schema in self._schemas.items() if _has_one(schema, column)}
        return {path: plain for path, own in held.items() if (plain := plain_type(own)) is not None}

    def lacking(self, column: str) -> Collection[Path]:
        """The files with rows that have no such column."""
        return [path for path, schema in self._schemas.items() if column not in schema.names]

    def chunks(self, columns: Sequence[str], *, where_held: Collection[str] = ()) -> Iterator[Chunk]:
        """Yield the named columns of all rows, in their plain types (see `arrow_types`).

        Args:
            where_held: columns besides, of the files that have them.
        """
        wanted = {
            path: [*columns, *(name for name in where_held if name in schema.names and name not in columns)]
            for path, schema in self._schemas.items()
        }
        for path, schema in self._schemas.items():
            self._check(path, schema, wanted[path])
        for path in self._schemas:
            yield from run_ahead(self._chunks(path, wanted[path]), depth=2, clock=Clock())

    def _check(self, path: Path, schema: pa.Schema, columns: Sequence[str]) -> None:
        for name in columns:
            places = schema.get_all_field_indices(name)
            if not places:
                first = next(iter(self._schemas))
                raise DataError(f"{path} has no column {name!r}, as {first} has. Prepare files of one layout together.")
            if len(places) > 1:
                raise DataError(f"{path} has {len(places)} columns called {name!r}. Rename or remove all but one.")
            refuse_type(schema.field(name).type, column=name, file=str(path))
            if pa.types.is_map(schema.field(name).type) and path == next(iter(self._schemas)):
                _log.warning("%s: column %r is a map: its keys are read, its values are not", path, name)

    def _chunks(self, path: Path, columns: Sequence[str]) -> Generator[Chunk, None, None]:
        with _open(path) as file:
            size, num_rows, first_row = path.stat().st_size, file.metadata.num_rows, 0
            for batch in _batches(file, path, columns, BATCH_ROWS):
                done = [size * row // num_rows for row in (first_row, first_row + batch.num_rows)]
                where = _Where(path, first_row)
                yield Chunk(frame=_frame(batch, columns, where), where=where, num_bytes=done[1] - done[0], path=path)
                first_row += batch.num_rows


def _has_one(schema: pa.Schema, column: str) -> bool:
    return len(schema.get_all_field_indices(column)) == 1


class _Where:
    """Row of a chunk to "FILE, row N" (1-based)."""

    def __init__(self, path: Path, first_row: int) -> None:
        self._path, self._first_row = path, first_row

    def __call__(self, row: int) -> str:
        return f"{self._path}, row {self._first_row + row + 1}"


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(os.path.abspath(path))  # a relative `s3:x.parquet` would be an address
    except (pa.ArrowException, OSError) as error:
        refuse_exhausted(error, doing=f"reading {path}")
        raise DataError(f"{path} {_problem(path, error)}") from error


def _problem(path: Path, error: Exception) -> str:
    """Why a file can't be opened, and what to do."""
    with path.open("rb") as file:
        start = file.read(len(_MAGIC))
    if not start:
        return "is empty. Check that the file is complete."
    if start != _MAGIC:
        return (
            f"is no Parquet file, which begins with {_MAGIC.decode()}. Give text with `--format csv` or `--format tsv`."
        )
    return f"is damaged ({error}). Check that the file is complete."


def _schema(path: Path) -> pa.Schema | None:
    """Names and types of the columns; None where there are no rows."""
    with _open(path) as file:
        return file.schema_arrow if file.metadata.num_rows else None


def _batches(file: pq.ParquetFile, path: Path, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    try:
        yield from file.iter_batches(batch_size=batch_rows, columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        refuse_exhausted(error, doing=f"reading {path}")
        if isinstance(error, pa.ArrowNotImplementedError):
            raise DataError(
                f"{path} uses what is not read ({error}). Write it with snappy or zstd and plain types."
            ) from error
        raise DataError(f"{path} is damaged ({error}). Copy or download the file again.") from error


def _frame(batch: pa.RecordBatch, columns: Sequence[str], where: _Where) -> pl.DataFrame:
    return trimmed(pl.DataFrame([_column(batch.column(name), name, where) for name in columns]))


def plain_frame(table: pa.Table, columns: Sequence[str], where: Callable[[int], str]) -> pl.DataFrame:
    """The named columns of rows in memory, as they would be read from a file.

    Raises:
        DataError: a type that nothing is read from, or a value that has none of the plain types.
    """
    for name in columns:
        refuse_type(table.schema.field(name).type, column=name, file="the given rows")
    return trimmed(pl.DataFrame([_column(_one_array(table.column(name)), name, where) for name in columns]))


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _column(array: pa.Array, name: str, where: Callable[[int], str]) -> pl.Series:
    try:
        return plain_series(array, column=name)
    except pa.ArrowInvalid:
        row = first_unfit(array)
        raise DataError(
            f"{where(row)}: column {name!r} is {_shown(array[row])}, which {array.type} can hold and `embank prepare` "
            "can't: a decimal of more than "
            "38 digits, or a year outside 1 to 9999. Mend the value."
        ) from None


def _shown(value: pa.Scalar) -> str:
    try:
        return str(value)
    except (ValueError, OverflowError):  # Python's dates end at the year 9999
        return f"a {value.type} beyond Python's"
