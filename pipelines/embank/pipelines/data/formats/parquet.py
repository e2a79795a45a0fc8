"""Parquet input, read row group by row group."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from embank.pipelines.data.ahead import Clock, run_ahead
from embank.pipelines.data.formats.base import Chunk, check_inputs, trimmed
from embank.pipelines.data.formats.blocks import file_bytes
from embank.tables.errors import DataError

BATCH_ROWS = 131_072


class ParquetSource:
    """Parquet files with the same columns, read one after the other.

    Raises:
        DataError: a file is missing, damaged, has no rows, or other columns than the first.
    """

    default = None
    twice: Collection[str] = ()

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = [file for path in paths for file in _files(path)]
        check_inputs(self._paths)
        self.name = str(self._paths[0])
        self.total_bytes = file_bytes(self._paths)
        self.columns: tuple[str, ...] = _names(self._paths[0])
        for path in self._paths[1:]:
            odd = sorted(set(_names(path)) ^ set(self.columns))
            if odd:
                raise DataError(
                    f"{path} differs from {self.name} in column {odd[0]!r}. Prepare files of one layout together."
                )

    def chunks(self, columns: Sequence[str]) -> Iterator[Chunk]:
        """Yield the named columns of all rows, in the files' own types."""
        for path in self._paths:
            yield from run_ahead(self._chunks(path, columns), depth=2, clock=Clock())

    def _chunks(self, path: Path, columns: Sequence[str]) -> Generator[Chunk, None, None]:
        with _open(path) as file:
            if file.metadata.num_rows == 0:
                raise DataError(f"{path} has no rows. Check that the file is complete.")
            size, num_rows, first_row = path.stat().st_size, file.metadata.num_rows, 0
            for batch in _batches(file, path, columns, BATCH_ROWS):
                done = [size * row // num_rows for row in (first_row, first_row + batch.num_rows)]
                yield Chunk(frame=_frame(batch, columns), where=_Where(path, first_row), num_bytes=done[1] - done[0])
                first_row += batch.num_rows


class _Where:
    """Row of a chunk to "FILE, row N" (1-based)."""

    def __init__(self, path: Path, first_row: int) -> None:
        self._path, self._first_row = path, first_row

    def __call__(self, row: int) -> str:
        return f"{self._path}, row {self._first_row + row + 1}"


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.parquet"))
    if not files:
        raise DataError(f"the folder {path} holds no *.parquet file. Check --input.")
    return files


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(str(path))
    except (pa.ArrowException, OSError) as error:
        what = "is empty" if path.stat().st_size == 0 else f"is no Parquet file or is damaged ({error})"
        raise DataError(f"{path} {what}. Check that the file is complete.") from error


def _names(path: Path) -> tuple[str, ...]:
    with _open(path) as file:
        return tuple(file.schema_arrow.names)


def _batches(file: pq.ParquetFile, path: Path, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    try:
        yield from file.iter_batches(batch_size=batch_rows, columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged ({error}). Copy or download the file again.") from error


def _frame(batch: pa.RecordBatch, columns: Sequence[str]) -> pl.DataFrame:
    return trimmed(pl.DataFrame(pl.from_arrow(pa.Table.from_batches([batch]))).select(columns))
