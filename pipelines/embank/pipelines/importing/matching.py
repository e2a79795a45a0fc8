"""Which row of a source each of our ids gets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from embank.pipelines.importing.sources import SourceTable
from embank.pipelines.importing.vocabularies import RowTokens, refuse_empty
from embank.pipelines.vectors.files import ParquetVectors
from embank.tables.errors import ConfigError, DataError
from embank.tables.ids.vocabulary import UNKNOWN_ID, Vocabulary
from embank.tables.wording import listing, shown

MOST_IDS = 1 << 31
"""Of a table whose ids are those of a column: its largest id says how many rows it has."""


@dataclass(frozen=True, kw_only=True)
class Matching:
    """The rows of a source's table for our ids.

    Args:
        table: ours.
        rows_N: the row of each id, int64 [N]; -1 where there is none. None: row i is id i.
        num_ids: N.
        num_rows: of the source.
        num_missing: ids without a row.
        num_surplus: rows that no id has.
        by: "token", "id" or "row".
        tokens: of the ids, where they are the source's own rows and it names them; null for one without a name.
    """

    table: str
    rows_N: npt.NDArray[np.int64] | None
    num_ids: int
    num_rows: int
    num_missing: int
    num_surplus: int
    by: str
    tokens: pl.Series | None = None

    @classmethod
    def of_rows(
        cls, table: str, rows_N: npt.NDArray[np.int64], num_rows: int, *, by: str, tokens: pl.Series | None = None
    ) -> Matching:
        """Counts what is missing and left over."""
        used = np.unique(rows_N[rows_N >= 0])
        is_plain = len(rows_N) <= num_rows and bool((rows_N == np.arange(len(rows_N))).all())
        return cls(
            table=table,
            rows_N=None if is_plain else rows_N,
            num_ids=len(rows_N),
            num_rows=num_rows,
            num_missing=int((rows_N < 0).sum()),
            num_surplus=num_rows - len(used),
            by=by,
            tokens=tokens,
        )


def match(
    table: SourceTable, *, tokens: RowTokens | None, vocabulary: Vocabulary | None, num_ids: int | None
) -> Matching:
    """Finds the row of each of our ids: by token where both have tokens, by id where the source has a column of ids,
    else row i is id i.

    Args:
        table: of the source.
        tokens: of its rows, where something else than the source says them.
        vocabulary: of our ids, where they have one.
        num_ids: ours; None where the source decides.

    Raises:
        DataError, ConfigError: sizes that don't fit, no row that matches, tokens for rows that have their own.
    """
    keys = table.vectors.keys()
    if isinstance(table.vectors, ParquetVectors) and keys is not None and keys.dtype == pl.String:
        refuse_empty(keys, what=f"'{table.vectors.path}', column '{table.vectors.key_column}', row", first=0)
    if keys is not None and tokens is not None:
        tokens = _beside_keys(table, keys, tokens)
        keys = keys if tokens is None else None
    if tokens is not None and tokens.num_rows not in (None, table.vectors.num_rows):
        raise DataError(
            f"{tokens.what} has {tokens.num_rows:,} rows, and {table.vectors.column} of '{table.vectors.path}' has "
            f"{table.vectors.num_rows:,}: it belongs to another table, or to another version of it"
        )
    if keys is not None and not keys.dtype.is_integer():
        tokens = RowTokens.of_keys(keys, what=f"'{table.vectors.path}'")
        keys = None
    if tokens is not None and vocabulary is not None:
        return _by_token(table, tokens, vocabulary)
    if keys is not None:
        return _by_id(table, keys, num_ids)
    return _by_row(table, tokens, num_ids)


def _beside_keys(table: SourceTable, keys: pl.Series, tokens: RowTokens) -> RowTokens | None:
    """What else names the rows of a table that has keys: nothing where they are tokens, which our vocabularies leave
    as they are; tokens in the rows' order where they are ids in this order.

    Raises:
        ConfigError: a list of tokens beside keys, which would name the same rows otherwise.
    """
    if not keys.dtype.is_integer():
        if tokens.is_list:
            raise ConfigError(
                f"'{table.vectors.path}': the file names its tokens itself ({listing(map(shown, keys[:3]))}), and "
                f"{tokens.what} would name its rows by their order; leave --vocab out"
            )
        return None
    order = _int64(table, keys)
    if len(order) and (order != np.arange(len(order))).any():
        row = int(np.flatnonzero(order != np.arange(len(order)))[0])
        raise ConfigError(
            f"'{table.vectors.path}', column '{table.vectors.key_column}', row {row:,} is id {order[row]:,}, and "
            f"{tokens.what} names rows by their order; leave --vocab out, or sort the rows by id"
        )
    return tokens


def _by_token(table: SourceTable, tokens: RowTokens, vocabulary: Vocabulary) -> Matching:
    ids_K = vocabulary.encode(tokens.tokens)
    rows_N = np.full(len(vocabulary), -1, dtype=np.int64)
    known = ids_K != UNKNOWN_ID
    rows_N[ids_K[known]] = tokens.rows_K[known]
    if not known.any():
        ours = [token for token in vocabulary.decode(range(min(4, len(vocabulary)))) if token is not None]
        raise DataError(
            f"none of the {len(tokens.tokens):,} tokens of table '{table.name}' ({tokens.what}: "
            f"{listing(map(shown, tokens.tokens[:3]))}) is in its vocabulary of {len(vocabulary):,} "
            f"({listing(map(shown, ours))}). Name the vocabulary that it has, or spell tokens alike"
        )
    if tokens.unknown_row is not None:
        rows_N[UNKNOWN_ID] = tokens.unknown_row
    if vocabulary.missing_id is not None and tokens.missing_row is not None:
        rows_N[vocabulary.missing_id] = tokens.missing_row
    return Matching.of_rows(table.name, rows_N, table.vectors.num_rows, by="token")


def _int64(table: SourceTable, keys: pl.Series) -> npt.NDArray[np.int64]:
    """Whole numbers as int64 [K].

    Raises:
        DataError: one is larger.
    """
    largest = keys.max()
    if isinstance(largest, int) and largest > np.iinfo(np.int64).max:
        row = keys.arg_max()
        raise DataError(f"'{table.vectors.path}', row {row:,}: id {largest} is beyond int64, as no table is", row=row)
    return keys.cast(pl.Int64).to_numpy()


def _by_id(table: SourceTable, keys: pl.Series, num_ids: int | None) -> Matching:
    ids_K = _int64(table, keys)
    if ids_K.size and int(ids_K.min()) < 0:
        row = int(np.argmin(ids_K))
        raise DataError(f"'{table.vectors.path}', row {row:,}: id {ids_K[row]} is below 0; ids begin with 0", row=row)
    size = int(ids_K.max()) + 1 if num_ids is None else num_ids
    if size > MOST_IDS:
        raise DataError(
            f"'{table.vectors.path}' has the id {size - 1:,}, and a table of so many rows would be made. Number the "
            "rows from 0, or give them as tokens (text) with a vocabulary"
        )
    inside = ids_K < size
    rows_N = np.full(size, -1, dtype=np.int64)
    rows_N[ids_K[inside]] = np.flatnonzero(inside)
    return Matching.of_rows(table.name, rows_N, table.vectors.num_rows, by="id")


def _by_row(table: SourceTable, tokens: RowTokens | None, num_ids: int | None) -> Matching:
    num_rows = table.vectors.num_rows
    size = num_rows if num_ids is None else num_ids
    if num_rows < size:
        raise ConfigError(
            f"table '{table.name}' has {size:,} ids, and {table.vectors.column} of '{table.vectors.path}' has "
            f"{num_rows:,} rows, so that row i can't be id i. Say what its rows stand for with --vocab"
        )
    names = None if tokens is None else tokens.names
    own = names if names is not None and len(names) == num_rows == size else None
    rows_N = np.arange(size, dtype=np.int64)
    return Matching.of_rows(table.name, rows_N, num_rows, by="row", tokens=own)
