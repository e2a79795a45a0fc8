"""The part files of a split: Parquet in, blocks of checked rows out."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embank.pipelines.config.reserved import GROUP_COLUMN, LABEL_COLUMN
from embank.pipelines.data.prepare.blocks import Array, Bags, Block, IntArray, Piece, RowGroup
from embank.pipelines.data.schema import Schema
from embank.tables.errors import DataError
from embank.tables.ids.token_space import NUM_TOKEN_IDS
from embank.tables.storage.resources import refuse_exhausted


class Parts:
    """The part files of a split: opened once for their footers, then read by row group.

    Raises:
        DataError: no such split, no part files, an unreadable file, a missing column, another type, another number of
            rows than the schema says. Reading raises it for values that the schema does not allow.
    """

    def __init__(self, path: Path, split: str, *, schema: Schema) -> None:
        self._schema = schema
        self._paths = _part_paths(path, split, schema)
        self._metadata = [self._open(part) for part in self._paths]
        self.groups = list(self._row_groups())
        self.num_rows = sum(group.num_rows for group in self.groups)
        expected = schema.split(split).num_rows
        if self.num_rows != expected:
            raise DataError(
                f"{path / split}: the part files hold {self.num_rows} rows, schema.json says {expected}: "
                "a part is missing or was added. Prepare the data again."
            )

    def read_block(self, pieces: Sequence[Piece], *, order_R: IntArray | None) -> Block:
        """Decode the pieces, check every value, and put the rows in the given order (None: as they stand)."""
        tables = [self._read(piece) for piece in pieces]
        fields = self._schema.categorical
        num_rows = sum(piece.stop - piece.start for piece in pieces)
        singles = [(field.name, field.num_embeddings) for field in fields if not field.multivalued]
        is_wide = any(num_embeddings >= NUM_TOKEN_IDS for _, num_embeddings in singles)
        ids_SR = np.empty((len(singles), num_rows), dtype=np.int64 if is_wide else np.int32)
        for row, (name, num_embeddings) in enumerate(singles):
            columns = [self._ids(table, piece, name, num_embeddings) for table, piece in tables]
            _place([column.astype(ids_SR.dtype, copy=False) for column in columns], order_R, ids_SR[row])
        dense_IR = np.empty((len(self._schema.numeric), num_rows), dtype=np.float32)
        for row, numeric in enumerate(self._schema.numeric):
            _place([self._numbers(table, piece, numeric.name) for table, piece in tables], order_R, dense_IR[row])
        bags = tuple(
            self._bags(tables, field.name, field.num_embeddings, order_R) for field in fields if field.multivalued
        )
        labels_R = np.empty(num_rows, dtype=np.int8)
        _place([self._labels(table, piece) for table, piece in tables], order_R, labels_R)
        groups_R = None
        if self._schema.group is not None:
            groups_R = np.empty(num_rows, dtype=np.int64)
            _place([self._flat(table, piece, GROUP_COLUMN) for table, piece in tables], order_R, groups_R)
        return Block(ids=ids_SR, bags=bags, dense=dense_IR, labels=labels_R, groups=groups_R, num_rows=num_rows)

    def _open(self, path: Path) -> Any:
        try:
            file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            refuse_exhausted(error, doing=f"reading {path}")
            raise DataError(f"{path} can't be read as Parquet ({error}). Prepare the data again.") from error
        with file:
            for name, check, wanted in _wanted_columns(self._schema):
                index = file.schema_arrow.get_field_index(name)
                if index < 0:
                    raise DataError(f"{path} has no column '{name}', which schema.json lists. Prepare the data again.")
                found = file.schema_arrow.field(index).type
                if not check(found):
                    raise DataError(
                        f"{path}: column '{name}' has type {found}, expected {wanted}. Prepare the data again."
                    )
            return file.metadata

    def _row_groups(self) -> Iterable[RowGroup]:
        for part, metadata in enumerate(self._metadata):
            counts = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
            firsts = itertools.accumulate(counts, initial=0)
            for index, (num_rows, first_row) in enumerate(zip(counts, firsts, strict=False)):
                if num_rows:
                    yield RowGroup(part=part, index=index, first_row=first_row, num_rows=num_rows)

    def _read(self, piece: Piece) -> tuple[Any, Piece]:
        path = self._paths[piece.group.part]
        names = [name for name, _, _ in _wanted_columns(self._schema)]
        try:
            with pq.ParquetFile(
                path, metadata=self._metadata[piece.group.part], page_checksum_verification=True
            ) as file:
                # One thread: pyarrow's pool would take the cores that the training step computes on.
                table = file.read_row_group(piece.group.index, columns=names, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            refuse_exhausted(error, doing=f"reading {path}")
            raise DataError(
                f"{path}: row group {piece.group.index} can't be read ({error}). Prepare the data again."
            ) from error
        return table.slice(piece.start, piece.stop - piece.start), piece

    def _where(self, piece: Piece, row: int) -> str:
        """'<file>, row <row in that file>'; `row` counts within the piece."""
        return f"{self._paths[piece.group.part]}, row {piece.group.first_row + piece.start + row}"

    def _array(self, table: Any, piece: Piece, name: str) -> Any:
        """The column as one Arrow array without nulls."""
        column = table.column(name)
        array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        if array.null_count:
            row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
            raise DataError(f"{self._where(piece, row)}: column '{name}' is null. Prepare the data again.")
        return array

    def _flat(self, table: Any, piece: Piece, name: str) -> Array:
        return _view(self._array(table, piece, name))

    def _ids(self, table: Any, piece: Piece, name: str, num_embeddings: int) -> Array:
        ids = self._flat(table, piece, name)
        bad = _first_outside(ids, num_embeddings)
        if bad is not None:
            raise self._id_error(piece, bad, name, int(ids[bad]), num_embeddings)
        return ids

    def _id_error(self, piece: Piece, row: int, name: str, value: int, num_embeddings: int) -> DataError:
        if num_embeddings >= NUM_TOKEN_IDS:
            return DataError(
                f"{self._where(piece, row)}: feature '{name}' has id {value}, but hashes of tokens are 0 or more. "
                "Prepare the data again."
            )
        return DataError(
            f"{self._where(piece, row)}: feature '{name}' has id {value}, but its saved vocabulary has "
            f"{num_embeddings} "
            f"ids (0 to {num_embeddings - 1}). The part files and schema.json are not from the same preparation: "
            "prepare the data again."
        )

    def _labels(self, table: Any, piece: Piece) -> Array:
        labels = self._flat(table, piece, LABEL_COLUMN)
        bad = None if self._schema.label is None else _first_outside(labels, 2)
        if bad is not None:
            raise DataError(
                f"{self._where(piece, bad)}: label is {int(labels[bad])}, expected 0 or 1. Prepare the data again."
            )
        return labels

    def _numbers(self, table: Any, piece: Piece, name: str) -> Array:
        values = self._flat(table, piece, name)
        # A NaN makes the minimum a NaN; an infinity is the minimum or the maximum: two quick passes, no mask.
        if not (np.isfinite(values.min()) and np.isfinite(values.max())):
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise DataError(
                f"{self._where(piece, row)}: numeric column '{name}' is {values[row]}, expected a finite number. "
                "Prepare the data again, or replace the value in the input."
            )
        return values

    def _bags(
        self, tables: Sequence[tuple[Any, Piece]], name: str, num_embeddings: int, order_R: IntArray | None
    ) -> Bags:
        values, lengths = [], []
        for table, piece in tables:
            array = self._array(table, piece, name)
            offsets = _view(array.offsets).astype(np.int64, copy=False)
            child = array.values.slice(offsets[0], offsets[-1] - offsets[0])
            if child.null_count:
                raise DataError(f"{self._where(piece, 0)} or later: a list in column '{name}' has a null inside.")
            ids = _view(child)
            bad = _first_outside(ids, num_embeddings)
            if bad is not None:
                row = int(np.searchsorted(offsets - offsets[0], bad, side="right")) - 1
                raise self._id_error(piece, row, name, int(ids[bad]), num_embeddings)
            values.append(ids)
            lengths.append(np.diff(offsets))
        offsets_R1 = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.concatenate(lengths))])
        bags = Bags(values=np.concatenate(values), offsets=offsets_R1)
        return bags if order_R is None else bags.permuted(order_R)


def _view(array: Any) -> Array:
    """An Arrow array without nulls, not copied. (`to_numpy` would import pandas where it is installed.)"""
    values: Array = np.from_dlpack(array)
    return values


def _part_paths(path: Path, split: str, schema: Schema) -> list[Path]:
    paths = sorted((path / split).glob("part-*.parquet"))
    if not paths and schema.split(split).num_rows:
        raise DataError(f"{path / split} holds no part-*.parquet files. Prepare the data again.")
    return paths


def _wanted_columns(schema: Schema) -> list[tuple[str, Any, str]]:
    """Name, type predicate and type name of every column that the loader reads."""
    columns: list[tuple[str, Any, str]] = [(LABEL_COLUMN, pa.types.is_int8, "int8")]
    for field in schema.categorical:
        ids = (pa.types.is_int32, "int32") if field.has_vocabulary else (pa.types.is_int64, "int64")
        columns.append(
            (field.name, partial(_is_list, of=ids[0]), f"list<{ids[1]}>") if field.multivalued else (field.name, *ids)
        )
    columns += [(field.name, pa.types.is_float32, "float32") for field in schema.numeric]
    if schema.group is not None:
        columns.append((GROUP_COLUMN, pa.types.is_int64, "int64"))
    return columns


def _is_list(found: Any, *, of: Callable[[Any], bool]) -> bool:
    is_list = pa.types.is_list(found) or pa.types.is_large_list(found)
    return bool(is_list and of(found.value_type))


def _first_outside(values: Array, size: int) -> int | None:
    """Index of the first value that is negative or at least `size`, or None."""
    # Read as unsigned a negative value is huge, so one vectorised maximum settles both sides.
    unsigned = values.view(f"u{values.dtype.itemsize}")
    if len(values) == 0 or unsigned.max() < size:
        return None
    return int(np.flatnonzero(unsigned >= size)[0])


def _place(columns: Sequence[Array], order_R: IntArray | None, out_R: Array) -> None:
    """Lay the columns end to end in `out_R`, permuted if an order is given."""
    if order_R is None:
        np.concatenate(columns, out=out_R)
        return
    joined = columns[0] if len(columns) == 1 else np.concatenate(columns)
    np.take(joined, order_R, out=out_R, mode="clip")  # any mode but 'raise' writes straight into `out`
