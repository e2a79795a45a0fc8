"""Small integers as a stream of bits: quantisation codes, block maps and masks, at exactly the bits that they need.

Value number j of width b occupies bits j*b .. (j+1)*b - 1; bit i of the stream is bit i % 8 of byte i // 8.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from embank.tables.method.together import Array

VALUES_PER_CHUNK = 1 << 16  # a multiple of 8, so that a chunk ends with a byte
_LANES = 8  # bytes of a word, and bits of a byte


def code_bits(num_codes: int) -> int:
    """Bits that tell `num_codes` values apart: 0 for one value, 8 for 256."""
    return (num_codes - 1).bit_length()


def packed_nbytes(num_values: int, bits: int) -> int:
    """Bytes of a stream."""
    return -(-num_values * bits // 8)  # rounded up


def pack_values(values: Tensor, *, bits: int) -> Tensor:
    """Packs integers into a stream.

    Args:
        values: integers or booleans in [0, 2**bits), any shape, taken in row-major order.
        bits: 0 .. 32.

    Returns:
        uint8 [packed_nbytes(values.numel(), bits)].

    Example:
        >>> stream = pack_values(torch.tensor([5, 1, 7]), bits=3)  # 101, 001, 111, each from its lowest bit
        >>> [f"{byte:08b}" for byte in stream.tolist()]
        ['11001101', '00000001']
        >>> read_values(stream, torch.tensor([2, 0]), bits=3)
        tensor([7, 5])
    """
    flat = values.reshape(-1)
    stream = torch.empty(packed_nbytes(flat.numel(), bits), dtype=torch.uint8)
    places = torch.arange(bits)
    weights = 2 ** torch.arange(8)
    for start in range(0, flat.numel() if bits else 0, VALUES_PER_CHUNK):
        chunk = flat[start : start + VALUES_PER_CHUNK].long()
        # The bits of each value, its lowest first, are the stream's order already; zeros fill up the last byte.
        ones = ((chunk[:, None] >> places) & 1).reshape(-1)
        ones = torch.nn.functional.pad(ones, (0, -ones.numel() % 8)).view(-1, 8)
        first = start * bits // 8
        stream[first : first + ones.shape[0]] = (ones * weights).sum(1).to(torch.uint8)
    return stream


def read_values(stream: Tensor, positions: Tensor, *, bits: int, first_byte: int | Tensor = 0) -> Tensor:
    """Reads values from a stream.

    Args:
        stream: uint8, from `pack_values`, or several streams in one piece of memory.
        positions: int64, any shape: which values.
        bits: as when packed.
        first_byte: where the stream begins; for several of them of each position, broadcast.

    Returns:
        int64 of the shape of `positions`.
    """
    if bits == 0:
        return torch.zeros_like(positions)
    if bits == 8:
        return picked(stream, positions + first_byte).long()
    first_bit = positions * bits
    at_byte = (first_bit >> 3) + first_byte
    value = picked(stream, at_byte).long()
    # A value begins at one of the 8 bits of its first byte, so it touches at most ceil((bits + 7) / 8) bytes; of 1, 2
    # and 4 bits it never crosses one. The last values may touch bytes after the end; whatever is read in their place,
    # the mask below drops it.
    num_bytes = 1 if 8 % bits == 0 else (bits + 14) // 8
    for i in range(1, num_bytes):
        value = value | picked(stream, (at_byte + i).clamp(max=stream.numel() - 1)).long() << (8 * i)
    return (value >> (first_bit & 7)) & ((1 << bits) - 1)


def read_rows(stream: Tensor, rows_N: Tensor, *, dim: int, bits: int) -> Tensor:
    """All values of some rows of a matrix that was packed as a stream.

    Args:
        stream: from `pack_values`, of [R, dim] values.
        rows_N: int64, which rows.
        dim: values of a row.
        bits: as when packed; 1 .. 8.

    Returns:
        Integers [N, dim], of a type that follows from dim and bits.

    Example:
        >>> stream = pack_values(torch.tensor([[5, 1], [7, 15]]), bits=4)
        >>> read_rows(stream, torch.tensor([1]), dim=2, bits=4)
        tensor([[ 7, 15]], dtype=torch.uint8)
    """
    if dim * bits % 8:
        return read_values(stream, rows_N.unsqueeze(1) * dim + torch.arange(dim, device=rows_N.device), bits=bits)
    bytes_NB = stream.view(-1, dim * bits // 8).index_select(0, rows_N)  # a row begins with a byte
    if bits == 8:
        return bytes_NB
    if 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=rows_N.device)
        values = torch.bitwise_right_shift(bytes_NB.unsqueeze(2), shifts).bitwise_and((1 << bits) - 1)
        return values.reshape(-1, dim)
    # A value lies in two bytes at most; after the row's last one comes a zero.
    padded_NX = torch.nn.functional.pad(bytes_NB, (0, 1)).int()
    first_bit_D = torch.arange(0, dim * bits, bits, device=rows_N.device)
    first_byte_D, shift_D = first_bit_D >> 3, (first_bit_D & 7).int()
    high_ND = padded_NX.index_select(1, first_byte_D + 1) * 256
    both_ND = padded_NX.index_select(1, first_byte_D).bitwise_or(high_ND)
    return torch.bitwise_right_shift(both_ND, shift_D).bitwise_and((1 << bits) - 1)


def bits_at(stream: Array, first_bit: Array, *, bits: int | Array) -> Array:
    """Values of a stream by NumPy, which is quicker for few.

    Args:
        stream: uint8, see `pack_values`.
        first_bit: where each value begins, int64 of any shape, at least one dimension.
        bits: of all values, or of each one, broadcast; 0 .. 32.

    Returns:
        int64 of the shape of `first_bit`.

    Example:
        >>> stream = pack_values(torch.tensor([5, 1, 7]), bits=3).numpy()
        >>> bits_at(stream, np.array([0, 3, 6]), bits=3).tolist()
        [5, 1, 7]
    """
    widest, mask = (bits, (1 << bits) - 1) if isinstance(bits, int) else (int(bits.max(initial=0)), (1 << bits) - 1)
    if not widest:
        return np.zeros_like(first_bit)
    at_byte = first_bit >> 3
    values = stream.take(at_byte).astype(np.int64)
    # As in `read_values`; here values may be of several widths, and begin anywhere.
    num_bytes = 1 if isinstance(bits, int) and 8 % bits == 0 else (widest + 14) // 8
    for i in range(1, num_bytes):
        values |= stream.take(np.minimum(at_byte + i, stream.size - 1)).astype(np.int64) << 8 * i
    values >>= first_bit & 7
    values &= mask
    return values


@cache
def numbers_of_bytes(bits: int) -> Array:
    """The values that each byte holds, the lowest first, as fp32 and as if they were one number: what `take` gives for
    bytes is to be seen as fp32. For all who ask one array, which nobody writes to.

    Args:
        bits: of a value, 2 or 4.

    Example:
        >>> numbers_of_bytes(4).take(np.array([0x21, 0xF0])).view(np.float32).tolist()
        [1.0, 2.0, 0.0, 15.0]
    """
    numbers = np.arange(256)[:, None] >> np.arange(0, 8, bits) & (1 << bits) - 1
    return numbers.astype(np.float32).view(np.complex64 if bits == 4 else np.complex128).ravel()


def values_per_word(num_values: int, bits: int) -> int:
    """How many values of a row are read as one word of 64 bits, if rows begin with a byte; 0 where none divides them.

    Example:
        >>> values_per_word(16, 6), values_per_word(3, 6)  # 6 bytes; 18 bits are no bytes
        (8, 0)
    """
    sizes = (size for size in (8, 4, 2, 1) if not num_values % size and not size * bits % 8 and size * bits <= 64)
    return next(sizes, 0)


def words_of(stream: Array) -> Array:
    """Any eight bytes of a stream as a word, uint64 [bytes - 7], in place: what begins at byte i is word i."""
    return np.ndarray((max(0, stream.size - 7),), "<u8", stream.data, strides=(1,))


def values_of_words(words: Array, *, bits: int, per_word: int) -> Array:
    """Values that words begin with, by NumPy. What else a word holds is left out.

    Args:
        words: uint64 [..., W].
        bits: of a value, 1 .. 32.
        per_word: see `values_per_word`, not 0.

    Returns:
        [..., W values of each word]: uint8 where eight of them fit into a word as bytes, int64 otherwise.

    Example:
        >>> stream = pack_values(torch.tensor([5, 1, 7, 2, 0, 3, 4, 6, 1]), bits=3)
        >>> words = words_of(np.pad(stream.numpy(), (0, 4)))
        >>> values_of_words(words[:1], bits=3, per_word=8).tolist()
        [5, 1, 7, 2, 0, 3, 4, 6]
    """
    shape = (*words.shape[:-1], words.shape[-1] * per_word)
    if per_word == _LANES and bits <= _LANES:
        lanes = words
        for low, high, shift in _spreads(bits):
            lanes = (lanes & low) | ((lanes & high) << shift)
        return np.ascontiguousarray(lanes).view(np.uint8).reshape(shape)
    first_bit = np.arange(0, per_word * bits, bits, dtype=np.uint64)
    values: Array = (words[..., None] >> first_bit) & np.uint64((1 << bits) - 1)
    return values.astype(np.int64).reshape(shape)


@cache
def _spreads(bits: int) -> tuple[tuple[np.uint64, np.uint64, np.uint64], ...]:
    """What moves eight values of a word apart to its bytes: first four of them, then two of each four, then one of each
    two. Of each move which bits stay, which ones move, and how far."""
    moves = []
    for num in (4, 2, 1) if bits < _LANES else ():
        low = sum(((1 << num * bits) - 1) << lane for lane in range(0, 64, 2 * num * _LANES))
        high = (low << num * bits) & (2**64 - 1)
        moves.append((np.uint64(low), np.uint64(high), np.uint64(num * (_LANES - bits))))
    return tuple(moves)


def picked(values: Tensor, positions: Tensor) -> Tensor:
    """Values of a list at some positions, int64 of any shape: `values[positions]`, four times as fast for many of them
    on a CPU."""
    return values.index_select(0, positions.reshape(-1)).view(positions.shape)
