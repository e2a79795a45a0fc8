"""Tokens to provisional codes: one growing dictionary per feature, shared by all chunks. Or to hashes, without one.

Codes are given in the order in which polars' threads meet the tokens, so they differ from run to run; they live only
between the two passes. The ids that are written come from a ranking (count, then token) that does not depend on them.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from embank.pipelines.data.prepare.nulls import null_members
from embank.pipelines.data.prepare.spelling import NoSpellingError, has_spelling, spelled
from embank.pipelines.data.sources.formats.base import Chunk
from embank.tables.errors import DataError
from embank.tables.ids.token_hash import token_ids
from embank.tables.wording import shown

Ids = npt.NDArray[np.int64]

_SPELLED_BY_POLARS = (pl.Boolean, pl.Date, pl.Categorical, pl.Enum, pl.Null)


class TokenIndex:
    """A growing dictionary from token to code 1, 2, ...; code 0 is the missing value."""

    def __init__(self) -> None:
        # A random name of its own: polars shares categories of one name within a process.
        self._categories = pl.Categories.random(namespace="embank")
        self._dtype = pl.Categorical(self._categories)
        # polars drops a dictionary that nobody uses; this empty series keeps ours.
        self._keep_alive = pl.Series([], dtype=self._dtype)

    def codes(self, tokens: pl.Expr) -> pl.Expr:
        """Expression that turns a String expression into Int32 codes, adding new tokens."""
        physical = tokens.cast(self._dtype).to_physical()
        return (physical.cast(pl.Int32) + 1).fill_null(0)

    def bag_codes(self, bags: pl.Expr) -> pl.Expr:
        """Expression that turns List(String), without nulls inside, into List(Int32) codes, adding new tokens."""
        return bags.cast(pl.List(self._dtype)).list.eval(pl.element().to_physical().cast(pl.Int32) + 1)

    def tokens(self) -> pl.Series:
        """All tokens; the one at position i has code i + 1."""
        return self._categories.to_series()


def hashed_tokens(chunk: Chunk, name: str) -> Ids:
    """Ids [N] of the tokens of a raw column, without a dictionary: of text as `as_tokens` has it, or of bytes.

    Raises:
        DataError: the column's type has no tokens (lists, structures).
    """
    if chunk.frame.schema[name] == pl.Binary:
        return token_ids(chunk.frame.select(pl.when(pl.col(name) != b"").then(pl.col(name))).to_series())
    return token_ids(chunk.frame.select(as_tokens(chunk, name)).to_series())


def hashed_bags(chunk: Chunk, name: str, separator: str | None, *, nulls: Collection[str] = ()) -> pa.ListArray:
    """List<int64> of the ids of the bags of a multi-valued column, members as `as_bags` has them, without a dictionary.

    Raises:
        DataError: as `as_bags`.
    """
    if chunk.frame.schema[name] == pl.List(pl.Binary):
        kept = pl.element().filter(
            pl.element().is_not_null() & ~pl.element().is_in([b"", *(null.encode() for null in nulls)])
        )
        bags = chunk.frame.select(pl.col(name).fill_null([]).list.eval(kept)).to_series()
    else:
        bags = chunk.frame.select(as_bags(chunk, name, separator, nulls=nulls)).to_series()
    offsets = np.concatenate([[0], np.cumsum(bags.list.len().to_numpy(), dtype=np.int64)])
    members = bags.filter(bags.list.len() > 0).explode()
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(token_ids(members)))


def as_tokens(chunk: Chunk, name: str) -> pl.Expr:
    """Expression for the tokens of a raw column as strings, see `embank.pipelines.data.prepare.spelling`; empty strings
    are missing.

    Raises:
        DataError: the column's type has no tokens (lists, durations), or a value has no spelling (bytes that are not
            UTF-8).
    """
    dtype, column = chunk.frame.schema[name], pl.col(name)
    if dtype == pl.String:
        return column
    if dtype.is_integer() or dtype in _SPELLED_BY_POLARS:
        return column.cast(pl.String).replace("", None)
    if not has_spelling(dtype):
        cure = "list it under multivalued" if isinstance(dtype, pl.List) else "convert it to text or integers"
        raise DataError(
            f"{chunk.where(0)}: column {name!r} has type {dtype}, which is no single token; {cure}.", field=name
        )
    try:
        return pl.lit(spelled(chunk.frame[name]))
    except NoSpellingError as error:
        raise _no_text(chunk, name, error.row) from None


def as_bags(chunk: Chunk, name: str, separator: str | None, *, nulls: Collection[str] = ()) -> pl.Expr:
    """Expression for the bags of a multi-valued column: List(String), never null, without null or empty members.

    Args:
        nulls: members that are missing as well.

    Raises:
        DataError: a text column without a separator, a type that is neither text nor list, members without a spelling.
    """
    dtype, column = chunk.frame.schema[name], pl.col(name)
    if isinstance(dtype, pl.List) and has_spelling(dtype.inner):
        bags = pl.lit(_spelled_members(chunk, name))
    elif dtype == pl.String and separator is not None:
        bags = column.str.split(separator).list.eval(pl.element().str.strip_chars())
    elif dtype == pl.Null:
        bags = column.cast(pl.List(pl.String))
    elif isinstance(dtype, pl.List):
        raise DataError(
            f"{chunk.where(0)}: multi-valued column {name!r} has type {dtype}, whose members are no tokens; convert "
            "them to text or integers.",
            field=name,
        )
    else:
        cure = f'give a separator, such as `{name}: "|"`' if dtype == pl.String else "list it under categorical"
        raise DataError(
            f"{chunk.where(0)}: multi-valued column {name!r} has type {dtype} and no separator; {cure}.", field=name
        )
    members = null_members(nulls, dtype.inner if isinstance(dtype, pl.List) else dtype)
    is_member = pl.element().is_not_null() & ~pl.element().is_in(["", *members])
    return bags.list.eval(pl.element().filter(is_member)).fill_null([])


def refuse_bracketed(chunk: Chunk, name: str, separator: str | None) -> None:
    """Refuse bags that are written as `[1, 2]`, as pandas and JSON write lists, or `{1,2}`, as PostgreSQL writes
    arrays: the brackets would become parts of tokens. One bag alone may be a text in brackets; all of a log's first
    rows are not.

    Raises:
        DataError: all bags of the chunk stand in brackets, and one of them has several members, separated as stated or
            by a comma.
    """
    column = chunk.frame[name]
    if column.dtype != pl.String or separator is None:
        return
    filled = column.str.strip_chars().replace("", None)
    for opening, closing in ("[]", "{}"):
        in_brackets = filled.str.starts_with(opening) & filled.str.ends_with(closing)
        several = (
            in_brackets & (filled.str.contains(separator, literal=True) | filled.str.contains(",", literal=True))
        ).fill_null(False)
        if in_brackets.all() and several.any():
            row = int(several.arg_max() or 0)
            value = filled[row]
            raise DataError(
                f"{chunk.where(row)}: multi-valued column {name!r} is {shown(value)}, and all its first bags stand in "
                f"{opening}{closing}, "
                f"which would be parts of their members. Write the members alone, separated by {separator!r}, or a "
                "list column of Parquet."
            )


def _spelled_members(chunk: Chunk, name: str) -> pl.Series:
    """A List column with the text of its members."""
    lists = chunk.frame[name].fill_null([])  # Arrow lets a null list have members, which are none
    members = lists.explode(empty_as_null=False, keep_nulls=False)
    offsets = np.concatenate([[0], np.cumsum(lists.list.len().to_numpy(), dtype=np.int64)])
    try:
        texts = spelled(members)
    except NoSpellingError as error:
        row = np.searchsorted(offsets, error.row, side="right") - 1
        raise _no_text(chunk, name, int(row)) from None
    spelled_lists = pa.LargeListArray.from_arrays(pa.array(offsets), texts.to_arrow().cast(pa.large_string()))
    return pl.Series(name, pl.from_arrow(spelled_lists))


def _no_text(chunk: Chunk, name: str, row: int) -> DataError:
    value = chunk.frame[name].slice(row, 1).to_list()[0]
    return DataError(
        f"{chunk.where(row)}: column {name!r} is {value!r}, bytes that are not UTF-8. List the column under hashed, "
        "which "
        "takes any bytes, or convert it to text.",
        field=name,
        row=row,
        value=value,
    )
