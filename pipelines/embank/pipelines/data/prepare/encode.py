"""First pass: raw chunks to the spool's columns (provisional codes, transformed numbers, labels, split or what decides
it)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from embank.pipelines.config.columns import ColumnSplit, HashSplit, PrepareConfig, TimeSplit
from embank.pipelines.config.reserved import GROUP_COLUMN, LABEL_COLUMN
from embank.pipelines.data.key_hash import hash_strings
from embank.pipelines.data.prepare.labels import LabelRule
from embank.pipelines.data.prepare.nulls import with_nulls
from embank.pipelines.data.prepare.numbers import read_transformed
from embank.pipelines.data.prepare.splits import TimeBounds, column_split, hash_split
from embank.pipelines.data.prepare.times import TimeReader
from embank.pipelines.data.prepare.token_kinds import TokenKinds
from embank.pipelines.data.prepare.tokens import (
    TokenIndex,
    as_bags,
    as_tokens,
    hashed_bags,
    hashed_tokens,
    refuse_bracketed,
)
from embank.pipelines.data.sources.formats.base import Chunk

NO_LABEL = -1
SPLIT_SPOOL = "__split"
TIME_SPOOL = "__time"


@dataclass(frozen=True)
class Spooled:
    """Spool columns of one chunk, after rows without a label are dropped."""

    table: pa.Table
    num_dropped: int


class Encoder:
    """Turns chunks into spool tables and grows the token dictionaries.

    Args:
        config: columns and rules.
        labelled: whether the chunks have labels; without them each label is `NO_LABEL`.
        time_column: a column of times to take along, where the split is not by time.

    Attributes:
        indexes: feature to its dictionary.
        times: distribution of times, for a split by time.
        schema: Arrow schema of the spool.
    """

    def __init__(self, config: PrepareConfig, *, labelled: bool = True, time_column: str | None = None) -> None:
        self.indexes = {name: TokenIndex() for name in config.with_vocabulary}
        self.times = TimeBounds(config.split.column) if isinstance(config.split, TimeSplit) else None
        is_extra = time_column is not None and self.times is None
        self._clock = TimeReader(str(time_column)) if is_extra else None
        self.schema = _spool_schema(config, timed=is_extra or self.times is not None)
        self._config = config
        self._rule = LabelRule.build(config.label) if labelled else None
        self._kinds = TokenKinds(_token_columns(config))
        self._numbers = _number_columns(config, time_column)
        self._num_rows = 0

    def encode(self, chunk: Chunk) -> Spooled:
        """Encode one chunk; chunks come in order.

        Raises:
            DataError: a label, number, time or split value that can't be used, with its line.
        """
        config, label = self._config, self._config.label.column
        is_boolean = chunk.frame.schema.get(label) == pl.Boolean  # two classes, of which false is no number 0
        numbers = self._numbers - {label} if is_boolean else self._numbers
        chunk = with_nulls(chunk, config.null_values, numbers=numbers, hashed=config.hashed)
        self._kinds.check(chunk)
        if self._num_rows == 0:
            for name, separator in self._config.multivalued.items():
                refuse_bracketed(chunk, name, separator)
        labels_N = self._labels(chunk)
        columns: dict[str, pa.Array] = {LABEL_COLUMN: pa.array(labels_N)}
        columns |= self._codes(chunk)
        columns |= self._hashes(chunk)
        for name, numeric in self._config.numeric.items():
            columns[name] = pa.array(read_transformed(chunk, name, numeric.transform))
        if self._config.group is not None:
            columns[GROUP_COLUMN] = group_codes(chunk, self._config.group)
        columns |= self._split_columns(chunk)
        if self._clock is not None:
            columns[TIME_SPOOL] = pa.array(self._clock.read(chunk))
        self._num_rows += chunk.frame.height
        table = pa.table([columns[name] for name in self.schema.names], schema=self.schema)
        return self._drop(table, labels_N)

    @property
    def has_dates(self) -> bool:
        """Whether the times are of days, not bare numbers."""
        reader = self._clock if self.times is None else self.times.reader
        return reader is not None and reader.has_dates

    def _labels(self, chunk: Chunk) -> npt.NDArray[np.int8]:
        if self._rule is None:
            return np.full(chunk.frame.height, NO_LABEL, dtype=np.int8)
        return self._rule.apply(chunk)

    def _codes(self, chunk: Chunk) -> dict[str, pa.Array]:
        config = self._config
        single = [
            self.indexes[name].codes(as_tokens(chunk, name)).alias(name)
            for name in config.categorical
            if name in self.indexes
        ]
        bags = [
            self.indexes[name].bag_codes(as_bags(chunk, name, separator, nulls=config.null_values)).alias(name)
            for name, separator in config.multivalued.items()
            if name in self.indexes
        ]
        if not single and not bags:
            return {}
        encoded = chunk.frame.select(*single, *bags).to_arrow()
        return {
            name: encoded[name].cast(self.schema.field(name).type).combine_chunks() for name in encoded.column_names
        }

    def _hashes(self, chunk: Chunk) -> dict[str, pa.Array]:
        """Final ids of the features without a vocabulary."""
        separators = self._config.multivalued
        return {
            name: hashed_bags(chunk, name, separators[name], nulls=self._config.null_values)
            if name in separators
            else pa.array(hashed_tokens(chunk, name))
            for name in self._config.hashed
        }

    def _split_columns(self, chunk: Chunk) -> dict[str, pa.Array]:
        split = self._config.split
        if isinstance(split, HashSplit):
            return {SPLIT_SPOOL: pa.array(hash_split(chunk, split, first_row=self._num_rows))}
        if isinstance(split, ColumnSplit):
            return {SPLIT_SPOOL: pa.array(column_split(chunk, split))}
        if self.times is not None:
            return {TIME_SPOOL: pa.array(self.times.read(chunk))}
        return {}

    def _drop(self, table: pa.Table, labels_N: npt.NDArray[np.int8]) -> Spooled:
        keep_N = labels_N >= 0 if self._rule is not None else np.ones(len(labels_N), dtype=np.bool_)
        num_dropped = len(keep_N) - int(np.count_nonzero(keep_N))
        kept = table.filter(pa.array(keep_N)) if num_dropped else table
        if self.times is not None:
            self.times.add(kept[TIME_SPOOL].to_numpy())
        return Spooled(kept, num_dropped)


def _number_columns(config: PrepareConfig, time_column: str | None) -> set[str]:
    """Raw columns whose text is read as numbers where it is some, and as no tokens. Labels without a rule are 0 and 1:
    two words, which `0.0` under `null_values` does not mean."""
    label = config.label.column if config.label.positive or config.label.negative else None
    split = config.split.column if isinstance(config.split, TimeSplit) else None
    return {*config.numeric, *(name for name in (label, split, time_column) if name is not None)} - set(config.features)


def _token_columns(config: PrepareConfig) -> list[str]:
    """Raw columns whose values are told apart by their tokens."""
    keys = config.split.key if isinstance(config.split, HashSplit) else []
    return [*config.features, *keys, *([] if config.group is None else [config.group])]


def group_codes(chunk: Chunk, column: str) -> pa.Array:
    """Codes that tell group values apart, [N] int64: the stable hash of the token (a collision among a million values
    has probability 3e-8), so they need no dictionary and agree between data sets. A missing value has the code
    `NO_GROUP`.
    """
    tokens = chunk.frame.select(as_tokens(chunk, column)).to_series()
    return pa.array(hash_strings(tokens).view(np.int64))


def id_type(name: str, config: PrepareConfig) -> pa.DataType:
    """Arrow type of a feature's codes or ids, in the spool and in the part files: 64 bits without a vocabulary, else
    32."""
    single = pa.int64() if name in config.hashed else pa.int32()
    return pa.list_(pa.field("item", single, nullable=False)) if name in config.multivalued else single


def _spool_schema(config: PrepareConfig, *, timed: bool) -> pa.Schema:
    fields: list[tuple[str, pa.DataType]] = [(LABEL_COLUMN, pa.int8())]
    fields += [(name, id_type(name, config)) for name in config.features]
    for name, numeric in config.numeric.items():
        fields.append((name, pa.float64() if numeric.transform == "standard" else pa.float32()))
    fields += [(GROUP_COLUMN, pa.int64())] if config.group is not None else []
    if isinstance(config.split, (HashSplit, ColumnSplit)):
        fields.append((SPLIT_SPOOL, pa.int8()))
    if timed:
        fields.append((TIME_SPOOL, pa.float64()))
    return pa.schema([pa.field(name, dtype, nullable=False) for name, dtype in fields])
