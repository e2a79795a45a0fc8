"""Between the passes: count each code in the training part, rank, and map codes to ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from embank.tables.ids.vocabulary import Vocabulary

Counts = npt.NDArray[np.int64]
_HASH_ROWS = 2**20


@dataclass(frozen=True)
class Ranked:
    """A vocabulary and the map from provisional codes to its ids.

    Attributes:
        id_of_code: int32 [codes + 1]; position 0 is the missing value.
    """

    vocabulary: Vocabulary
    id_of_code: npt.NDArray[np.int32]


def count_codes(codes_N: npt.NDArray[np.int32], counts: Counts) -> None:
    """Add the occurrences of codes to `counts` [codes + 1], in place."""
    counts += np.bincount(codes_N, minlength=len(counts))


def rank(name: str, tokens: pl.Series, counts: Counts, *, min_count: int) -> Ranked:
    """Rank tokens by count, ties by the bytes of the token (the missing value first); the rest becomes unknown.

    Args:
        tokens: String [codes]; the token at position i has code i + 1.
        counts: int64 [codes + 1] in the training part; position 0 is the missing value.
    """
    known = np.flatnonzero(counts >= min_count)
    has_missing = bool(known.size and known[0] == 0)
    kept = tokens.gather(known[1:] - 1 if has_missing else known - 1)
    if has_missing:
        kept = pl.concat([pl.Series([None], dtype=pl.String), kept], rechunk=True)
    order = order_tokens(kept, counts[known])
    id_of_code = np.zeros(len(counts), dtype=np.int32)
    id_of_code[known[order]] = np.arange(1, len(known) + 1, dtype=np.int32)
    unknown_count = int(counts.sum() - counts[known].sum())
    vocabulary = Vocabulary(
        name,
        pl.concat([pl.Series("token", [None], dtype=pl.String), kept.gather(order).alias("token")], rechunk=True),
        np.concatenate([[unknown_count], counts[known[order]]]).astype(np.int64),
        missing_id=int(id_of_code[0]) if id_of_code[0] else None,
    )
    return Ranked(vocabulary, id_of_code)


def order_tokens(tokens: pl.Series, counts: Counts) -> npt.NDArray[np.int64]:
    """Positions of tokens by falling count, then rising bytes; null before all tokens.

    Sorting millions of strings is slow, so integers made of their first 8 bytes are sorted, and only tokens that are
    equal in both count and prefix are compared as strings.
    """
    keys = _prefix_keys(tokens)
    order = np.lexsort((keys, -counts))
    same = (counts[order[1:]] == counts[order[:-1]]) & (keys[order[1:]] == keys[order[:-1]])
    tied = np.flatnonzero(np.append(same, False) | np.insert(same, 0, False))
    if tied.size:
        rows = order[tied]
        frame = pl.DataFrame(
            [pl.Series("count", counts[rows]), tokens.gather(rows).alias("token"), pl.Series("row", rows)]
        )
        frame = frame.sort("count", "token", descending=[True, False], nulls_last=False)
        order[tied] = frame["row"].to_numpy()
    return order


def _prefix_keys(tokens: pl.Series) -> npt.NDArray[np.uint64]:
    """The first 8 bytes of each token as a big-endian integer, padded with zeros; 0 for null."""
    offsets, data = _buffers(tokens.fill_null(""))
    starts, lengths = offsets[:-1], np.diff(offsets)
    if len(lengths) and lengths.min() == lengths.max() == 8:
        return np.frombuffer(data[starts[0] : offsets[-1]].tobytes(), dtype=">u8").astype(np.uint64)
    keys = np.zeros(len(tokens), dtype=np.uint64)
    for position in range(8):
        longer = np.flatnonzero(lengths > position)
        shift = np.uint64(8 * (7 - position))
        keys[longer] |= data[starts[longer] + position].astype(np.uint64) << shift
    return keys


def _buffers(tokens: pl.Series) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Arrow's offsets [N + 1] and bytes of a String series without nulls."""
    array = tokens.to_arrow().cast(pa.large_string())
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    data = array.buffers()[2]
    return offsets, np.frombuffer(data, dtype=np.uint8) if data is not None else np.zeros(0, dtype=np.uint8)


class Fingerprint:
    """sha256 over the field list and the vocabularies, fed one vocabulary at a time."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Take in all tokens in the order of their ids, and which id is the missing value."""
        self._hash.update(json.dumps([vocabulary.name, len(vocabulary), vocabulary.missing_id]).encode())
        for start in range(0, len(vocabulary), _HASH_ROWS):
            for part in _token_bytes(vocabulary.tokens.slice(start, _HASH_ROWS)):
                self._hash.update(part)

    def finish(self, fields: Any) -> str:
        """The digest in hex, after taking in `fields` as JSON."""
        self._hash.update(json.dumps(fields, sort_keys=True).encode())
        return self._hash.hexdigest()


def _token_bytes(tokens: pl.Series) -> Iterable[bytes]:
    """Lengths, then the joined UTF-8 bytes: together they tell any two lists of tokens apart."""
    offsets, data = _buffers(tokens.fill_null(""))
    yield np.diff(offsets).astype("<i8").tobytes()
    yield data[offsets[0] : offsets[-1]].tobytes()
