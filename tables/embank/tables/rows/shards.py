"""The part of a physical table that one process holds (`TableShard`), and the stripes that row-wise tables are dealt
in."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from embank.tables.ids.hashing import seed_of
from embank.tables.rows.physical import ROWS_PER_CHUNK, PhysicalTable

STRIPES = 64
"""Rows of a striped table are dealt to this many stripes, which are stored one after the other."""

_STRIPE_OF = torch.tensor([int(f"{residue:06b}"[::-1], 2) for residue in range(STRIPES)])
"""Stripe of a row by `row % STRIPES`: bits reversed, so that the first rows lie far apart (van der Corput's
sequence)."""

_RESIDUE_OF = _STRIPE_OF.argsort()  # the inverse of a permutation is the order that sorts it


@dataclass(frozen=True, kw_only=True)
class TableShard:
    """The part of a physical table that one process holds: a range of positions and columns.

    A row's *position* is its number, except in a striped table. Rows are ranked by frequency, so a plain cut into
    ranges would give the first process nearly all lookups; stripes spread the frequent rows evenly over any number of
    processes, and within a stripe they are neighbours still, which is what pages of a disk like.

    Args:
        table: the physical table.
        first_position, num_rows: which positions are held.
        first_column, num_columns: which columns.
        is_striped: whether positions are striped. A striped table has a few positions without a row, filled with zeros.
    """

    table: PhysicalTable
    first_position: int
    num_rows: int
    first_column: int
    num_columns: int
    is_striped: bool = False

    @classmethod
    def whole(cls, table: PhysicalTable) -> "TableShard":
        """All of a table."""
        return cls(
            table=table,
            first_position=0,
            num_rows=table.num_embeddings,
            first_column=0,
            num_columns=table.embedding_dim,
        )

    @property
    def num_positions(self) -> int:
        """Positions of the whole table."""
        return num_positions(self.table.num_embeddings) if self.is_striped else self.table.num_embeddings

    def row_numbers(self, local_N: Tensor | None = None) -> Tensor:
        """Rows of the table, int64, that some local rows (all, by default) are; `num_embeddings` or more for a position
        without one."""
        positions = (torch.arange(self.num_rows) if local_N is None else local_N) + self.first_position
        return rows_at(positions, num_rows=self.table.num_embeddings) if self.is_striped else positions

    def local_rows(self, rows_N: Tensor) -> tuple[Tensor, Tensor]:
        """Which of some rows of the table are held here (as indices into `rows_N`), and their local numbers."""
        positions = positions_of(rows_N, num_rows=self.table.num_embeddings) if self.is_striped else rows_N
        local = positions - self.first_position
        held = ((local >= 0) & (local < self.num_rows)).nonzero().squeeze(1)
        return held, local[held]

    def initial_chunks(self, *, seed: int) -> Iterator[Tensor]:
        """The table's initial values in the part that is held, in order, a few rows at a time; the same however it is
        cut.

        Args:
            seed: the collection's seed.

        Yields:
            [r, num_columns], r at most `ROWS_PER_CHUNK`; `num_rows` rows in all. A chunk is good until the next one is
            asked
            for, which may take its memory: fresh memory for each costs more time than drawing the values.
        """
        if self.is_striped:
            # In the order of positions they would have to be drawn once per stripe: see `scatter_initial`.
            for start in range(0, self.num_rows, ROWS_PER_CHUNK):
                yield torch.zeros(min(ROWS_PER_CHUNK, self.num_rows - start), self.num_columns, dtype=torch.float32)
            return
        memory = torch.empty(min(self.num_rows, ROWS_PER_CHUNK), self.table.embedding_dim, dtype=torch.float32)
        for start in range(self.first_position, self.first_position + self.num_rows, ROWS_PER_CHUNK):
            rows = torch.arange(start, min(self.first_position + self.num_rows, start + ROWS_PER_CHUNK))
            yield self._initial_values(rows, memory, seed=seed)

    def write_initial(self, out_RD: Tensor, *, seed: int) -> None:
        """Writes what `initial_chunks` gives, in place, on any device."""
        start = 0
        for chunk in self.initial_chunks(seed=seed):
            out_RD[start : start + len(chunk)] = chunk
            start += len(chunk)

    def scatter_initial(self, out_RD: Tensor, *, seed: int) -> None:
        """Writes the initial values of a striped shard, whose positions are not in the order in which rows are drawn.

        Args:
            out_RD: float [num_rows, num_columns], written in place.
            seed: the collection's seed.
        """
        if not self.is_striped:
            return
        memory = torch.empty(
            min(self.table.num_embeddings, ROWS_PER_CHUNK), self.table.embedding_dim, dtype=torch.float32
        )
        for rows in torch.split(torch.arange(self.table.num_embeddings), ROWS_PER_CHUNK):
            held, local = self.local_rows(rows)
            if held.numel():
                out_RD[local] = self._initial_values(rows, memory, seed=seed)[held].to(out_RD)

    def _initial_values(self, rows_N: Tensor, memory: Tensor, *, seed: int) -> Tensor:
        """Initial values of consecutive rows of the table, in the columns that are held, drawn into some memory."""
        table = self.table
        values = memory[: rows_N.numel()]
        table.init.fill(values, seed=seed, table=table.name, first_row=int(rows_N[0]))
        if table.projection is not None:
            values = table.projection(values, rows_N, seed=seed_of(seed, "projection", table.name, 0))
        return values[:, self.first_column : self.first_column + self.num_columns]


def num_positions(num_rows: int) -> int:
    """Positions of a striped table: its rows, rounded up to a multiple of the number of stripes."""
    return -(-num_rows // STRIPES) * STRIPES


def positions_of(rows_N: Tensor, *, num_rows: int) -> Tensor:
    """Positions of rows in a striped table of num_rows rows.

    Example:
        >>> positions_of(torch.arange(4), num_rows=640)  # 64 stripes of 10: the first rows are far apart
        tensor([  0, 320, 160, 480])
    """
    per_stripe = -(-num_rows // STRIPES)  # rounded up: all stripes are equally long, the last row of some is empty
    return _STRIPE_OF[rows_N % STRIPES] * per_stripe + rows_N // STRIPES


def rows_at(positions_N: Tensor, *, num_rows: int) -> Tensor:
    """The inverse of `positions_of`; num_rows or more for a position without a row.

    Example:
        >>> rows_at(torch.tensor([0, 320, 160, 480]), num_rows=640)
        tensor([0, 1, 2, 3])
    """
    per_stripe = -(-num_rows // STRIPES)
    return (positions_N % per_stripe) * STRIPES + _RESIDUE_OF[positions_N // per_stripe]
