"""Raw rows in memory, of the libraries that hold such things, as a chunk of a source."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from embank.pipelines.data.prepare.nulls import EXACT, NullValues
from embank.pipelines.data.prepare.spelling import has_spelling, spelled
from embank.pipelines.data.sources.formats.base import Chunk, check_column, trimmed
from embank.pipelines.data.sources.formats.parquet import plain_frame
from embank.tables.errors import DataError
from embank.tables.wording import did_you_mean, shown

WHOSE = "the model was trained on"


@dataclass(frozen=True)
class _Given:
    """Rows as `check_column` wants to know a source."""

    columns: Sequence[str]
    twice: Sequence[str] = ()
    name: str = "the given rows"


def where(row: int) -> str:
    """A row's place in words."""
    return f"rows[{row}]"


def chunk_of(rows: Any, columns: Sequence[str], *, numeric: Sequence[str], nulls: Collection[str] = ()) -> Chunk:
    """Raw rows as a chunk that has the named columns.

    Args:
        rows: a polars or pandas DataFrame, a pyarrow Table or RecordBatch, or a sequence of mappings.
        columns: the raw columns that are wanted; others are left out.
        numeric: those that hold numbers.
        nulls: spellings of a missing value. Of mappings, numbers and booleans that they are become null here, as long
            as it is known that they are no text; all else is left to `with_nulls`.

    Raises:
        DataError: a column is missing, with the nearest one there is; a type that nothing is read from; something else
            than rows.
    """
    if isinstance(rows, Mapping):
        raise DataError("the given rows are one mapping; give a list of rows, [{...}], or a frame.")
    if isinstance(rows, Sequence) and not isinstance(rows, (str, bytes)):
        frame = trimmed(_frame_of_mappings(rows, columns, numeric, NullValues.of(nulls)))
        return Chunk(frame=frame, where=where, num_bytes=0)
    table = _table(rows, columns)
    if not table.num_rows:  # columns without values may have any type
        return Chunk(frame=pl.DataFrame(schema=dict.fromkeys(columns, pl.String)), where=where, num_bytes=0)
    return Chunk(frame=plain_frame(table, columns, where), where=where, num_bytes=0)


def chunk_of_values(name: str, values: Sequence[Any], *, nulls: Collection[str] = ()) -> Chunk:
    """Values of one categorical column as a chunk; `nulls` as in `chunk_of`.

    Raises:
        DataError: one is no token.
    """
    if isinstance(values, (str, bytes)):
        raise DataError(f"the values of {name!r} are {shown(values)}; give a list of values.", field=name)
    frame = trimmed(pl.DataFrame([_tokens(name, list(values), NullValues.of(nulls))]))
    if isinstance(frame[name].dtype, pl.List):
        raise DataError(f"the values of {name!r} are lists; give one value for each row.", field=name)
    return Chunk(frame=frame, where=where, num_bytes=0)


def _table(rows: Any, columns: Sequence[str]) -> pa.RecordBatch:
    library = type(rows).__module__.partition(".")[0]
    if isinstance(rows, pl.LazyFrame):
        rows = rows.collect()
    if not isinstance(rows, (pl.DataFrame, pa.Table, pa.RecordBatch)) and library != "pandas":
        raise DataError(
            f"the given rows are a {type(rows).__name__}; give a polars, pandas or pyarrow table, or a list of "
            "mappings from column to value."
        )
    names = [
        str(name) for name in (rows.schema.names if isinstance(rows, (pa.Table, pa.RecordBatch)) else rows.columns)
    ]
    given = _Given(columns=names, twice=[name for name in set(names) if names.count(name) > 1])
    for column in columns:
        check_column(given, column, whose=WHOSE)  # type: ignore[arg-type]
    if isinstance(rows, pl.DataFrame):
        table = rows.select(columns).to_arrow()
    elif library == "pandas":
        try:
            table = pa.Table.from_pandas(rows[list(columns)], preserve_index=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(
                f"a column of the given rows holds values of several types ({error}). Convert it to one type."
            ) from error
    else:
        table = (pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows).select(list(columns))
    return table


def _frame_of_mappings(
    rows: Sequence[Any], columns: Sequence[str], numeric: Sequence[str], nulls: NullValues
) -> pl.DataFrame:
    values: dict[str, list[Any]] = {name: [] for name in columns}
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(f"{where(number)} is {shown(row)}; give a mapping from column to value.", row=number)
        for name, cells in values.items():
            try:
                cells.append(row[name])
            except KeyError:
                raise missing_key(row, name, number) from None
    series = [(_numbers if name in numeric else _tokens)(name, cells, nulls) for name, cells in values.items()]
    return pl.DataFrame(series) if columns else pl.DataFrame()


def missing_key(row: Mapping[str, Any], name: str, number: int) -> DataError:
    """The error about a row that lacks a column."""
    hint = did_you_mean(name, [str(key) for key in row])
    return DataError(
        f"{where(number)} has no {name!r}, which {WHOSE}.{hint} Give null where the value is missing.",
        field=name,
        row=number,
    )


def _numbers(name: str, cells: list[Any], nulls: NullValues) -> pl.Series:
    """Numbers of any library; where some are text, all of them as text, which is read as a file's would be."""
    values = [_number(name, cell, row, nulls) for row, cell in enumerate(cells)]
    if any(isinstance(value, str) for value in values):
        return pl.Series(name, [value if value is None else str(value) for value in values], dtype=pl.String)
    return pl.Series(name, values, dtype=pl.Float64)


def _number(name: str, cell: Any, row: int, nulls: NullValues) -> float | str | None:
    if _is_missing(cell) or _is_null(cell, nulls):
        return None
    if isinstance(cell, str):
        return _unicode(name, cell, row)
    if isinstance(cell, (Real, Decimal, np.bool_)):
        if isinstance(cell, (int, np.integer, Decimal)) and _is_far_whole(cell):
            return str(int(cell))  # a float would be equal to others, so to a null value that it isn't
        try:
            return float(cell)
        except OverflowError:
            return str(cell)
    raise DataError(
        f"{where(row)}: column {name!r} is {shown(cell)}, which is no number.", field=name, row=row, value=cell
    )


def _is_far_whole(cell: int | np.integer | Decimal) -> bool:
    """Whether a whole number has more digits than a 64-bit float."""
    if isinstance(cell, Decimal):
        return cell.is_finite() and EXACT <= abs(cell) < 1e38 and cell == int(cell)
    return abs(int(cell)) >= EXACT


def _tokens(name: str, cells: list[Any], nulls: NullValues) -> pl.Series:
    """Text of tokens; lists of text where any cell is a list."""
    if any(isinstance(cell, (list, tuple)) for cell in cells):
        lists: list[list[str | None] | None] = []
        for row, cell in enumerate(cells):
            if cell is not None and not isinstance(cell, (list, tuple)):
                raise DataError(
                    f"{where(row)}: column {name!r} is {shown(cell)}, and other rows have lists. Give lists.",
                    field=name,
                    row=row,
                    value=cell,
                )
            lists.append(None if cell is None else [_text(name, member, row, nulls) for member in cell])
        return pl.Series(name, lists, dtype=pl.List(pl.String))
    return pl.Series(name, [_text(name, cell, row, nulls) for row, cell in enumerate(cells)], dtype=pl.String)


def _is_missing(cell: Any) -> bool:
    """None, and what pandas has for it."""
    return cell is None or type(cell).__name__ in ("NAType", "NaTType")


def _is_null(cell: Any, nulls: NullValues) -> bool:
    """Whether a number or a boolean is a null value, as it would be in a typed column."""
    if isinstance(cell, (bool, np.bool_)):
        return ("true" if cell else "false") in nulls.texts
    return nulls.has_number(cell)


def _unicode(name: str, text: str, row: int) -> str:
    """A text as str.

    Raises:
        DataError: it is no Unicode.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{where(row)}: column {name!r} is {shown(text)}, which is no Unicode text (lone surrogates).",
            field=name,
            row=row,
            value=text,
        ) from None
    return str(text)


def _text(name: str, cell: Any, row: int, nulls: NullValues) -> str | None:
    if _is_missing(cell) or _is_null(cell, nulls):
        return None
    if isinstance(cell, str):
        return _unicode(name, cell, row)
    if type(cell) is bool:
        return "true" if cell else "false"
    if type(cell) is int:
        return str(cell)
    try:
        series = pl.Series([cell], strict=True)
        if has_spelling(series.dtype):
            text: str | None = spelled(series)[0]
            return text
    except Exception:
        pass
    raise DataError(
        f"{where(row)}: column {name!r} is {shown(cell)}, a {type(cell).__name__}, which is no token; give text or a "
        "whole number.",
        field=name,
        row=row,
        value=cell,
    )
