"""The split of every spooled row, known once the first pass is over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embank.pipelines.config.columns import OneSplit, PrepareConfig, RatioSplit, TimeSplit
from embank.pipelines.config.reserved import LABEL_COLUMN
from embank.pipelines.data.prepare.encode import SPLIT_SPOOL, TIME_SPOOL, Encoder
from embank.pipelines.data.prepare.splits import one_bounds, ratio_bounds, split_by_bounds
from embank.pipelines.data.prepare.spool import SpoolReader
from embank.pipelines.data.schema import SPLIT_NAMES, Split
from embank.tables.errors import DataError

Codes = npt.NDArray[np.int8]


@dataclass(frozen=True)
class SplitPlan:
    """Which spool column decides, and how.

    Args:
        column: spool column with the split itself or with the time; None when the row's number decides.
        bounds: first value of valid and of test; None when the column holds the split.
    """

    column: str | None
    bounds: tuple[float, float] | None

    @classmethod
    def build(cls, config: PrepareConfig, encoder: Encoder, num_rows: int) -> SplitPlan:
        """Fix the bounds from what the first pass has seen.

        Raises:
            DataError: the times don't allow two cuts.
        """
        if isinstance(config.split, TimeSplit) and encoder.times is not None:
            return cls(TIME_SPOOL, encoder.times.bounds(config.split))
        if isinstance(config.split, RatioSplit):
            return cls(None, ratio_bounds(config.split, num_rows))
        if isinstance(config.split, OneSplit):
            return cls(None, one_bounds(config.split))
        return cls(SPLIT_SPOOL, None)

    def blocks(
        self, spool: SpoolReader, columns: Sequence[str] | None, *, blocks_at_once: int = 1
    ) -> Iterator[tuple[pa.Table, Codes]]:
        """Blocks of the spool (all columns when None) with the split of each row, int8 index into `SPLIT_NAMES`."""
        wanted = spool.columns if columns is None else list(columns)
        if self.column is not None and self.column not in wanted:
            wanted = [*wanted, self.column]
        first_row = 0
        for block in spool.blocks(wanted, blocks_at_once=blocks_at_once):
            yield block, self._codes(block, first_row)
            first_row += block.num_rows

    def _codes(self, block: pa.Table, first_row: int) -> Codes:
        if self.bounds is None:
            codes: Codes = block[self.column].to_numpy()
            return codes
        if self.column is None:
            return split_by_bounds(np.arange(first_row, first_row + block.num_rows, dtype=np.float64), self.bounds)
        return split_by_bounds(block[self.column].to_numpy(), self.bounds)


def measure_splits(spool: SpoolReader, plan: SplitPlan) -> tuple[Split, ...]:
    """Rows and positive rows of each split."""
    rows = np.zeros(len(SPLIT_NAMES), dtype=np.int64)
    positive = np.zeros(len(SPLIT_NAMES), dtype=np.int64)
    for block, splits_N in plan.blocks(spool, [LABEL_COLUMN], blocks_at_once=16):
        labels_N = block[LABEL_COLUMN].to_numpy()
        rows += np.bincount(splits_N, minlength=len(rows))
        positive += np.bincount(splits_N[labels_N == 1], minlength=len(rows))
    return tuple(
        Split(name=name, num_rows=int(rows[code]), num_positive=int(positive[code]))
        for code, name in enumerate(SPLIT_NAMES)
    )


def check_rows(splits: Sequence[Split], *, source: str, num_dropped: int) -> None:
    """Refuse an input of which no row is left.

    Raises:
        DataError: says why.
    """
    if not sum(split.num_rows for split in splits):
        raise DataError(
            f"{source}: the label rules drop all {num_dropped} rows. Change label.positive or label.negative."
        )


def check_splits(splits: Sequence[Split], *, source: str, num_dropped: int) -> None:
    """Refuse splits that nothing can be trained or measured on.

    Raises:
        DataError: no rows at all, a split without rows, or one class only in training.
    """
    check_rows(splits, source=source, num_dropped=num_dropped)
    sizes = ", ".join(f"{split.name} {split.num_rows}" for split in splits)
    for split in splits:
        if split.num_rows == 0:
            raise DataError(
                f"{source}: the {split.name} split has no rows ({sizes}). Change `split` or give more rows."
            )
    train = splits[0]
    if train.num_positive in (0, train.num_rows):
        only = 1 if train.num_positive else 0
        raise DataError(
            f"{source}: all {train.num_rows} training rows have label {only}, so there is nothing to learn. "
            "Check `label`, or use another `split` (rows may be sorted by label)."
        )
