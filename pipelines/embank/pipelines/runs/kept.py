"""Raw columns that are written beside scores: as they are read, in one type for all files."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import pyarrow as pa

from embank.pipelines.data.sources.formats.arrow_types import plain_series, plain_type
from embank.pipelines.data.sources.formats.base import Chunk, Source, check_column
from embank.tables.errors import DataError

_DIGITS = 38
_APART = (
    (pa.types.is_decimal, pa.types.is_floating),  # Arrow casts the one to the other, and rounds without a word
    (pa.types.is_large_string, pa.types.is_large_binary),  # all text would be bytes then
)
_NO_TEXT = (pa.types.is_large_list, pa.types.is_large_binary, pa.types.is_duration)


class KeptColumns:
    """Columns of a source that are to be kept.

    Files may hold a column in types that differ: the output has the narrowest one that holds the values of all.

    Args:
        source: of the rows.
        names: of the columns.
        is_csv: whether they are written as CSV.

    Raises:
        DataError: there is no such column, its types have none in common, or CSV can't hold it.
    """

    def __init__(self, source: Source, names: Sequence[str], *, is_csv: bool) -> None:
        self.names = list(dict.fromkeys(names))
        self._common: dict[str, pa.DataType] = {}
        for name in self.names:
            check_column(source, name, whose="is to be kept")
            self._take(source, name, is_csv=is_csv)

    def _take(self, source: Source, name: str, *, is_csv: bool) -> None:
        files = source.types(name)
        common: pa.DataType | None = None
        first = next(iter(files), None)
        for file, own in files.items():
            if is_csv and any(is_none(own) for is_none in _NO_TEXT):
                raise DataError(
                    f"{file}: column {name!r} has type {own}, which CSV can't hold. Give --out a name that ends in "
                    ".parquet, or don't keep it."
                )
            held = own if common is None else _held_by_both(common, own)
            if held is None:
                raise DataError(
                    f"column {name!r} has type {common} in {first} and {own} in {file}, and no type holds both. Score "
                    "the files in two calls, write them in one type, or don't keep it."
                )
            common = held
        if len(set(files.values())) > 1 and common is not None:
            self._common[name] = common

    def of(self, chunk: Chunk) -> pl.DataFrame:
        """Those of a chunk.

        Raises:
            DataError: a value is beyond the common type: a whole number that a float is not exact for, a time.
        """
        if not self.names:
            return pl.DataFrame(height=chunk.frame.height)
        frame = chunk.frame.select(self.names)
        for name, common in self._common.items():
            try:
                cast = frame[name].to_arrow().cast(common)
            except pa.ArrowInvalid as error:
                raise DataError(
                    f"{chunk.path or chunk.where(0)}: column {name!r} has a value that {common} can't hold, which "
                    f"other files' types ask for ({error}). Score the files in two calls, or don't keep it."
                ) from error
            frame = frame.with_columns(plain_series(cast, column=name))
        return frame


def _held_by_both(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of two; None where there is none."""
    if pa.types.is_large_list(first) and pa.types.is_large_list(second):
        inner = _held_by_both(first.value_type, second.value_type)
        return None if inner is None else pa.large_list(inner)
    if any((is_one(first) and is_other(second)) or (is_one(second) and is_other(first)) for is_one, is_other in _APART):
        return None
    if pa.types.is_decimal(first) and pa.types.is_decimal(second):
        return pa.decimal128(_DIGITS, max(first.scale, second.scale))
    schemas = [pa.schema([("column", own)]) for own in (first, second)]
    try:
        found = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None
    return plain_type(found)
