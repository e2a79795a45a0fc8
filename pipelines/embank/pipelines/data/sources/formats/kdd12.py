"""KDD Cup 2012, track 2 (Tencent search advertising): `training.txt`, tab-separated without a header.

A row counts the impressions and clicks of one (user, query, ad, place); it becomes that many rows of its own, first the
clicks with label 1, then the other impressions with label 0. All ten attributes are categorical. The file has no time,
so rows are split by the hash of their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from embank.pipelines.data.prepare.numbers import to_float64
from embank.pipelines.data.sources.formats.base import Chunk, Format, Source, TextOptions
from embank.pipelines.data.sources.formats.derived import DerivedSource
from embank.pipelines.data.sources.formats.text import TextLayout, TextSource, open_with_or_without
from embank.tables.errors import DataError

FEATURES = (
    *("DisplayURL", "AdID", "AdvertiserID", "Depth", "Position"),
    *("QueryID", "KeywordID", "TitleID", "DescriptionID", "UserID"),
)
COLUMNS = ("click", "impression", *FEATURES)
LABEL = "clicked"
MAX_ROWS = 500_000
DEFAULT = {
    "label": {"column": LABEL},
    "categorical": list(FEATURES),
    "split": {"by": "hash", "ratios": [0.8, 0.1, 0.1]},
    "group": "UserID",
}


def open_files(paths: Sequence[Path], options: TextOptions) -> Source:
    """Open files of KDD Cup 2012, track 2."""
    cure = " (Track 2's test.txt has no click and impression counts and can't be used.)"
    layout = TextLayout(separator="\t", columns=COLUMNS, cure=cure)
    return DerivedSource(
        TextSource(paths, layout), columns=(LABEL, *FEATURES), needs=_needs, derive=_expand, default=DEFAULT
    )


def _needs(columns: Sequence[str]) -> Sequence[str]:
    return ["click", "impression", *(name for name in columns if name != LABEL)]


def _expand(chunk: Chunk, columns: Sequence[str]) -> Iterator[Chunk]:
    clicks_N, impressions_N = (_counts(chunk, name) for name in ("click", "impression"))
    bad_N = (clicks_N > impressions_N) | (impressions_N < 1)
    if bad_N.any():
        row = int(np.argmax(bad_N))
        raise DataError(
            f"{chunk.where(row)}: {clicks_N[row]} clicks in {impressions_N[row]} impressions; an impression is "
            "needed, and no "
            "more clicks than impressions. Mend the line."
        )
    ends_N = np.cumsum(impressions_N)
    total = int(ends_N[-1])
    for start in range(0, total, MAX_ROWS):
        yield _slice(chunk, columns, clicks_N, ends_N, start, min(start + MAX_ROWS, total))


def _slice(
    chunk: Chunk, columns: Sequence[str], clicks_N: np.ndarray, ends_N: np.ndarray, start: int, stop: int
) -> Chunk:
    """Rows `start` to `stop` of the expanded chunk."""
    position = np.arange(start, stop)
    rows = np.searchsorted(ends_N, position, side="right")
    begins = np.concatenate([[0], ends_N[:-1]])[rows]
    labels = pl.Series(LABEL, (position - begins < clicks_N[rows]).astype(np.int8))
    frame = chunk.frame[rows].with_columns(labels).select(columns)
    num_bytes = chunk.num_bytes if start == 0 else 0
    return Chunk(frame=frame, where=lambda row: chunk.where(int(rows[row])), num_bytes=num_bytes)


def _counts(chunk: Chunk, name: str) -> np.ndarray:
    raw = chunk.frame[name]
    values_N, _ = to_float64(raw)
    good_N = (values_N >= 0) & (values_N == np.floor(values_N)) & (values_N < 1e9)
    if not good_N.all():
        row = int(np.argmin(good_N))
        raise DataError(f"{chunk.where(row)}: column {name!r} is {raw[row]!r}; expected a count. Mend the line.")
    return values_N.astype(np.int64)


def open_rows(paths: Sequence[Path], options: TextOptions) -> Source:
    """Open files with or without counts (as test.txt is) to score their rows: one score for each line, whatever its
    impressions."""
    return open_with_or_without(paths, TextLayout(separator="\t", columns=COLUMNS), without=("click", "impression"))


FORMAT = Format(name="kdd12", summary="KDD Cup 2012 track 2 training.txt", open=open_files, open_rows=open_rows)
