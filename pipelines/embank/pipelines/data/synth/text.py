"""Rows as text, vectorised: a fixed-width byte matrix per chunk, from which the unused bytes are dropped at the end."""

from typing import Any

import numpy as np

from embank.pipelines.data.synth.fields import CRITEO_FIELDS, CRITEO_NUMBERS
from embank.pipelines.data.synth.model import MISSING_NUMBER, MISSING_RANK, Ints, Unit
from embank.pipelines.data.synth.zipf import Ranks
from embank.tables.ids.mixing import bits_of

Words = np.ndarray[Any, np.dtype[np.uint32]]


def tokens(ranks_N: Ranks, *, seed: int, field: str) -> Words:
    """The 32-bit tokens of ranks, distinct within a field: a keyed bijection of 32-bit integers.

    Source: the finaliser of MurmurHash3 (A. Appleby), whose steps are each invertible.
    """
    key = bits_of(f"{seed}/token/{field}".encode(), num_bytes=4)
    word_N = ranks_N.astype(np.uint32) ^ np.uint32(key)
    word_N ^= word_N >> np.uint32(16)
    word_N *= np.uint32(0x85EBCA6B)
    word_N ^= word_N >> np.uint32(13)
    word_N *= np.uint32(0xC2B2AE35)
    word_N ^= word_N >> np.uint32(16)
    return word_N


def hex_digits(words_N: Words) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[N, 8] ASCII lower-case hex digits, most significant first."""
    halves_N2 = np.stack([_HEX[words_N >> np.uint32(16)], _HEX[words_N & np.uint32(0xFFFF)]], axis=1)
    return halves_N2.view(np.uint8)


def render(unit: Unit, start: int, stop: int, *, seed: int) -> bytes:
    """Rows `start` to `stop` as tab-separated lines: label, I1 to I13, C1 to C26; a missing cell is empty."""
    lines = np.zeros(stop - start, dtype=_LINE)
    lines["label"] = unit.labels[start:stop] + ord("0")
    lines["end"] = ord("\n")
    for column, numbers_N in zip(CRITEO_NUMBERS, unit.numbers, strict=True):
        _render_numbers(lines, column.name, numbers_N[start:stop])
    for field, ranks_N in zip(CRITEO_FIELDS, unit.ranks, strict=True):
        part_N = ranks_N[start:stop]
        words_N = tokens(part_N, seed=seed, field=field.name)
        high_N, low_N = _HEX[words_N >> np.uint32(16)], _HEX[words_N & np.uint32(0xFFFF)]
        if field.missing:
            missing_N = part_N == MISSING_RANK
            high_N[missing_N] = low_N[missing_N] = 0
        lines[field.name + ".tab"], lines[field.name + ".high"], lines[field.name + ".low"] = ord("\t"), high_N, low_N
    return lines.tobytes().translate(None, b"\0")


def _render_numbers(lines: Any, name: str, numbers_N: Ints) -> None:
    """Up to eight digits: the upper four without leading zeros, the lower four with them if the upper are not empty."""
    missing_N = numbers_N == MISSING_NUMBER
    sizes_N = np.abs(np.where(missing_N, 0, numbers_N))
    upper_N, lower_N = np.divmod(sizes_N, np.int32(10_000))
    lower_text_N = _DIGITS[lower_N + 10_000 * (upper_N > 0)]
    lower_text_N[missing_N] = 0
    lines[name + ".tab"] = ord("\t")
    lines[name + ".sign"] = np.where((numbers_N < 0) & ~missing_N, ord("-"), 0)
    lines[name + ".high"] = np.where(upper_N > 0, _DIGITS[upper_N], 0)
    lines[name + ".low"] = lower_text_N


def _words(texts: list[bytes]) -> Words:
    """Four bytes each, filled with zeros on the left, as one native 32-bit word."""
    return np.frombuffer(b"".join(text.rjust(4, b"\0") for text in texts), dtype=np.uint32).copy()


_HEX = _words([b"%04x" % value for value in range(65_536)])
_DIGITS = _words([b"%d" % value for value in range(10_000)] + [b"%04d" % value for value in range(10_000)])
_LINE = np.dtype(
    [("label", "u1")]
    + [
        (f"{column.name}.{part}", kind)
        for column in CRITEO_NUMBERS
        for part, kind in (("tab", "u1"), ("sign", "u1"), ("high", "u4"), ("low", "u4"))
    ]
    + [
        (f"{field.name}.{part}", kind)
        for field in CRITEO_FIELDS
        for part, kind in (("tab", "u1"), ("high", "u4"), ("low", "u4"))
    ]
    + [("end", "u1")]
)
