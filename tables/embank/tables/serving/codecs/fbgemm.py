"""FBGEMM's lookup in quantised tables on a CPU, by its raw operator: many rows of several tables in one call.

Legend: K tables, B ids of each, W numbers of a row.
"""

import sys

import numpy as np
import torch
from torch import Tensor

from embank.tables.method.together import Array

MANY = 128
"""Ids of each table from which on the operator is faster than NumPy."""

_TYPES = {"fp32": 0, "fp16": 1, "int8": 2, "int4": 3, "int2": 4}
"""`SparseType.as_int()`; the placement 3 is `EmbeddingLocation.HOST`."""

_BITS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4, "int2": 2}


_KEPT = 1 << 20
_counted: dict[type, Array] = {}


def _counting(length: int, kind: type) -> Array:
    """0, 1, 2, ...: the offsets of bags with one id each. What most calls need is made once; nobody writes to it."""
    if length > _KEPT:
        return np.arange(length, dtype=kind)
    held = _counted.get(kind)
    if held is None or len(held) < length:
        held = _counted[kind] = np.arange(min(_KEPT, 2 * length), dtype=kind)
    return held[:length]


def is_there() -> bool:
    """Whether this process has FBGEMM. Importing it takes seconds, which a lookup must not."""
    return "fbgemm_gpu" in sys.modules


class FbgemmTables:
    """Tables alike, as the operator is told of them.

    Args:
        starts_K: byte at which each begins.
        kind: of their numbers: fp32, fp16, int8, int4, int2. Of whole numbers a row begins with its step and offset, in
            fp16.
        width: W.
        alignment: bytes of which a row has a multiple.
    """

    def __init__(self, starts_K: Tensor, *, kind: str, width: int, alignment: int = 1) -> None:
        num_tables = len(starts_K)
        self.width, self.alignment = width, alignment
        self.total = num_tables * width
        self.starts_K = starts_K.long()
        self.placements_K = torch.full((num_tables,), 3, dtype=torch.int32)
        self.kinds_K = torch.full((num_tables,), _TYPES[kind], dtype=torch.uint8)
        self.columns_K = torch.arange(num_tables + 1, dtype=torch.int32) * width
        self.nothing = torch.empty(0, dtype=torch.uint8)
        names = {"int2": "max_int2_D", "int4": "max_int4_D", "int8": "max_int8_D"}
        names |= {"fp16": "max_float16_D", "fp32": "max_float32_D"}
        self.widest = {name: width if own == kind else 0 for own, name in names.items()}

    def take(self, weights: Tensor, rows_KB: Array) -> Tensor:
        """Rows fp32 [B, K, W]: a pool of one row each.

        Args:
            weights: bytes of all tables.
            rows_KB: rows of each, within it.
        """
        num_tables, batch_size = rows_KB.shape
        # int32 is half of what is to be read, where bytes and ids can be counted by it
        small = np.int32 if max(weights.numel(), rows_KB.size) < 2**31 else np.int64
        rows_BE: Tensor = torch.ops.fbgemm.int_nbit_split_embedding_codegen_lookup_function(
            dev_weights=weights,
            uvm_weights=self.nothing,
            weights_placements=self.placements_K,
            weights_offsets=self.starts_K,
            weights_tys=self.kinds_K,
            D_offsets=self.columns_K,
            total_D=self.total,
            **self.widest,
            indices=torch.from_numpy(rows_KB.astype(small).ravel()),
            offsets=torch.from_numpy(_counting(rows_KB.size + 1, small)),
            pooling_mode=0,
            indice_weights=None,
            output_dtype=0,
            row_alignment=self.alignment,
        )
        return rows_BE.view(batch_size, num_tables, self.width)


class FusedRows:
    """Rows as FBGEMM holds those of whole numbers, step and offset before the numbers, made for one call of it.

    They are laid out so that the numbers begin where they can be copied in one piece, and no longer than they must be.

    Args:
        bits: of a number: 2, 4 or 8.
        width: numbers of a row.
        num_tables: K.

    Example:
        >>> import fbgemm_gpu
        >>> fused = FusedRows(bits=8, width=4, num_tables=1)
        >>> codes, steps, offsets = np.array([[1, 2, 3, 4]], dtype=np.uint8), np.array([0.5]), np.array([1.0])
        >>> fused.take(codes, steps.astype(np.float16), offsets.astype(np.float16))
        tensor([[[1.5000, 2.0000, 2.5000, 3.0000]]])
    """

    def __init__(self, *, bits: int, width: int, num_tables: int) -> None:
        self._nbytes, self._num_tables = width * bits // 8, num_tables
        piece = min(16, self._nbytes & -self._nbytes)  # bytes that are copied at once: a power of two
        alignment = max(4, piece)
        self._piece = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}[piece]
        self._num_pieces, self._start = self._nbytes // piece, max(0, piece - 4)
        self._stride = -(-(4 + self._nbytes) // alignment) * alignment
        (kind,) = (name for name in ("int8", "int4", "int2") if _BITS[name] == bits)
        starts_K = torch.full((num_tables,), self._start)  # all tables are in the same rows, one after the other
        self._tables = FbgemmTables(starts_K, kind=kind, width=width, alignment=alignment)

    def take(self, codes_NC: Array, steps_N: Array, offsets_N: Array) -> Tensor:
        """Numbers offset + step * code, fp32 [B, K, W], of N = K B rows, table after table. Steps of fp16 times codes
        are exact in fp32, so one rounding or two come to the same.

        Args:
            codes_NC: bytes of each row, first numbers in the lower bits.
            steps_N, offsets_N: fp16.
        """
        num_rows = len(codes_NC)
        memory = np.empty(self._start + num_rows * self._stride, dtype=np.uint8)
        scales_N2: Array = np.ndarray((num_rows, 2), np.float16, memory.data, self._start, (self._stride, 2))
        scales_N2[:, 0], scales_N2[:, 1] = steps_N, offsets_N
        size = np.dtype(self._piece).itemsize
        shape, strides = (num_rows, self._num_pieces), (self._stride, size)
        pieces_NP: Array = np.ndarray(shape, self._piece, memory.data, self._start + 4, strides)
        for place, own_N in enumerate(codes_NC.view(self._piece).T):
            pieces_NP[:, place] = own_N
        rows_KB = np.arange(num_rows).reshape(self._num_tables, -1)
        return self._tables.take(torch.from_numpy(memory), rows_KB)
