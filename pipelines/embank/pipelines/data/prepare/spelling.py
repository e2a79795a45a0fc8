"""What a value of Parquet is as text: one spelling of a value, whatever type holds it.

    whole numbers        decimal digits: 5 of any integer type, 5.0 of any float type and 5.00 of a decimal are "5";
                         -0.0 is "0"
    other numbers        the shortest decimal fraction that its type tells from its neighbours, without an exponent:
                         "0.00001"; decimals without trailing zeros: 2.50 is "2.5"; infinities "inf", "-inf"; NaN is
                         missing
    booleans             "true", "false"
    dates, times         "2024-05-31", "12:00:00", with a fraction of seconds where there is one: "12:00:00.5"
    timestamps           "2024-05-31 12:00:00", with a time zone in UTC and marked so: "2024-05-31 10:00:00Z"
    text, categories     as it stands, without white space around it
    bytes                as the text that they are in UTF-8; other bytes have no spelling
    null                 missing

Lists, durations and whatever `formats.arrow_types` refuses have none.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from polars._typing import PolarsDataType

WHOLE_BITS: dict[pl.DataType, int] = {pl.Float16(): 11, pl.Float32(): 24, pl.Float64(): 53}
"""Floats of this many bits or more are all whole numbers, and not every whole number is one of them."""

_AS_POLARS = (pl.Boolean, pl.Date, pl.Categorical, pl.Enum)


class NoSpellingError(Exception):
    """A value that has no spelling.

    Attributes:
        row: its place in the series.
    """

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row


def has_spelling(dtype: PolarsDataType) -> bool:
    """Whether values of this type are tokens."""
    if isinstance(dtype, pl.Datetime) or dtype in (pl.String, pl.Null, pl.Binary, pl.Time, *_AS_POLARS):
        return True
    return bool(dtype.is_numeric())


def spelled(values: pl.Series) -> pl.Series:
    """Text of each value, null where it is missing; an empty text is missing too.

    Args:
        values: of a type that `has_spelling`.

    Raises:
        NoSpellingError: bytes that are not UTF-8.
    """
    dtype = values.dtype
    if dtype.is_float():
        return _floats(values)
    if dtype.is_decimal():
        return _without_zeros(values.cast(pl.String))
    if isinstance(dtype, pl.Datetime):
        text = _without_zeros(values.dt.replace_time_zone(None).dt.to_string("%Y-%m-%d %H:%M:%S%.f"))
        return text if dtype.time_zone is None else text + "Z"
    if dtype == pl.Time:
        return _without_zeros(values.dt.to_string("%H:%M:%S%.f"))
    if dtype == pl.Binary:
        return _utf8(values)
    return _text(values.cast(pl.String))


def _text(values: pl.Series) -> pl.Series:
    return values.str.strip_chars().replace("", None)


def _floats(values: pl.Series) -> pl.Series:
    """Most are small whole numbers or have a plain fraction; the others go one by one."""
    dtype = values.dtype
    values = values.fill_nan(None)
    small = values.abs() < 2 ** WHOLE_BITS[dtype]
    whole = small & (values == values.round())
    text = values.cast(pl.String).zip_with(~whole, values.set(~whole, None).cast(pl.Int64).cast(pl.String))
    odd = (
        (~whole & values.is_finite())
        if dtype == pl.Float16
        else text.str.contains("e", literal=True) | (~small & values.is_finite())
    )
    odd = odd.fill_null(False)
    if not odd.any():
        return text
    positional = [_positional(number) for number in values.filter(odd).to_numpy()]
    return text.scatter(odd.arg_true(), positional)


def _positional(number: np.floating) -> str:
    return str(int(number)) if number == np.rint(number) else np.format_float_positional(number, trim="-")


def _without_zeros(text: pl.Series) -> pl.Series:
    """Without zeros at the end of a fraction, nor a point without one."""
    shorter = text.str.strip_chars_end("0").str.strip_chars_end(".")
    return shorter.zip_with(text.str.contains(".", literal=True), text)


def _utf8(values: pl.Series) -> pl.Series:
    try:
        return _text(values.cast(pl.String))
    except pl.exceptions.ComputeError:
        pass
    for row, value in enumerate(values):
        try:
            (value or b"").decode("utf-8")
        except UnicodeDecodeError:
            raise NoSpellingError(row) from None
    raise AssertionError("polars refused UTF-8")
