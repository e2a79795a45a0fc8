"""Tables as Parquet, which vector stores import: `id`, `token` where there are tokens, `vector`."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embank.tables.serving.export.decoded import chunk_rows, decoded, folder_names, table_facts
from embank.tables.serving.table import PackedTable
from embank.tables.specs import TableSpec

PART_NBYTES = 4_000_000_000
"""Bytes of a file at most: vector stores refuse larger ones."""
Tokens = Callable[[TableSpec, int], Iterator[Sequence[str | None]]]
"""From a table and a number to the tokens of its ids in order, so many at a time."""


def write_parquet(
    folder: Path,
    tables: Iterable[tuple[TableSpec, PackedTable]],
    *,
    tokens: Tokens | None = None,
    part_nbytes: int = PART_NBYTES,
    written: Callable[[int], None] = lambda rows: None,
    taken: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Writes the rows of tables, decoded, one folder each.

    Memory is that of a few chunks, however large a table is.

    Args:
        folder: is there.
        tables: with ids that can be listed.
        tokens: of a table's ids; it gives nothing for a table without.
        part_nbytes: bytes of a file at most, as far as one row fits into them.
        written: is told of each number of rows that are written.
        taken: names in the folder that no table may have.

    Returns:
        Of each table what a manifest says of it, its `parts` among it.
    """
    tables = list(tables)
    names = folder_names([spec for spec, _ in tables], taken=taken)
    facts = []
    for spec, pack in tables:
        home = folder / names[spec.name]
        home.mkdir()
        parts = _Parts(home, part_nbytes)
        try:
            for batch in _batches(spec, pack, tokens):
                parts.write(batch)
                written(batch.num_rows)
        finally:
            parts.close()
        facts.append({**table_facts(spec), "parts": [f"{home.name}/{name}" for name in parts.names]})
    return facts


def _batches(spec: TableSpec, pack: PackedTable, tokens: Tokens | None) -> Iterator[pa.Table]:
    size, first = chunk_rows(spec), 0
    if tokens is not None:
        for texts in tokens(spec, size):
            yield _batch(spec, pack, first, first + len(texts), texts)
            first += len(texts)
    if first == 0:
        for start in range(0, spec.num_embeddings, size):
            yield _batch(spec, pack, start, min(start + size, spec.num_embeddings), None)
    elif first != spec.num_embeddings:
        raise ValueError(f"table '{spec.name}' has {spec.num_embeddings:,} ids and {first:,} tokens")


def _batch(spec: TableSpec, pack: PackedTable, first: int, last: int, texts: Sequence[str | None] | None) -> pa.Table:
    rows_ND = decoded(spec, pack, first, last).contiguous()
    count, dim = rows_ND.shape
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * np.int32(dim))
    vectors = pa.ListArray.from_arrays(offsets, pa.array(rows_ND.numpy().reshape(-1)))
    columns: dict[str, Any] = {"id": pa.array(np.arange(first, last, dtype=np.int64))}
    if texts is not None:
        columns["token"] = pa.array(texts, type=pa.string())
    return pa.table({**columns, "vector": vectors})


class _Parts:
    """Files of a table, none of which grows above a bound."""

    def __init__(self, folder: Path, most_nbytes: int) -> None:
        self.folder, self.most = folder, most_nbytes
        self.names: list[str] = []
        self._writer: pq.ParquetWriter | None = None
        self._sink: Any = None

    def write(self, batch: pa.Table) -> None:
        """Adds rows, in as many files as they need."""
        nbytes = _most_nbytes(batch)
        while batch.num_rows:
            room = self.most - (self._sink.tell() if self._sink is not None else 0) - _foot_nbytes(self._row_groups)
            rows = int(batch.num_rows * room / nbytes) if room < nbytes else batch.num_rows
            if rows < 1 and self._writer is not None:
                self.close()
                continue
            part = batch.slice(0, max(rows, 1))
            if self._writer is None:
                self._open(batch.schema)
            assert self._writer is not None
            self._writer.write_table(part)
            self._row_groups += 1
            batch = batch.slice(part.num_rows)
            nbytes = _most_nbytes(batch)

    _row_groups = 0

    def _open(self, schema: pa.Schema) -> None:
        self.names.append(f"part-{len(self.names):05d}.parquet")
        self._sink = (self.folder / self.names[-1]).open("wb")
        # Vectors hardly repeat, and noise does not shrink: neither dictionaries nor compression pay.
        self._writer = pq.ParquetWriter(self._sink, schema, compression="none", use_dictionary=False)
        self._row_groups = 0

    def close(self) -> None:
        """Ends the last file; a table without rows has one, too."""
        if self._writer is not None:
            self._writer.close()
            self._sink.close()
        self._writer = self._sink = None
        self._row_groups = 0


def _most_nbytes(batch: pa.Table) -> int:
    """What a batch takes in a file at most: its numbers, levels of its lists, statistics and page headers."""
    nbytes, rows = int(batch.nbytes), int(batch.num_rows)
    return nbytes + nbytes // 50 + rows + 4096


def _foot_nbytes(row_groups: int) -> int:
    """What is kept free for a file's end, which describes each group of rows."""
    return 4096 + 1024 * (row_groups + 1)
