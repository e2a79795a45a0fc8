"""Numeric features: reading numbers from raw cells, and the transforms."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from embank.pipelines.data.prepare.nulls import NULLS_OF_NUMBERS
from embank.pipelines.data.sources.formats.base import Chunk
from embank.tables.errors import DataError
from embank.tables.wording import shown

Floats = npt.NDArray[np.float64]
FLOAT32_MAX = float(np.finfo(np.float32).max)


def number_column(chunk: Chunk, name: str) -> pl.Series:
    """The raw column, if its type can hold numbers.

    Raises:
        DataError: it holds lists, dates, bytes, ...
    """
    column = chunk.frame[name]
    if not (column.dtype in (pl.String, pl.Boolean, pl.Null) or column.dtype.is_numeric()):
        raise DataError(
            f"{chunk.where(0)}: column {name!r} has type {column.dtype}, which is no number; convert it to a number.",
            field=name,
        )
    return column


def to_float64(column: pl.Series) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Numbers of a raw column.

    Returns:
        float64 [N], nan where missing or unreadable; bool [N], False where a cell is present and no number.
    """
    numbers = column.cast(pl.Float64, strict=column.dtype != pl.String)
    readable_N = (numbers.is_not_null() | column.is_null()).to_numpy()
    return numbers.fill_null(float("nan")).to_numpy(), readable_N


def read_numeric(chunk: Chunk, name: str) -> Floats:
    """Numbers of a numeric feature, [N] float64, nan where the cell is missing or has a spelling of `NULLS_OF_NUMBERS`.

    Raises:
        DataError: a cell is no number, or is not finite.
    """
    raw = number_column(chunk, name)
    values_N, readable_N = to_float64(raw)
    if raw.null_count() == 0 and bool(np.isfinite(values_N).all()):
        return values_N
    finite_N = np.isfinite(values_N) | raw.is_null().to_numpy()
    if not finite_N.all() and raw.dtype == pl.String:
        finite_N |= raw.is_in(NULLS_OF_NUMBERS).fill_null(False).to_numpy()
    if not finite_N.all():
        row = int(np.argmin(finite_N))
        cure = (
            "a numeric feature needs finite numbers; leave the cell empty if the value is missing, or name it under "
            "null_values"
            if readable_N[row]
            else "it is no number; mend the cell, leave it empty if missing, name it under null_values if it means "
            "so, or list the column "
            "under categorical"
        )
        raise DataError(
            f"{chunk.where(row)}: column {name!r} is {shown(raw[row])}: {cure}.", field=name, row=row, value=raw[row]
        )
    return values_N


def transform(values_N: Floats, kind: str) -> Floats:
    """Apply a transform that needs nothing but the value; nan stays nan.

    log1p is ln(1 + x) for x > 0, else 0: what the literature does to Criteo's counts. log_squared is floor(ln(x)^2) for
    x > 2, else x: the discretisation of the winners of the Criteo contest. `standard` is done later, when the mean is
    known.
    """
    if kind == "log1p":
        return np.log1p(np.maximum(values_N, 0.0))
    if kind == "log_squared":
        return np.where(values_N > 2, np.floor(np.log(np.maximum(values_N, 2.0)) ** 2), values_N)
    return values_N


def read_transformed(chunk: Chunk, name: str, kind: str) -> npt.NDArray[np.floating]:
    """Numbers of a numeric feature after a transform, nan where missing: float32 [N], or float64 where they are still
    to be scaled (`standard`).

    Raises:
        DataError: see `read_numeric` and `check_float32`.
    """
    values_N = transform(read_numeric(chunk, name), kind)
    check_float32(values_N, chunk, name)
    return values_N if kind == "standard" else values_N.astype(np.float32)


def check_float32(values_N: Floats, chunk: Chunk, name: str) -> None:
    """Refuse values that 32 bits can't hold.

    Raises:
        DataError: naming the line and the value.
    """
    too_large_N = np.abs(values_N) > FLOAT32_MAX
    if too_large_N.any():
        row = int(np.argmax(too_large_N))
        raise DataError(
            f"{chunk.where(row)}: column {name!r} is {shown(chunk.frame[name][row])}, beyond 32-bit floats. "
            "Use the transform log1p, or mend the cell.",
            field=name,
            row=row,
            value=chunk.frame[name][row],
        )
