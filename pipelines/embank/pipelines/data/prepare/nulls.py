"""Spellings of a missing value other than an empty cell: those that the configuration states, and those that no number
can be.

What a stated spelling is equal to depends on the type that holds a cell, not on the cells beside it:

    text              the text; in columns that are read as numbers, the number as well: -999 is -999.0 and -999.00
    whole numbers     the whole number that it is, exactly: 10**18 + 1 is not 10**18
    other numbers     the number that it is in that type: 0.1 in 32 bits is the spelling 0.1
    booleans, dates   their tokens, see `embank.pipelines.data.prepare.spelling`; in columns that are read as numbers,
                      true is 1 and false is 0 too
    bytes             the text in UTF-8
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from polars._typing import PolarsDataType

from embank.pipelines.data.prepare.spelling import spelled
from embank.pipelines.data.sources.formats.base import Chunk

NULLS_OF_NUMBERS = ("NULL", "Null", "null", "\\N", "None", "none", "NA", "N/A", "n/a", "<NA>", "-")
"""Missing in numeric columns without being stated, as none of them can be a number. `nan` is not: it may be a
computation gone wrong."""

EXACT = 2**53
"""Below it every whole number is a 64-bit float of its own."""
_MOST_DIGITS = 400
_TEXT = (pl.String, pl.Categorical, pl.Enum)
_FLOATS: dict[pl.DataType, type[np.floating]] = {
    pl.Float16(): np.float16,
    pl.Float32(): np.float32,
    pl.Float64(): np.float64,
}


@dataclass(frozen=True)
class NullValues:
    """The stated spellings, and the numbers that some of them are.

    Args:
        texts: as they are written.
        floats: of those that are numbers, the nearest 64-bit floats.
        exact: of those that are finite numbers, what they are exactly.
    """

    texts: frozenset[str]
    floats: frozenset[float]
    exact: frozenset[Fraction]

    @classmethod
    def of(cls, spellings: Collection[str]) -> NullValues:
        """From the configuration's `null_values`."""
        return _compiled(tuple(spellings))

    def has_number(self, value: Any) -> bool:
        """Whether a number of Python or numpy, and no boolean, is one of them; the twin of `typed` for single
        values."""
        if isinstance(value, (float, np.floating)):
            return float(value) in self.floats or float(str(value)) in self.floats
        if isinstance(value, Decimal):
            return value.is_finite() and value in self.exact
        return isinstance(value, (int, np.integer, Fraction)) and not isinstance(value, bool) and value in self.exact

    def typed(self, dtype: PolarsDataType) -> pl.Series | None:
        """The values of a type that are missing, [N]; None for types that no spelling is compared with."""
        if dtype in _TEXT:
            return pl.Series(sorted(self.texts), dtype=pl.String)
        if dtype == pl.Binary:
            return pl.Series([text.encode() for text in sorted(self.texts)], dtype=pl.Binary)
        if dtype == pl.Boolean:
            return pl.Series([text == "true" for text in ("true", "false") if text in self.texts], dtype=pl.Boolean)
        if dtype.is_integer():
            whole = [int(number) for number in self.exact if number.denominator == 1 and abs(number) < 2**127]
            return pl.Series(whole, dtype=pl.Int128).cast(dtype, strict=False).drop_nulls()
        if dtype.is_float():
            return self._of_float(dtype)
        if isinstance(dtype, pl.Decimal):
            return self._of_decimal(dtype)
        return self._of_time(dtype)

    def _of_float(self, dtype: PolarsDataType) -> pl.Series:
        """As an array of the type would have been written: 0.1 is the 32-bit number whose shortest spelling it is."""
        with np.errstate(over="ignore"):
            numbers = [(wide, _FLOATS[dtype](wide)) for wide in self.floats]  # type: ignore[index]
        kept = [float(own) for wide, own in numbers if wide in (float(own), float(str(own))) or math.isnan(wide)]
        return pl.Series(kept, dtype=pl.Float64).cast(dtype)

    def _of_decimal(self, dtype: pl.Decimal) -> pl.Series:
        shifted = [number * 10**dtype.scale for number in self.exact]
        whole = [int(number) for number in shifted if number.denominator == 1 and abs(number) < 10**38]
        values = [Decimal((int(unit < 0), tuple(map(int, str(abs(unit)))), -dtype.scale)) for unit in whole]
        return pl.Series(values, dtype=pl.Decimal(38, dtype.scale)).cast(dtype, strict=False).drop_nulls()

    def _of_time(self, dtype: PolarsDataType) -> pl.Series | None:
        """Parsed, which reads more than tokens, and may round: what is spelled otherwise is left out."""
        texts = pl.Series(sorted(self.texts), dtype=pl.String)
        if dtype == pl.Date:
            parsed = texts.str.to_date("%Y-%m-%d", strict=False)
        elif dtype == pl.Time:
            parsed = texts.str.to_time("%H:%M:%S%.f", strict=False)
        elif isinstance(dtype, pl.Datetime):
            zone = "" if dtype.time_zone is None else "Z"
            clock = texts.str.strip_suffix("Z")
            parsed = clock.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit=dtype.time_unit, strict=False)
            parsed = parsed.dt.replace_time_zone("UTC") if zone else parsed
            parsed = parsed.cast(dtype)
        else:
            return None
        return parsed.filter((spelled(parsed) == texts).fill_null(False))


@lru_cache(maxsize=64)
def _compiled(spellings: tuple[str, ...]) -> NullValues:
    numbers = {text: number for text in spellings if (number := number_of(text)) is not None}
    exact = [_exact(text) for text in numbers]
    return NullValues(
        texts=frozenset(spellings),
        floats=frozenset(numbers.values()),
        exact=frozenset(number for number in exact if number is not None),
    )


def number_of(spelling: str) -> float | None:
    """The number that a spelling of a missing value is, as cells of text are read; None if it is none."""
    if "_" in spelling or not spelling.isascii():  # which Python reads, and no file means
        return None
    try:
        return float(spelling)
    except ValueError:
        return None


def _exact(spelling: str) -> Fraction | None:
    try:
        number = Decimal(spelling)
    except InvalidOperation:
        return None
    if not number.is_finite() or not -_MOST_DIGITS < number.adjusted() < _MOST_DIGITS or len(spelling) > _MOST_DIGITS:
        return Fraction(0) if number == 0 else None
    return Fraction(number)


def with_nulls(
    chunk: Chunk, spellings: Collection[str], *, numbers: Collection[str] = (), hashed: Collection[str] = ()
) -> Chunk:
    """The chunk with null in place of cells that are missing.

    Args:
        spellings: that the configuration states.
        numbers: columns that are read as numbers, whose text is compared as such.
        hashed: columns whose bytes are taken as they are, white space around them too.
    """
    if not spellings:
        return chunk
    nulls = NullValues.of(spellings)
    replaced = []
    for name, dtype in chunk.frame.schema.items():
        if dtype == pl.Binary and name not in hashed:
            is_null: pl.Expr | None = _is_null_text(chunk.frame[name], nulls)
        else:
            is_null = _is_null(pl.col(name), dtype, nulls, as_number=name in numbers)
        if is_null is not None:
            # What can't be compared stays: it is read, or refused with its line.
            replaced.append(pl.when(~is_null.fill_null(False)).then(pl.col(name)).alias(name))
    return replace(chunk, frame=chunk.frame.with_columns(replaced))


def _is_null(column: pl.Expr, dtype: PolarsDataType, nulls: NullValues, *, as_number: bool) -> pl.Expr | None:
    values = nulls.typed(dtype)
    if values is None:
        return None
    is_null = _in(column.cast(pl.String) if dtype in _TEXT else column, values)
    if not as_number or not nulls.floats or not (dtype in _TEXT or dtype == pl.Boolean):
        return is_null if len(values) else None
    if dtype == pl.Boolean:
        return is_null | _is_float(column.cast(pl.Float64), nulls.floats)
    return is_null | _is_number(column.cast(pl.String), nulls)


def _is_number(text: pl.Expr, nulls: NullValues) -> pl.Expr:
    """Which text is a number that is missing: digits as whole numbers, all else as 64-bit floats."""
    far = frozenset(number for number in nulls.floats if abs(number) >= EXACT)
    is_null = _is_float(text.cast(pl.Float64, strict=False), nulls.floats - far)
    if not far:
        return is_null
    return is_null | text.map_batches(lambda texts: _is_far(texts, far, nulls), return_dtype=pl.Boolean)


def _is_far(texts: pl.Series, far: Collection[float], nulls: NullValues) -> pl.Series:
    """A float that is far from 0 stands for several whole numbers; where digits say which, they count."""
    text = pl.col("text")
    near = texts.alias("text").to_frame().with_row_index("row")
    near = near.filter(_is_float(text.cast(pl.Float64, strict=False), far))
    whole = pl.Series([str(int(number)) for number in nulls.exact if number.denominator == 1], dtype=pl.String)
    is_same = _in(text.str.replace(r"^(?:\+|(-))?0*", "${1}"), whole)
    kept = near.filter(~text.str.contains(r"^[-+]?[0-9]+$") | is_same)
    return pl.repeat(False, len(texts), dtype=pl.Boolean, eager=True).scatter(kept["row"], True)


def _is_float(values: pl.Expr, numbers: Collection[float]) -> pl.Expr:
    return _in(values, pl.Series(sorted(numbers), dtype=pl.Float64))


def _is_null_text(column: pl.Series, nulls: NullValues) -> pl.Expr:
    """Of bytes whose text, without white space around it, is a token."""
    try:
        text = column.cast(pl.String)
    except pl.exceptions.ComputeError:  # which is refused where it is read
        return _in(pl.col(column.name), nulls.typed(pl.Binary()))
    return _in(pl.lit(text.str.strip_chars()), nulls.typed(pl.String()))


def _in(column: pl.Expr, values: pl.Series | None) -> pl.Expr:
    return column.is_in(pl.lit(values).implode())


def null_members(spellings: Collection[str], dtype: PolarsDataType) -> list[str]:
    """Tokens of members of lists that are missing: the spellings, and the tokens of the values that they are."""
    if dtype in _TEXT or dtype == pl.Binary or not spellings:
        return list(spellings)
    values = NullValues.of(spellings).typed(dtype)
    return list(spellings) if values is None else [*spellings, *spelled(values).drop_nulls()]
