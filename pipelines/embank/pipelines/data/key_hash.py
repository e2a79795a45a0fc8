"""Hashes of keys that never change: not with the process, the machine, the thread count, or a library's version.

Splits by hash and group codes rest on them, so two people who prepare the same file get the same split. A token's hash
is FNV-1a (64 bit) over its UTF-8 bytes, finished by splitmix64's mixer, because FNV alone leaves the high bits of
short strings poorly mixed. Everything is vectorised over tokens; the loop runs over byte positions.

Source: FNV: G. Fowler, L. C. Noll, K.-P. Vo, IETF draft-eastlake-fnv; mixer: `embank.tables.ids.mixing`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from embank.tables.ids.mixing import GAMMA, Words, finish_words, mix_words

FNV_OFFSET = np.uint64(0xCBF29CE484222325)
FNV_PRIME = np.uint64(0x100000001B3)
MISSING_HASH = np.uint64(GAMMA)


def hash_strings(tokens: pl.Series) -> Words:
    """Hash each token.

    Args:
        tokens: String series of N tokens; null is allowed.

    Returns:
        uint64 [N]; a null hashes to `MISSING_HASH`.
    """
    array = tokens.cast(pl.String).to_arrow().cast(pa.large_string())
    offsets_N = np.frombuffer(array.buffers()[1], dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    data = array.buffers()[2]
    bytes_ = np.frombuffer(data, dtype=np.uint8) if data is not None else np.zeros(0, dtype=np.uint8)
    hashes_N = finish_words(_fnv1a(bytes_, starts_N=offsets_N[:-1], lengths_N=np.diff(offsets_N)))
    if tokens.null_count():
        hashes_N[tokens.is_null().to_numpy()] = MISSING_HASH
    return hashes_N


def _fnv1a(data: npt.NDArray[np.uint8], *, starts_N: npt.NDArray[np.int64], lengths_N: npt.NDArray[np.int64]) -> Words:
    hashes_N = np.full(len(starts_N), FNV_OFFSET, dtype=np.uint64)
    longer_N = np.arange(len(starts_N))
    position = 0
    with np.errstate(over="ignore"):
        while (longer_N := longer_N[lengths_N[longer_N] > position]).size:
            byte_N = data[starts_N[longer_N] + position].astype(np.uint64)
            hashes_N[longer_N] = (hashes_N[longer_N] ^ byte_N) * FNV_PRIME
            position += 1
    return hashes_N


def combine_hashes(parts: Sequence[Words], *, seed: int, num_rows: int) -> Words:
    """One hash per row from its keys' hashes and a seed; the order of the keys matters.

    Args:
        parts: uint64 [N] per key.
        seed: any integer.
        num_rows: N, for the case of no key.
    """
    hashes_N = mix_words(np.full(num_rows, seed % 2**64, dtype=np.uint64))
    with np.errstate(over="ignore"):
        for part_N in parts:
            hashes_N = finish_words(hashes_N * FNV_PRIME ^ part_N)
    return hashes_N


def unit_interval(hashes_N: Words) -> npt.NDArray[np.float64]:
    """Map hashes to [0, 1) with 53 bits."""
    return (hashes_N >> np.uint64(11)).astype(np.float64) * 2.0**-53
