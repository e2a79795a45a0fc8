"""The intermediate file between the two passes: provisional codes, numbers and labels, in blocks of a fixed number of
rows.

It holds what the second pass needs so that text is parsed once only. Its blocks do not depend on how the input was
chunked, which makes everything computed from it independent of that too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq


class BlockWriter:
    """Writes tables to a Parquet file as row groups of exactly `block_rows` rows, the last one shorter.

    Args:
        dictionary: columns to encode with a dictionary (those with few different values).
        compression: Parquet codec.
        checksums: give every page a checksum, which readers verify.
    """

    def __init__(
        self,
        path: Path,
        schema: pa.Schema,
        *,
        block_rows: int,
        dictionary: Sequence[str] = (),
        compression: str = "lz4",
        checksums: bool = False,
    ) -> None:
        self.num_rows = 0
        self._block_rows = block_rows
        self._pending: list[pa.Table] = []
        self._num_pending = 0
        self._file = pa.OSFile(str(path), mode="wb")
        self._writer = pq.ParquetWriter(
            self._file,
            schema,
            compression=compression,
            use_dictionary=list(dictionary),
            write_statistics=False,
            write_page_checksum=checksums,
        )

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        self.num_rows += table.num_rows
        self._pending.append(table)
        self._num_pending += table.num_rows
        if self._num_pending >= self._block_rows:
            self._flush(whole_blocks=True)

    def close(self) -> None:
        """Write the last block and the footer."""
        self._flush(whole_blocks=False)
        self._writer.close()
        self._file.close()

    def abandon(self) -> None:
        """Close the file without caring for what is in it."""
        self._pending = []
        self._writer.is_open = False  # else its finalizer writes a footer to the closed file
        with contextlib.suppress(OSError):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def _flush(self, *, whole_blocks: bool) -> None:
        if not self._num_pending:
            return
        table = pa.concat_tables(self._pending)
        end = self._num_pending - self._num_pending % self._block_rows if whole_blocks else self._num_pending
        for start in range(0, end, self._block_rows):
            block = table.slice(start, min(self._block_rows, end - start))
            self._writer.write_table(block, row_group_size=self._block_rows)
        self._num_pending -= end
        self._pending = [table.slice(end)] if self._num_pending else []


class SpoolReader:
    """Reads a spool block by block, some columns at a time."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(str(path))
        self.num_rows: int = self._file.metadata.num_rows
        self.columns: list[str] = list(self._file.schema_arrow.names)

    def blocks(self, columns: Sequence[str], *, blocks_at_once: int = 1) -> Iterator[pa.Table]:
        """Tables of `blocks_at_once` blocks each, from the first row to the last."""
        num_blocks = self._file.num_row_groups
        for start in range(0, num_blocks, blocks_at_once):
            groups = list(range(start, min(start + blocks_at_once, num_blocks)))
            yield self._file.read_row_groups(groups, columns=list(columns)).combine_chunks()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
