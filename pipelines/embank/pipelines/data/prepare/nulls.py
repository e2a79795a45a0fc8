"""Spellings of a missing value other than an empty cell: those that the configuration states, and those that no number
can be."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

import polars as pl
from polars._typing import PolarsDataType

from embank.pipelines.data.sources.formats.base import Chunk

NULLS_OF_NUMBERS = ("NULL", "Null", "null", "\\N", "None", "none", "NA", "N/A", "n/a", "<NA>", "-")
"""Missing in numeric columns without being stated, as none of them can be a number. `nan` is not: it may be a
computation gone wrong."""


def with_nulls(chunk: Chunk, spellings: Collection[str]) -> Chunk:
    """The chunk with null in place of cells of these spellings, in columns of text and, where a spelling is a number,
    of numbers."""
    if not spellings:
        return chunk
    numbers = [number for number in map(number_of, spellings) if number is not None]
    replaced = []
    for name, dtype in chunk.frame.schema.items():
        is_null = _is_null(pl.col(name), dtype, spellings, numbers)
        if is_null is not None:
            replaced.append(pl.when(~is_null).then(pl.col(name)).alias(name))
    return replace(chunk, frame=chunk.frame.with_columns(replaced))


def _is_null(
    column: pl.Expr, dtype: PolarsDataType, spellings: Collection[str], numbers: Collection[float]
) -> pl.Expr | None:
    if dtype == pl.String or dtype in (pl.Categorical, pl.Enum):
        return column.cast(pl.String).is_in(list(spellings))
    if not numbers or not dtype.is_numeric():
        return None
    values = column.cast(pl.Float64)
    is_null = values.is_in([number for number in numbers if not math.isnan(number)])
    return is_null | values.is_nan() if any(map(math.isnan, numbers)) else is_null


def number_of(spelling: str) -> float | None:
    """The number that a spelling of a missing value is; None if it is none."""
    try:
        return float(spelling)
    except ValueError:
        return None
