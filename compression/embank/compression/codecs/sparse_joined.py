"""Sparse rows of several tables at once, by NumPy: what `SparseRows.take` does, step by step.

Legend: K tables, B ids of each, D columns, N values of a table.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from embank.compression.parts.sparse import JoinedBits
from embank.tables.method.together import Array
from embank.tables.serving.codecs.joined import Joined

if TYPE_CHECKING:
    from embank.compression.codecs.sparse import SparseRows

_ZERO, _ONE, _SIX, _IN_WORD = (np.array(number) for number in (0, 1, 6, 63))


class _JoinedSparse:
    """What both forms share.

    Args:
        matrices: of one `joint_place`.
        values: what gives values [M, K, 1] at places [K, M].
    """

    def __init__(self, matrices: "Sequence[SparseRows]", values: Callable[[Array], Tensor]) -> None:
        self._dim = np.array(matrices[0].dim)
        self._column_D = np.arange(matrices[0].dim)
        self._num_values_K1 = np.array([[matrix._num_values()] for matrix in matrices])
        self._values = values

    def _values_at(self, places_KBD: Array) -> Array:
        """Values fp32 [B, K, D].

        Raises:
            IndexError: a place is beyond the values of its table, for all of them another one's.
        """
        num_tables, num_ids, dim = places_KBD.shape
        places_KM, last_KB = places_KBD.reshape(num_tables, -1), places_KBD[..., -1]  # they ascend
        if np.count_nonzero(last_KB.view(np.uint64) >= self._num_values_K1.view(np.uint64)):
            raise IndexError("entries of a sparse table lie beyond its values")
        return self._values(places_KM).numpy().reshape(num_ids, dim, num_tables).transpose(0, 2, 1)


class JoinedBitmaps(_JoinedSparse):
    """Rows fp32 [B, K, D] of row ids [K, B] of tables in the form "bitmap"."""

    def __init__(self, matrices: "Sequence[SparseRows]", values: Callable[[Array], Tensor]) -> None:
        super().__init__(matrices, values)
        self._bits = JoinedBits([matrix.words for matrix in matrices], [matrix.samples for matrix in matrices])

    def __call__(self, rows_KB: Array) -> Tensor:
        begin_KB = rows_KB * self._dim
        word_KB, shift_KB = begin_KB >> _SIX, (begin_KB & _IN_WORD).view(np.uint64)
        words_KB = self._bits.words(word_KB)
        # The row's bits as a word. Where it ends in the next one, that comes above; by 64 bits at once none can shift.
        above_KB = self._bits.words(word_KB + _ONE) << (shift_KB ^ _IN_WORD.view(np.uint64)) << _ONE.view(np.uint64)
        row_KB = (words_KB >> shift_KB) | above_KB
        held_KBD = np.unpackbits(
            row_KB[..., None].view(np.uint8), axis=-1, count=len(self._column_D), bitorder="little"
        )
        places_KBD = held_KBD.cumsum(-1, dtype=np.int64)
        places_KBD += (self._bits.ranks(begin_KB, words_KB) - _ONE)[..., None]
        np.maximum(places_KBD, 0, out=places_KBD)
        return torch.from_numpy(self._values_at(places_KBD) * held_KBD.transpose(1, 0, 2))


class JoinedLists(_JoinedSparse):
    """The same of tables in the form "list8" or "list16"."""

    def __init__(self, matrices: "Sequence[SparseRows]", values: Callable[[Array], Tensor]) -> None:
        super().__init__(matrices, values)
        one = matrices[0]
        starts, lows = (
            Joined([getattr(matrix, name).unsqueeze(1) for matrix in matrices]) for name in ("starts", "lows")
        )
        self._starts, self._first_start_K1 = starts.stream, starts.first_K1
        self._last_start_K1 = self._first_start_K1 + np.array([[matrix.starts.numel() - 1] for matrix in matrices])
        self._lows, self._first_low_K1 = lows.stream, lows.first_K1
        self._low_bits, self._shift = one._low_bits, 0 if one._low_bits == 8 else 1 << 15
        self._num_steps = max(matrix.num_steps for matrix in matrices)
        self._reach = np.arange(one.dim // (1 << one._low_bits) + 3)

    def __call__(self, rows_KB: Array) -> Tensor:
        begin_KB = rows_KB * self._dim
        bucket_KB = begin_KB >> self._low_bits
        near_KBX = np.minimum(
            (bucket_KB + self._first_start_K1)[..., None] + self._reach, self._last_start_K1[..., None]
        )
        edges_KBX = self._starts.take(near_KBX).astype(np.int64)
        wanted_KB = begin_KB - (bucket_KB << self._low_bits) - self._shift
        place_KB = self._num_below(wanted_KB, edges_KBX[..., 0], edges_KBX[..., 1])
        places_KBD = place_KB[..., None] + self._column_D
        held_KBD = np.minimum(places_KBD, self._num_values_K1[..., None] - 1)
        high_KBD = np.broadcast_to(bucket_KB[..., None], places_KBD.shape).copy()
        for edge in range(1, edges_KBX.shape[-1]):
            high_KBD += places_KBD >= edges_KBX[..., edge, None]
        column_KBD = (high_KBD << self._low_bits) + self._lows_at(held_KBD) + self._shift - begin_KB[..., None]
        dim = len(self._column_D)
        column_KBD = np.minimum(np.where(places_KBD < self._num_values_K1[..., None], column_KBD, dim), dim)
        out_KBX = np.zeros((*rows_KB.shape, dim + 1), dtype=np.float32)  # a column too many: of what is not the row's
        first_KBX = np.arange(0, out_KBX.size, dim + 1).reshape(*rows_KB.shape, 1)
        out_KBX.reshape(-1)[first_KBX + column_KBD] = self._values_at(held_KBD).transpose(1, 0, 2)
        return torch.from_numpy(out_KBX[..., :-1].transpose(1, 0, 2).copy())

    def _num_below(self, wanted_KB: Array, place_KB: Array, end_KB: Array) -> Array:
        """How many entries of the list are below some: binary search within each one's bucket."""
        place_KB = place_KB.copy()
        last_KB = np.maximum(end_KB - 1, 0)
        for bit in reversed(range(self._num_steps)):
            before_KB = place_KB + ((1 << bit) - 1)
            lows_KB = self._lows_at(np.minimum(before_KB, last_KB))
            place_KB += ((lows_KB < wanted_KB) & (before_KB < end_KB)) * (1 << bit)
        return place_KB

    def _lows_at(self, places: Array) -> Array:
        """Low bits as they are held, int64, at places [K, B, ...] of each table."""
        first = self._first_low_K1.reshape(-1, *[1] * (places.ndim - 1))
        return self._lows.take(places + first).astype(np.int64)
