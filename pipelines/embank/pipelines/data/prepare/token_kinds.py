"""Columns of tokens that change their type between the files of an input."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import polars as pl
from polars._typing import PolarsDataType

from embank.pipelines.data.prepare.spelling import WHOLE_BITS
from embank.pipelines.data.sources.formats.base import Chunk
from embank.tables.errors import DataError

_log = logging.getLogger(__name__)


class TokenKinds:
    """Refuses columns in which one value would have two tokens: `true` and `1`, or a day with and without an hour.

    Numbers of all types have one spelling, and text has its own, so these may change. Warns once of ids that are floats
    too large to be exact.
    """

    def __init__(self, columns: Iterable[str]) -> None:
        self._columns = list(dict.fromkeys(columns))
        self._warned: set[str] = set()
        self._first: dict[str, tuple[str, str]] = {}  # column to its kind and where it was first seen

    def check(self, chunk: Chunk) -> None:
        """Compare a chunk with those before.

        Raises:
            DataError: names the column and both kinds.
        """
        for name in self._columns:
            if name not in chunk.frame.columns:
                continue  # a partition's key, which the file's folder says
            self._warn_of_rounded(chunk, name)
            kind = _kind(chunk.frame.schema[name])
            if kind is None:
                continue
            if name not in self._first:
                self._first[name] = kind, chunk.where(0)
            first, place = self._first[name]
            if kind != first:
                raise DataError(
                    f"{chunk.where(0)}: column {name!r} holds {kind}, and {first} at {place}, so that one value would "
                    "have two tokens. Write "
                    "all files with one type."
                )

    def _warn_of_rounded(self, chunk: Chunk, name: str) -> None:
        values = chunk.frame[name]
        if isinstance(values.dtype, pl.List) and values.dtype.inner in WHOLE_BITS:
            values = values.explode(empty_as_null=False, keep_nulls=False)
        bits = WHOLE_BITS.get(values.dtype)
        if bits is None or name in self._warned:
            return
        if ((values.abs() >= 2**bits) & values.is_finite()).any():
            self._warned.add(name)
            _log.warning(
                "column %r holds floats of 2**%d and more, which are not exact: different ids may have become one "
                "before they were written. "
                "Write ids as integers or text",
                name,
                bits,
            )


def _kind(dtype: PolarsDataType) -> str | None:
    """What a type holds, as far as its spelling depends on it; None for text and what is only null."""
    if isinstance(dtype, pl.List):
        return _kind(dtype.inner)
    if isinstance(dtype, pl.Datetime):
        return "timestamps" if dtype.time_zone is None else "timestamps with a time zone"
    if dtype == pl.Boolean:
        return "booleans"
    if dtype == pl.Date:
        return "dates"
    return "numbers" if dtype.is_numeric() else None
