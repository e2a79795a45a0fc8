"""What all hashes here are made of: a mixer of 64 bits, and bits from names. They never change.

The mixer is splitmix64's (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014; the
constants of Java 8's `SplittableRandom`): a bijection of the 64-bit integers whose every output bit depends on every
input bit. `embank.tables.ids.hashing` has it for tensors.
"""

import hashlib

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

ALL_BITS = 2**64 - 1
GAMMA, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The increment, which is the golden ratio's fraction, and two multipliers from a search (Stafford's variant 13): all
are odd, and chosen for how well they spread bits."""


def mix(value: int) -> int:
    """64 well-spread bits of an integer of 64 bits.

    Example:
        >>> hex(mix(0)), hex(mix(1))
        ('0xe220a8397b1dcdaf', '0x910a2dec89025cc1')
    """
    z = (value + GAMMA) & ALL_BITS
    z = ((z ^ (z >> 30)) * FIRST) & ALL_BITS
    z = ((z ^ (z >> 27)) * SECOND) & ALL_BITS
    return z ^ (z >> 31)


def mix_words(words_N: Words) -> Words:
    """The same for an array, uint64 [N]."""
    with np.errstate(over="ignore"):
        return finish_words(words_N + np.uint64(GAMMA))


def finish_words(words_N: Words) -> Words:
    """The mixer without the increment, which has 0 for 0: the end of a hash that is not 0 already."""
    with np.errstate(over="ignore"):  # unsigned products wrap, which is what modulo 2**64 means
        mixed_N = (words_N ^ (words_N >> np.uint64(30))) * np.uint64(FIRST)
        mixed_N = (mixed_N ^ (mixed_N >> np.uint64(27))) * np.uint64(SECOND)
        return mixed_N ^ (mixed_N >> np.uint64(31))


_GAMMA, _FIRST, _SECOND, _POSITIVE, _BITS30, _BITS27, _BITS31 = (
    np.array(constant, dtype=np.uint64) for constant in (GAMMA, FIRST, SECOND, 2**63 - 1, 30, 27, 31)
)
"""Arrays without dimensions: of numbers, and of arrays that it has to stretch, NumPy asks more."""


def hash_words(words: Words, *, num_rows: Words, salt: Words) -> Words:
    """Rows in [0, num_rows) for ids, as `embank.tables.ids.hashing.hash_rows` has them: quicker for few.

    Args:
        words: ids, any shape of at least one dimension.
        num_rows: at least 1; broadcast with the ids.
        salt: broadcast with the ids.

    Example:
        >>> words, one = np.arange(4, dtype=np.uint64), np.ones(1, dtype=np.uint64)
        >>> hash_words(words, num_rows=10 * one, salt=one).tolist()
        [7, 7, 3, 2]
    """
    z = words ^ salt
    z += _GAMMA
    z ^= z >> _BITS30
    z *= _FIRST
    z ^= z >> _BITS27
    z *= _SECOND
    z ^= z >> _BITS31
    z &= _POSITIVE
    z %= num_rows
    return z


def bits_of(data: bytes, *, num_bytes: int = 8, signed: bool = False) -> int:
    """An integer of so many bytes from any number of them: BLAKE2b, little-endian."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=num_bytes).digest(), "little", signed=signed)
