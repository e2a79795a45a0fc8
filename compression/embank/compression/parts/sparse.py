"""Packed sparse tables: what pruned tables are served from.

Four forms, of which the smallest is taken. Entries are numbered row by row, e = row * D + column.

| form | holds | bytes for E entries, Z of them non-zero |
|---|---|---|
| dense | every entry | 4 E |
| bitmap | a bit per entry, a rank sample per 512 bits, values in order | E/8 + E/128 + 4 Z |
| list8, list16 | sorted entries as below, values | E/64 + 5 Z, E/16,384 + 6 Z |

A list holds the low 8 or 16 bits of the entries' numbers, and where each 256 or 65,536 entries start.

All are read in place: rank by popcount in the bitmap, binary search in the lists. For comparison, CSR with 4-byte
indices takes 8 Z + 4 (rows + 1) bytes and COO 12 Z.
"""

from bisect import bisect_right
from collections.abc import Hashable, Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from embank.compression.parts.bits import pack_values, picked
from embank.tables.method.together import Array
from embank.tables.serving.codecs.joined import Joined, place_of

FORMS = ("dense", "bitmap", "list8", "list16")
_WORD_BITS = 64
_WORDS_PER_SAMPLE = 8


def popcount(words: Tensor) -> Tensor:
    """Number of ones in each int64.

    Example:
        >>> popcount(torch.tensor([0, 7, -1]))
        tensor([ 0,  3, 64])
    """
    # Sums within the word, of ever wider fields (Warren, "Hacker's Delight", section 5-1). int64 will do: shifts copy
    # the sign bit in from the left, and each mask drops those copies.
    pairs = words - (words >> 1).bitwise_and_(0x5555555555555555)  # a pair of bits ab is 2a + b; minus a, it is a + b
    nibbles = (pairs & 0x3333333333333333).add_((pairs >> 2).bitwise_and_(0x3333333333333333))
    octets = (nibbles >> 4).add_(nibbles).bitwise_and_(0x0F0F0F0F0F0F0F0F)  # at most 8 each: no sum leaves its field
    # The top byte of the product is the sum of all bytes, 64 at most.
    return octets.mul_(0x0101010101010101).bitwise_right_shift_(56)


def rank_bits(mask: Tensor) -> tuple[Tensor, Tensor]:
    """A bitmap in which ones can be counted.

    Args:
        mask: bool, any shape, taken in row-major order.

    Returns:
        Words int64 [ceil(E / 64)], and the number of ones before each eighth word: int32, or int64 from 2**31 ones.

    Example:
        >>> words, samples = rank_bits(torch.tensor([True, False, True, True]))
        >>> words, rank_at(words, samples, torch.tensor([0, 2, 3]))  # ones before positions 0, 2 and 3
        (tensor([13]), tensor([0, 1, 2]))
    """
    return rank_octets(pack_values(mask, bits=1))


def rank_octets(octets: Tensor) -> tuple[Tensor, Tensor]:
    """`rank_bits` of a mask that is packed already: uint8 [ceil(E / 8)]."""
    words = F.pad(octets, (0, -octets.numel() % 8)).view(torch.int64)  # bit i stays bit i % 64: little-endian
    per_sample = F.pad(popcount(words), (0, -words.numel() % _WORDS_PER_SAMPLE)).view(-1, _WORDS_PER_SAMPLE).sum(1)
    total = int(per_sample.sum())
    samples = per_sample.cumsum(0) - per_sample  # ones before each group, not up to its end
    return words, samples.to(torch.int32 if total < 2**31 else torch.int64)


def bit_at(words: Tensor, positions: Tensor) -> Tensor:
    """The bits at some positions, as bool of their shape."""
    return ((picked(words, positions >> 6) >> (positions & 63)) & 1).bool()  # word of 64 bits, and the bit in it


def rank_at(words: Tensor, samples: Tensor, positions_N: Tensor) -> Tensor:
    """Ones before each position, int64 [N]."""
    group_N = positions_N >> 9  # of 8 words of 64 bits: its sample counts what is before it
    near_NW = (group_N << 3).unsqueeze(1) + torch.arange(_WORDS_PER_SAMPLE, device=positions_N.device)
    # How far each word begins above the position: from 0 on all its bits are, down to -64 so many fewer. Those are
    # shifted out.
    above_NW = (near_NW << 6).sub_(positions_N.unsqueeze(1))
    words_NW = picked(words, near_NW.clamp_(max=words.numel() - 1)) << (above_NW + 64).clamp_(0, 63)
    counts_NW = popcount(words_NW).mul_(above_NW < 0)
    return counts_NW.sum(1).add_(samples.index_select(0, group_N))


class JoinedBits:
    """Bitmaps of several tables that `rank_bits` made, in one piece of memory (`place`), read by NumPy.

    Args:
        words: int64 of each.
        samples: of each.
    """

    def __init__(self, words: Sequence[Tensor], samples: Sequence[Tensor]) -> None:
        joined, ranks = Joined([own.unsqueeze(1) for own in words]), Joined([own.unsqueeze(1) for own in samples])
        self._words, self._first_K1 = joined.stream.view(np.uint64), joined.first_K1
        self._last_K1 = self._first_K1 + np.array([[own.numel() - 1] for own in words])
        self._samples, self._first_sample_K1 = ranks.stream, ranks.first_K1

    @staticmethod
    def place(words: Tensor, samples: Tensor) -> Hashable:
        """What bitmaps have in common that are read at once."""
        return place_of(words.unsqueeze(1)), samples.dtype, place_of(samples.unsqueeze(1))

    def words(self, numbers_KB: Array) -> Array:
        """Words uint64 [K, B] of each table; beyond its last one that."""
        words_KB: Array = self._words.take(np.minimum(numbers_KB + self._first_K1, self._last_K1))
        return words_KB

    def at(self, positions_KB: Array) -> tuple[Array, Array]:
        """The words that positions are in, and the bits there, int64 [K, B]."""
        words_KB = self.words(positions_KB >> _SIX)
        bits_KB: Array = (words_KB >> (positions_KB & _IN_WORD).view(np.uint64)) & _ONE
        return words_KB, bits_KB.view(np.int64)

    def ranks(self, positions_KB: Array, words_KB: Array) -> Array:
        """Ones before positions of each table, int64 [K, B]; `words_KB`: those that the positions are in."""
        group_KB = positions_KB >> _GROUP_SHIFT
        ones_KB: Array = self._samples.take(group_KB + self._first_sample_K1).astype(np.int64)
        ones_KB += np.bitwise_count(words_KB & ((_ONE << (positions_KB & _IN_WORD).view(np.uint64)) - _ONE))
        first_KB = (group_KB << _THREE) + self._first_K1
        near_KBW = np.minimum(first_KB[..., None] + _WORD_OF_GROUP, self._last_K1[..., None])
        counts_KB = np.bitwise_count(self._words.take(near_KBW)).view(np.uint64)[..., 0]  # eight bytes, a count in each
        before_KB = ((positions_KB >> _SIX) & _SEVEN) << _THREE
        counts_KB &= (_ONE << before_KB.view(np.uint64)) - _ONE  # those of the words before the position's
        # Sums of up to 448, which take 16 bits each.
        counts_KB = (counts_KB & _LOW_BYTES) + ((counts_KB >> _EIGHT) & _LOW_BYTES)
        counts_KB *= _FOUR_ONES
        ones_KB += (counts_KB >> _TOP).view(np.int64)
        return ones_KB


_THREE, _SIX, _SEVEN, _GROUP_SHIFT, _IN_WORD = (np.array(number) for number in (3, 6, 7, 9, 63))
_ONE, _EIGHT, _TOP, _LOW_BYTES, _FOUR_ONES = (
    np.array(number, dtype=np.uint64) for number in (1, 8, 48, 0x00FF00FF00FF00FF, 0x0001000100010001)
)
_WORD_OF_GROUP = np.arange(_WORDS_PER_SAMPLE)


def word_ranks(words: Tensor) -> Tensor:
    """Ones before each word, int64: eight times the memory of samples, for ranks that are asked for in every step
    (`rank_by_word`)."""
    counts = popcount(words)
    return counts.cumsum(0) - counts


def rank_by_word(words: Tensor, ranks: Tensor, positions_N: Tensor) -> Tensor:
    """Ones before each position, int64 [N], from what `word_ranks` made."""
    word_N = positions_N >> 6
    return ranks[word_N] + popcount(words[word_N] & ((1 << (positions_N & 63)) - 1))


def rank_nbytes(num_bits: int, num_ones: int) -> int:
    """Bytes of what `rank_bits` makes."""
    num_words = -(-num_bits // _WORD_BITS)
    return 8 * num_words + (4 if num_ones < 2**31 else 8) * -(-num_words // _WORDS_PER_SAMPLE)


def form_nbytes(form: str, num_entries: int, nonzeros: Tensor) -> Tensor:
    """Bytes of a table in one form, elementwise for int64 numbers of non-zero entries."""
    index_nbytes = torch.where(nonzeros < 2**31, 4, 8)
    if form == "dense":
        return torch.full_like(nonzeros, 4 * num_entries)
    if form == "bitmap":
        num_words = -(-num_entries // _WORD_BITS)
        return 8 * num_words + index_nbytes * -(-num_words // _WORDS_PER_SAMPLE) + 4 * nonzeros
    low_bits = 8 if form == "list8" else 16
    num_buckets = -(-num_entries // (1 << low_bits))
    return index_nbytes * (num_buckets + 1) + (4 + low_bits // 8) * nonzeros


def sparse_nbytes(num_entries: int, nonzeros: Tensor) -> Tensor:
    """Bytes of a table in its best form, elementwise for int64 numbers of non-zero entries."""
    return torch.stack([form_nbytes(form, num_entries, nonzeros) for form in FORMS]).amin(0)


@cache  # of a table the same at each pruning
def max_nonzeros(num_entries: int, nbytes: int) -> int:
    """The most non-zero entries that fit into some bytes; -1 if not even an empty table does."""
    # Bytes never fall as entries are added, whichever form is the best.
    nonzeros = range(num_entries + 1)
    return bisect_right(nonzeros, nbytes, key=lambda count: int(sparse_nbytes(num_entries, torch.tensor(count)))) - 1
