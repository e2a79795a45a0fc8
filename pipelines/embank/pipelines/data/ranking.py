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

from embank.tables.vocabulary import Vocabulary

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
    by_code = pl.concat([pl.Series([None], dtype=pl.String), tokens]).gather(known)
    frame = pl.DataFrame([by_code.alias("token"), pl.Series("count", counts[known]), pl.Series("code", known)])
    frame = frame.sort("count", "token", descending=[True, False], nulls_last=False)
    id_of_code = np.zeros(len(counts), dtype=np.int32)
    id_of_code[frame["code"].to_numpy()] = np.arange(1, len(known) + 1, dtype=np.int32)
    unknown_count = int(counts.sum() - counts[known].sum())
    vocabulary = Vocabulary(
        name,
        pl.concat([pl.Series("token", [None], dtype=pl.String), frame["token"]], rechunk=True),
        np.concatenate([[unknown_count], frame["count"].to_numpy()]).astype(np.int64),
        missing_id=int(id_of_code[0]) if id_of_code[0] else None,
    )
    return Ranked(vocabulary, id_of_code)


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
    array = tokens.fill_null("").to_arrow().cast(pa.large_string())
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    yield np.diff(offsets).astype("<i8").tobytes()
    yield array.buffers()[2].to_pybytes()[offsets[0] : offsets[-1]] if array.buffers()[2] is not None else b""
