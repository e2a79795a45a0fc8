"""Blocks of rows: which rows of which row groups are in memory together, and in what form.

A *piece* is a run of rows of one Parquet row group; a *block* is the pieces that are in memory together. The plan of an
epoch (which pieces make which block) is a pure function of row counts and seeds, so a place in an epoch is found
without reading any data.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

IntArray = np.ndarray[Any, np.dtype[np.int64]]
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """Row group `index` of part file `part`; its first row is row `first_row` of that file."""

    part: int
    index: int
    first_row: int
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Rows `start` to `stop` of a row group."""

    group: RowGroup
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Bags:
    """A multi-valued feature of R rows: row r has the ids `values[offsets[r]:offsets[r + 1]]`."""

    values: Array  # int32; int64 without a vocabulary
    offsets: IntArray  # [R + 1]

    def slice(self, start: int, stop: int) -> Array:
        return self.values[self.offsets[start] : self.offsets[stop]]

    def permuted(self, order_R: IntArray) -> "Bags":
        """Row i of the result is row `order_R[i]` of this."""
        lengths_R = np.diff(self.offsets)[order_R]
        offsets_R1 = np.zeros_like(self.offsets)
        np.cumsum(lengths_R, out=offsets_R1[1:])
        shift_R = self.offsets[order_R] - offsets_R1[:-1]
        index = np.arange(len(self.values)) + np.repeat(shift_R, lengths_R)
        return Bags(values=self.values[index], offsets=offsets_R1)


@dataclass(frozen=True, kw_only=True)
class Block:
    """R rows, column by column, in the order in which they leave.

    Attributes:
        ids: [S, R] int32 (int64 if one has no vocabulary), the S single-valued features in the schema's order.
        bags: the multi-valued features in the schema's order.
        dense: [I, R] float32.
        labels: [R] int8.
        groups: [R] int64, if the data has a group key.
    """

    ids: Array
    bags: tuple[Bags, ...]
    dense: Array
    labels: Array
    groups: IntArray | None
    num_rows: int


def plan_blocks(pieces: Iterable[Piece], *, block_rows: int) -> list[tuple[Piece, ...]]:
    """Consecutive pieces together while they have at most `block_rows` rows; a larger piece is a block of its own."""
    blocks: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        num_rows = piece.stop - piece.start
        if not blocks or num_rows > room:
            blocks.append([])
            room = block_rows
        blocks[-1].append(piece)
        room -= num_rows
    return [tuple(block) for block in blocks]
