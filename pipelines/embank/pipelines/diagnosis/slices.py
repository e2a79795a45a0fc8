"""Calibration of parts of the rows: of a day, of a tenth of the time, or of a feature's value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from embank.pipelines.data.loading.batch import Batch
from embank.pipelines.data.prepare.like import Likeness
from embank.pipelines.data.prepare.times import NO_TIME
from embank.pipelines.data.schema import TIME_COLUMN, TIMES_FOLDER, VOCAB_FOLDER, Schema
from embank.tables import ConfigError, DataError, Vocabulary
from embank.tables.wording import did_you_mean

MOST_SLICES = 60
NUM_PARTS = 10
MOST_TIMES = 2**18
_DAY = 86_400_000_000  # microseconds
_NO_DAY = np.iinfo(np.int64).min
Floats = npt.NDArray[np.float64]
Keys = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Some of the rows.

    Args:
        name: the day, or the feature's value.
        num_rows: how many there are.
        mean_prediction: of the model.
        mean_label: share of positive rows; None without labels.
    """

    name: str
    num_rows: int
    mean_prediction: float
    mean_label: float | None

    @property
    def calibration(self) -> float | None:
        """Mean prediction / mean label; None without labels or without a positive row."""
        return self.mean_prediction / self.mean_label if self.mean_label else None


class _Keys(Protocol):
    def of(self, batch: Batch) -> Keys:
        """The slice of each row of a batch, in order of the rows."""

    def named(self, key: int) -> str:
        """What to call a slice."""

    in_order: bool
    """Whether slices have an order; else the largest come first."""


class Slicer:
    """Sums predictions and labels of each slice.

    Args:
        name: what the slices are made by.
        keys: of the rows.
    """

    def __init__(self, name: str, keys: _Keys) -> None:
        self.name, self._keys = name, keys
        self._sums: dict[int, Floats] = {}
        self._has_labels = True

    @property
    def is_ordered(self) -> bool:
        """Whether slices have an order; else the largest come first."""
        return self._keys.in_order

    def add(self, batch: Batch, predictions_B: Floats, labels_B: npt.NDArray[np.float32] | None) -> None:
        """Takes in a batch; batches come in the order of the rows."""
        keys, inverse_B = np.unique(self._keys.of(batch), return_inverse=True)
        weights = [None, predictions_B, labels_B]
        self._has_labels = labels_B is not None
        sums = [
            np.zeros(len(keys)) if number == 2 and one is None else np.bincount(inverse_B, weights=one)
            for number, one in enumerate(weights)
        ]
        for place, key in enumerate(keys.tolist()):
            self._sums[key] = self._sums.get(key, np.zeros(3)) + [one[place] for one in sums]

    def slices(self) -> list[Slice]:
        """At most `MOST_SLICES`; those with fewer rows are one together, the last."""
        largest = sorted(self._sums, key=lambda key: (-self._sums[key][0], key))
        kept, rest = largest[:MOST_SLICES], largest[MOST_SLICES:]
        slices = [self._slice(self._keys.named(key), self._sums[key]) for key in self._ordered(kept)]
        return slices + ([self._slice("others", np.sum([self._sums[key] for key in rest], axis=0))] if rest else [])

    def _ordered(self, keys: list[int]) -> list[int]:
        return sorted(keys) if self._keys.in_order else keys

    def _slice(self, name: str, sums: Floats) -> Slice:
        rows, predictions, labels = sums.tolist()
        return Slice(
            name=name,
            num_rows=int(rows),
            mean_prediction=predictions / rows,
            mean_label=labels / rows if self._has_labels else None,
        )


def slicer_of(data: Path, schema: Schema, *, split: str, by: str | None) -> Slicer | None:
    """The slices of a folder's rows: by a feature, else by their times; None where they have none.

    Raises:
        ConfigError: there is no such feature, or it can't make slices.
    """
    if by is not None:
        return Slicer(by, _ByFeature(data, schema, by))
    likeness = Likeness.load(data)
    if likeness is None or likeness.time is None:
        return None
    if likeness.has_dates:
        return Slicer(f"day of {likeness.time}", _ByDay(data, split))
    return Slicer(f"tenths of {likeness.time}", _ByTenth(data, split))


class _ByFeature:
    in_order = False

    def __init__(self, data: Path, schema: Schema, name: str) -> None:
        field = next((field for field in schema.categorical if field.name == name), None)
        if field is None:
            raise ConfigError(
                f"--by is {name!r}, which is no categorical feature of '{data}'."
                f"{did_you_mean(name, schema.feature_names)}"
            )
        if field.multivalued:
            raise ConfigError(f"--by is {name!r}, which has several values in a row; give a single-valued feature")
        file = data / VOCAB_FOLDER / f"{name}.parquet"
        self._name = name
        self._vocabulary = Vocabulary.load(file, name=name) if file.is_file() else None

    def of(self, batch: Batch) -> Keys:
        ids_B: Keys = batch.sparse[self._name].values().numpy().astype(np.int64)
        return ids_B

    def named(self, key: int) -> str:
        if self._vocabulary is None:
            return f"id {key}"
        token = self._vocabulary.decode([key])[0]
        return token if token is not None else "missing" if key == self._vocabulary.missing_id else "unknown"


class _ByDay:
    in_order = True

    def __init__(self, data: Path, split: str) -> None:
        self._times = _Times(data, split)

    def of(self, batch: Batch) -> Keys:
        times_B = self._times.take(len(batch.labels))
        days_B = np.full(len(times_B), _NO_DAY, dtype=np.int64)
        has_time_B = times_B != NO_TIME
        days_B[has_time_B] = np.floor(times_B[has_time_B] / _DAY).astype(np.int64)
        return days_B

    def named(self, key: int) -> str:
        return "no time" if key == _NO_DAY else str(np.datetime64(key, "D"))


class _ByTenth:
    """Times that are bare numbers: ten parts of as many rows, in their order."""

    in_order = True

    def __init__(self, data: Path, split: str) -> None:
        self._times = _Times(data, split)
        times = _Times(data, split).sample()
        times = times[times != NO_TIME]
        cuts = np.quantile(times, np.arange(NUM_PARTS) / NUM_PARTS, method="lower") if times.size else np.zeros(0)
        self._starts = np.unique(cuts)

    def of(self, batch: Batch) -> Keys:
        return np.searchsorted(self._starts, self._times.take(len(batch.labels)), side="right").astype(np.int64)

    def named(self, key: int) -> str:
        return f"from {self._starts[key - 1]:.15g}" if key else "before, or no time"


class _Times:
    """The times of a split's rows, in their order."""

    def __init__(self, data: Path, split: str) -> None:
        self._files = sorted((data / TIMES_FOLDER / split).glob("part-*.parquet"))
        self._folder = data / TIMES_FOLDER / split
        self._parts = self._read()
        self._left: Floats = np.empty(0)

    def take(self, count: int) -> Floats:
        """The next `count` times."""
        while len(self._left) < count:
            part = next(self._parts, None)
            if part is None:
                raise DataError(f"{self._folder} holds fewer rows than the split. Prepare the data again.")
            self._left = np.concatenate([self._left, part])
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    def sample(self) -> Floats:
        """Every k-th time, at most about `MOST_TIMES`."""
        num_rows = sum(pq.ParquetFile(str(file)).metadata.num_rows for file in self._files)
        step = max(1, -(-num_rows // MOST_TIMES))
        return np.concatenate([part[::step] for part in self._read()] or [np.empty(0)])

    def _read(self) -> Iterator[Floats]:
        for path in self._files:
            with pq.ParquetFile(str(path), page_checksum_verification=True) as file:
                for batch in file.iter_batches(columns=[TIME_COLUMN]):
                    yield batch.column(0).to_numpy()
