"""Which split each row belongs to.

`hash` and `column` know it at once, row by row; `ratio` needs the number of rows and `time` the distribution of times,
so they are decided between the two passes. Everything depends on rows and their order only, never on chunks.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from embank.pipelines.config.columns import ColumnSplit, HashSplit, OneSplit, RatioSplit, TimeSplit
from embank.pipelines.data.key_hash import combine_hashes, hash_strings, unit_interval
from embank.pipelines.data.prepare.times import NO_TIME, TimeReader
from embank.pipelines.data.prepare.tokens import as_tokens
from embank.pipelines.data.schema import SPLIT_NAMES
from embank.pipelines.data.sources.formats.base import Chunk
from embank.tables.errors import DataError
from embank.tables.ids.mixing import finish_words

Codes = npt.NDArray[np.int8]
_log = logging.getLogger(__name__)
_MERGE_AT = 4_000_000


def hash_split(chunk: Chunk, config: HashSplit, *, first_row: int) -> Codes:
    """Split of each row by the hash of its keys, [N] int8 index into `SPLIT_NAMES`.

    Args:
        first_row: number of the chunk's first row in the whole input, the key when there is none.
    """
    num_rows = chunk.frame.height
    if config.key:
        parts = [hash_strings(chunk.frame.select(as_tokens(chunk, name)).to_series()) for name in config.key]
    else:
        parts = [finish_words(np.arange(first_row, first_row + num_rows, dtype=np.uint64))]
    position_N = unit_interval(combine_hashes(parts, seed=config.seed, num_rows=num_rows))
    return np.searchsorted(np.cumsum(config.ratios)[:2], position_N, side="right").astype(np.int8)


def column_split(chunk: Chunk, config: ColumnSplit) -> Codes:
    """Split of each row as its column says.

    Raises:
        DataError: another value than train, valid or test.
    """
    raw = chunk.frame.select(as_tokens(chunk, config.column)).to_series()
    codes_N = np.full(len(raw), -1, dtype=np.int8)
    for code, name in enumerate(SPLIT_NAMES):
        codes_N[(raw == name).fill_null(False).to_numpy()] = code
    if (codes_N < 0).any():
        row = int(np.argmin(codes_N))
        shown = "missing" if raw[row] is None else repr(raw[row])
        raise DataError(
            f"{chunk.where(row)}: split column {config.column!r} is {shown}; expected train, valid or test. "
            "Mend the line."
        )
    return codes_N


def ratio_bounds(config: RatioSplit, num_rows: int) -> tuple[int, int]:
    """First row of valid and first row of test."""
    first, second = np.rint(np.cumsum(config.ratios)[:2] * num_rows).astype(int)
    return int(first), int(second)


def one_bounds(config: OneSplit) -> tuple[float, float]:
    """First row of valid and first row of test where one split has all rows."""
    return {"train": (math.inf, math.inf), "valid": (0.0, math.inf), "test": (0.0, 0.0)}[config.name]


@dataclass
class TimeBounds:
    """Collects the distribution of times, then places the two cuts between different times."""

    column: str
    _parts: list[tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]] = field(default_factory=list)
    _held: int = 0

    def __post_init__(self) -> None:
        self.reader = TimeReader(self.column)

    def read(self, chunk: Chunk) -> npt.NDArray[np.float64]:
        """Times of the chunk, [N] float64.

        Raises:
            DataError: a time can't be read.
        """
        return self.reader.read(chunk)

    def add(self, times_N: npt.NDArray[np.float64]) -> None:
        """Count the times of rows that are kept."""
        values, counts = np.unique(times_N, return_counts=True)
        self._parts.append((values, counts.astype(np.int64)))
        self._held += len(values)
        if self._held > _MERGE_AT:
            self._merge()

    def bounds(self, config: TimeSplit) -> tuple[float, float]:
        """First time of valid and first time of test: the cuts nearest to the ratios.

        Rows without a time are before all others, so they are training rows; how many is logged.

        Raises:
            DataError: fewer than three different times.
        """
        self._merge()
        values, counts = self._parts[0]
        without = int(counts[values == NO_TIME].sum())
        num_times = len(values) - bool(without)
        if num_times < 3:
            raise DataError(
                f"time column {self.column!r} has {num_times} different values; a split by time needs at least 3, "
                "because "
                "rows of one time stay together. Split by ratio or by hash."
            )
        if without:
            _log.warning("time column %r is missing in %s rows; they go to training", self.column, f"{without:,}")
        before = np.cumsum(counts)[:-1]  # rows before each possible cut
        targets = np.cumsum(config.ratios)[:2] * counts.sum()
        first = min(int(np.argmin(np.abs(before - targets[0]))), len(before) - 2)
        first = max(first, int(bool(without)))  # training gets rows with a time too
        second = max(int(np.argmin(np.abs(before - targets[1]))), first + 1)
        return float(values[first + 1]), float(values[second + 1])

    def _merge(self) -> None:
        values = np.concatenate([part[0] for part in self._parts])
        counts = np.concatenate([part[1] for part in self._parts])
        unique, inverse = np.unique(values, return_inverse=True)
        merged = np.zeros(len(unique), dtype=np.int64)
        np.add.at(merged, inverse, counts)
        self._parts, self._held = [(unique, merged)], 0


def split_by_bounds(values_N: npt.NDArray[np.float64], bounds: tuple[float, float]) -> Codes:
    """Split of each value (a time or a row number): below the first bound train, below the second valid, else test."""
    return np.searchsorted(np.asarray(bounds, dtype=np.float64), values_N, side="right").astype(np.int8)
