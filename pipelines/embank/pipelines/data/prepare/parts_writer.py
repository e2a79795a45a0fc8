"""Second pass: the spool's blocks to the part files of the splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embank.pipelines.config.columns import PrepareConfig
from embank.pipelines.config.reserved import GROUP_COLUMN, LABEL_COLUMN
from embank.pipelines.data.prepare.distinct import DistinctCount
from embank.pipelines.data.prepare.encode import id_type
from embank.pipelines.data.prepare.numeric_fields import finished, numeric_columns
from embank.pipelines.data.prepare.profile import TrainingNumbers
from embank.pipelines.data.prepare.spool import BlockWriter
from embank.pipelines.data.prepare.tally import Tally
from embank.pipelines.data.schema import SPLIT_NAMES, NumericField
from embank.tables.ids.token_space import MISSING_ID

PART_ROWS = 2**20
_DICTIONARY_IDS = 2**15


class SplitWriter:
    """Writes the part files of one split: about `PART_ROWS` rows each (whole row groups), the last one fewer.

    Args:
        dictionary: columns to encode with a dictionary.
    """

    def __init__(self, folder: Path, schema: pa.Schema, *, row_group_rows: int, dictionary: Sequence[str]) -> None:
        folder.mkdir()
        self._folder, self._schema = folder, schema
        self._row_group_rows, self._dictionary = row_group_rows, list(dictionary)
        self._part_rows = max(1, PART_ROWS // row_group_rows) * row_group_rows
        self._num_parts = 0
        self._part: BlockWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        while table.num_rows:
            part = self._part or self._next_part()
            room = self._part_rows - part.num_rows
            part.write(table.slice(0, room))
            table = table.slice(room)
            if part.num_rows == self._part_rows:
                part.close()
                self._part = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._part is not None:
            if kind is None:
                self._part.close()
            else:
                self._part.abandon()

    def _next_part(self) -> BlockWriter:
        self._part = BlockWriter(
            self._folder / f"part-{self._num_parts:05d}.parquet",
            self._schema,
            block_rows=self._row_group_rows,
            dictionary=self._dictionary,
            checksums=True,
        )
        self._num_parts += 1
        return self._part


class Finisher:
    """Turns spool blocks into final columns.

    Args:
        id_of_code: feature to its map from provisional codes to ids.
        numeric: the numeric fields of the schema, in its order.
        numbers: is given the numbers of the training part.

    Attributes:
        num_present: numeric or hashed feature to the number of values in training rows.
        distinct: hashed feature to the number of its different values in training rows.
        tally: unknown and missing values of all features.
    """

    def __init__(
        self,
        config: PrepareConfig,
        *,
        id_of_code: Mapping[str, npt.NDArray[np.int32]],
        numeric: Sequence[NumericField],
        numbers: TrainingNumbers | None = None,
    ) -> None:
        self.schema = part_schema(config)
        self.num_present = dict.fromkeys([*config.numeric, *config.hashed], 0)
        self.distinct = {name: DistinctCount() for name in config.hashed}
        self.tally = Tally()
        self._config, self._id_of_code = config, id_of_code
        self._numeric, self._numbers = {field.name: field for field in numeric}, numbers

    @property
    def dictionary(self) -> list[str]:
        """Columns worth a dictionary: those with few ids."""
        return [name for name, ids in self._id_of_code.items() if len(ids) <= _DICTIONARY_IDS]

    def finish(self, block: pa.Table, splits_N: npt.NDArray[np.int8]) -> pa.Table:
        """Final columns of a block, rows in the same order."""
        columns: dict[str, pa.Array] = {LABEL_COLUMN: block[LABEL_COLUMN].chunk(0)}
        self.tally.add_rows(splits_N)
        for name in self._config.features:
            column = block[name].chunk(0)
            if name in self.distinct:
                self._count(name, column, splits_N)
                columns[name] = column
            else:
                columns[name] = self._ids(name, column, splits_N)
        for name in self._config.numeric:
            values_N = block[name].to_numpy()
            missing_N = np.isnan(values_N)
            self.num_present[name] += int(np.count_nonzero(~missing_N & (splits_N == 0)))
            self.tally.add_numbers(name, missing_N, splits_N)
            written_N = finished(values_N, self._numeric[name])
            if self._numbers is not None:
                self._numbers.add(name, written_N[splits_N == 0])
            columns[name] = pa.array(written_N)
            if name in self._config.indicators:
                columns[self._config.indicators[name]] = pa.array(missing_N.astype(np.float32))
        if self._config.group is not None:
            columns[GROUP_COLUMN] = block[GROUP_COLUMN].chunk(0)
        return pa.table([columns[name] for name in self.schema.names], schema=self.schema)

    def _ids(self, name: str, column: pa.Array, splits_N: npt.NDArray[np.int8]) -> pa.Array:
        """Ids of a feature with a vocabulary, from its codes."""
        id_of_code = self._id_of_code[name]
        if name not in self._config.multivalued:
            codes_N = column.to_numpy()
            ids_N = id_of_code[codes_N]
            self.tally.add_ids(name, ids_N, splits_N, lengths_N=None, missing=codes_N == 0)
            return pa.array(ids_N)
        offsets_N = column.offsets.to_numpy()
        ids_L = id_of_code[column.flatten().to_numpy()]
        no_value_is_missing = np.zeros(len(ids_L), dtype=np.bool_)
        self.tally.add_ids(name, ids_L, splits_N, lengths_N=np.diff(offsets_N), missing=no_value_is_missing)
        return pa.ListArray.from_arrays(pa.array(offsets_N - offsets_N[0]), pa.array(ids_L))

    def _count(self, name: str, column: pa.Array, splits_N: npt.NDArray[np.int8]) -> None:
        """Takes note of a hashed feature's ids: of all, and of those in training."""
        is_list = pa.types.is_list(column.type)
        every, lengths_N = (column.flatten(), np.diff(column.offsets.to_numpy())) if is_list else (column, None)
        self.tally.add_hashed(name, every.to_numpy(), splits_N, lengths_N=lengths_N)
        trained = column.filter(pa.array(splits_N == 0))
        ids = (trained.flatten() if pa.types.is_list(column.type) else trained).to_numpy()
        self.distinct[name].add(ids)
        self.num_present[name] += int(np.count_nonzero(ids != MISSING_ID))


def part_schema(config: PrepareConfig) -> pa.Schema:
    """Arrow schema of the part files; nothing is null."""
    fields = [pa.field(LABEL_COLUMN, pa.int8(), nullable=False)]
    fields += [pa.field(name, id_type(name, config), nullable=False) for name in config.features]
    fields += [pa.field(name, pa.float32(), nullable=False) for name in numeric_columns(config)]
    fields += [pa.field(GROUP_COLUMN, pa.int64(), nullable=False)] if config.group is not None else []
    return pa.schema(fields)


def write_split_rows(table: pa.Table, splits_N: npt.NDArray[np.int8], writers: Sequence[SplitWriter]) -> None:
    """Give each split its rows."""
    for code in range(len(SPLIT_NAMES)):
        rows_N = splits_N == code
        count = int(np.count_nonzero(rows_N))
        if count == len(rows_N):
            writers[code].write(table)
        elif count:
            writers[code].write(table.filter(pa.array(rows_N)))
