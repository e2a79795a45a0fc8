"""Criteo's click logs: Display Advertising Challenge (Kaggle) `train.txt` and the day files of the Terabyte logs.

Both are tab-separated without a header: label, 13 counts, 26 hashed categories; an empty cell is a missing value. Rows
stand in time order, so the default split cuts by position. Counts become ln(1 + x), and 0 when negative or missing, as
in DLRM and in the compression benchmark of Zhang et al. (PVLDB 17(4), 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embank.pipelines.data.sources.formats.base import Format, Source, TextOptions
from embank.pipelines.data.sources.formats.text import TextLayout, TextSource, open_with_or_without

NUMERIC = tuple(f"I{number}" for number in range(1, 14))
CATEGORICAL = tuple(f"C{number}" for number in range(1, 27))
COLUMNS = ("label", *NUMERIC, *CATEGORICAL)
LAYOUT = TextLayout(
    separator="\t", columns=COLUMNS, cure=" (Criteo's test.txt has no label and can't be used for training or testing.)"
)
DEFAULT = {
    "label": {"column": "label"},
    "categorical": list(CATEGORICAL),
    "numeric": {name: {"transform": "log1p", "missing": "zero"} for name in NUMERIC},
    "split": {"by": "ratio", "ratios": [0.8, 0.1, 0.1]},
}


def open_files(paths: Sequence[Path], options: TextOptions) -> Source:
    """Open Criteo files, in the order of the days."""
    return TextSource(paths, LAYOUT, default=DEFAULT)


def open_rows(paths: Sequence[Path], options: TextOptions) -> Source:
    """Open Criteo files with or without the column of labels (as test.txt is) to score their rows."""
    return open_with_or_without(paths, LAYOUT, without=("label",))


FORMAT = Format(
    name="criteo",
    summary="Criteo Kaggle train.txt or Terabyte day files (also .gz)",
    open=open_files,
    open_rows=open_rows,
)
