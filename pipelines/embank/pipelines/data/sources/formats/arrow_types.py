"""From the many types of Arrow to the few that `prepare` knows, without a change of value. What has none is refused
here, by name.

    null, bool, int*, uint*, halffloat, float, double      as they are
    decimal*                                               decimal128 of scale 0 or more
    string, large_string, string_view                      large_string
    binary of all kinds, fixed-size too                    large_binary
    date32, date64                                         date32
    time*, timestamp, duration                             as they are (seconds become milliseconds); time zones become
                                                           UTC
    dictionary                                             its values
    uuid                                                   large_string, 8-4-4-4-12 hexadecimal digits
    list of all kinds, fixed-size too                      large_list of one of these
    map                                                    large_list of its keys

`embank.pipelines.data.prepare.tokens` and `numbers` say what each of them means in the role that a column has.
"""

from __future__ import annotations

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from embank.tables.errors import DataError

_AS_THEY_ARE = (
    pa.types.is_null,
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
)
_LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)
_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BYTES = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)
_DECIMAL_DIGITS = 38
_DAYS = (-719_162, 2_932_896)  # of 0001-01-01 and 9999-12-31 since 1970
_PER_DAY = {"ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}


def plain_type(found: pa.DataType) -> pa.DataType | None:
    """What a column of type `found` is read as; None where there is nothing."""
    if any(check(found) for check in _LISTS):
        inner = _single(found.value_type)
        return None if inner is None else pa.large_list(inner)
    if pa.types.is_map(found):
        inner = _single(found.key_type)
        return None if inner is None or pa.types.is_boolean(found.item_type) else pa.large_list(inner)
    if pa.types.is_dictionary(found):
        return _single(found.value_type)
    return pa.large_string() if found == pa.uuid() else _single(found)


def _single(found: pa.DataType) -> pa.DataType | None:
    if any(check(found) for check in _AS_THEY_ARE):
        return found
    if any(check(found) for check in _TEXT):
        return pa.large_string()
    if any(check(found) for check in _BYTES):
        return pa.large_binary()
    if pa.types.is_decimal(found):
        return pa.decimal128(_DECIMAL_DIGITS, max(0, found.scale)) if found.scale <= _DECIMAL_DIGITS else None
    if pa.types.is_dictionary(found):
        return _single(found.value_type)
    return _time(found)


def _time(found: pa.DataType) -> pa.DataType | None:
    if pa.types.is_date(found):
        return pa.date32()
    if pa.types.is_time(found):
        return pa.time32("ms") if found.unit == "s" else found
    unit = "ms" if getattr(found, "unit", None) == "s" else getattr(found, "unit", None)
    if pa.types.is_timestamp(found):
        return pa.timestamp(unit, None if found.tz is None else "UTC")
    return pa.duration(unit) if pa.types.is_duration(found) else None


def refuse_type(found: pa.DataType, *, column: str, file: str) -> None:
    """Refuses a type that nothing is read from.

    Raises:
        DataError: names file, column, type and what to write instead.
    """
    if plain_type(found) is None:
        raise DataError(f"{file}: column {column!r} has type {found}, which is not read: {_cure(found)}.")


def _cure(found: pa.DataType) -> str:
    if pa.types.is_struct(found):
        return "write each field that you need as a column of its own"
    if any(check(found) for check in _LISTS):
        inner = found.value_type
        what = "its members are structures" if pa.types.is_struct(inner) else f"its members are {inner}"
        return f"{what}; write a list of text or numbers, one for each thing that you need"
    if pa.types.is_map(found):
        if pa.types.is_boolean(found.item_type):
            return "whether a key that is false belongs to the bag is not clear; write a list of the keys that do"
        return "its keys are no text or numbers; write a list"
    if pa.types.is_decimal(found):
        return f"at most {_DECIMAL_DIGITS} digits are read; convert it to text or double"
    return "convert it to text, numbers or a timestamp"


def plain_series(array: pa.Array, *, column: str) -> pl.Series:
    """A column as polars holds it, in its plain type.

    Args:
        array: of a type that `plain_type` knows.

    Raises:
        pa.ArrowInvalid: a value does not fit, see `first_unfit`: a decimal of more than 38 digits, a date outside the
        years 1 to 9999.
    """
    target = plain_type(array.type)
    assert target is not None, array.type
    if pa.types.is_map(array.type):
        array = _keys(array)
    elif array.type == pa.uuid():
        return _uuid_text(array).alias(column)
    if array.type != target:
        array = array.cast(target)
    _check_years(array.flatten() if pa.types.is_large_list(target) else array)
    return pl.Series(column, pl.from_arrow(array))


def first_unfit(array: pa.Array) -> int:
    """Row of the first value that has no place in the plain type; for arrays that `plain_series` fails on."""
    first, last = 0, len(array)  # it lies in [first, last)
    while last - first > 1:
        middle = (first + last) // 2
        if _fits(array.slice(first, middle - first)):
            first = middle
        else:
            last = middle
    return first


def _fits(array: pa.Array) -> bool:
    try:
        plain_series(array, column="")
    except pa.ArrowInvalid:
        return False
    return True


def _check_years(array: pa.Array) -> None:
    if pa.types.is_date(array.type):
        ends, per_day = pc.min_max(array.cast(pa.int32())).as_py(), 1
    elif pa.types.is_timestamp(array.type):
        ends, per_day = pc.min_max(array.cast(pa.int64())).as_py(), _PER_DAY[array.type.unit]
    else:
        return
    if ends["min"] is not None and not _DAYS[0] * per_day <= ends["min"] <= ends["max"] < (_DAYS[1] + 1) * per_day:
        raise pa.ArrowInvalid("a year outside 1 to 9999")


def _keys(array: pa.MapArray) -> pa.Array:
    whole = pa.concat_arrays([array])  # offsets from 0 on, also of a slice
    return pa.ListArray.from_arrays(whole.offsets, whole.keys)


def _uuid_text(array: pa.Array) -> pl.Series:
    digits = pl.Series(pl.from_arrow(array.storage.cast(pa.large_binary()))).bin.encode("hex")
    parts = [digits.str.slice(start, length) for start, length in ((0, 8), (8, 4), (12, 4), (16, 4), (20, 12))]
    frame = pl.DataFrame([part.alias(str(place)) for place, part in enumerate(parts)])
    return frame.select(pl.concat_str(pl.all(), separator="-")).to_series()
