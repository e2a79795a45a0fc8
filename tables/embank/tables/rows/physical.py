"""A table that has rows (`PhysicalTable`), and what its rows begin with (`RowInit`)."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from embank.tables.ids.hashing import generator_of
from embank.tables.specs import TableSpec

ROWS_PER_CHUNK = 65_536
"""Rows are initialised in chunks of this many, each from its own seed: any range of rows can be made without the
others."""

_NORMALS_AT_ONCE = 16
"""torch makes normal values in groups of so many; what is over at the end, or fewer values than that, it draws in
another way."""


@dataclass(frozen=True, kw_only=True)
class RowInit:
    """Initial values of a physical table's rows.

    Args:
        kind: "uniform" draws U(mean - scale, mean + scale), "normal" draws N(mean, scale**2), "tails" draws the parts
            of a normal distribution beyond two standard deviations, whose products are spread more evenly around 0; its
            own standard deviation is the scale.
        scale: half width or standard deviation; 0 sets every value to the mean.
        mean: centre of the distribution.
        last_column: value of the last column, where that is no weight but a constant of the row; None draws it like the
            others.

    Example:
        >>> rows_RD = torch.empty(2, 3)
        >>> RowInit(scale=0.1).fill(rows_RD, seed=0, table="item")
        >>> rows_RD
        tensor([[ 0.0387,  0.0973, -0.0164],
                [ 0.0580, -0.0037, -0.0956]])
        >>> later_RD = torch.empty(1, 3)
        >>> RowInit(scale=0.1).fill(later_RD, seed=0, table="item", first_row=1)  # a shard equals its part of the table
        >>> torch.equal(later_RD[0], rows_RD[1])
        True
    """

    kind: Literal["uniform", "normal", "tails"] = "uniform"
    scale: float
    mean: float = 0.0
    last_column: float | None = None

    def fill(self, out_RD: Tensor, *, seed: int, table: str, first_row: int = 0) -> None:
        """Writes initial values into rows first_row .. first_row + R of a table, in bounded memory.

        Args:
            out_RD: float [R, D], written in place; may be a view or a mapped file.
            seed: the collection's seed.
            table: the physical table's name.
            first_row: the table's row that out_RD[0] is. Values depend on (seed, table, row) only, so shards that are
                filled apart equal the whole table.
        """
        num_rows, dim = out_RD.shape
        for chunk in range(first_row // ROWS_PER_CHUNK, -(-(first_row + num_rows) // ROWS_PER_CHUNK)):
            start = chunk * ROWS_PER_CHUNK
            low, high = max(first_row, start), min(first_row + num_rows, start + ROWS_PER_CHUNK)
            target = out_RD[low - first_row : high - first_row]
            count = (high - start) * dim
            drawn = count if self.kind != "normal" else -(-count // _NORMALS_AT_ONCE) * _NORMALS_AT_ONCE
            is_in_place = low == start and drawn == count and target.is_contiguous()
            values = target if is_in_place else torch.empty(drawn, dtype=torch.float32)
            self._draw(values, generator_of(seed, "rows", table, chunk))
            if not is_in_place:
                values = values[:count].view(-1, dim)
            if self.last_column is not None:
                values[:, -1] = self.last_column
            if not is_in_place:
                target.copy_(values[low - start :])

    def _draw(self, out: Tensor, generator: torch.Generator) -> None:
        """Values one after the other: the first few of many are those of few."""
        if self.kind == "uniform":
            out.uniform_(self.mean - self.scale, self.mean + self.scale, generator=generator)
        elif self.kind == "normal":
            out.normal_(self.mean, self.scale, generator=generator)
        elif self.kind == "tails":
            out.copy_(self.mean + self.scale * _tails(out.uniform_(-1, 1, generator=generator)))


def _tails(uniform: Tensor) -> Tensor:
    """Standard normal values given that they exceed 2 in size, over their standard deviation, from U(-1, 1) by the
    inverse of the distribution function."""
    tail, density = math.erfc(2**0.5) / 2, math.exp(-2) / (2 * math.pi) ** 0.5
    std = (1 + 2 * density / tail) ** 0.5  # by parts, E[x**2 given x > t] = 1 + t * density(t) / tail(t)
    share = uniform.double().abs().clamp(min=1e-9)
    values: Tensor = -torch.special.ndtri(share * tail) / std
    return values.copysign(uniform).float()


def default_init(spec: TableSpec, *, num_rows: int | None = None) -> RowInit:
    """Initial values of a table whose rows are used as they are.

    Args:
        spec: of the table.
        num_rows: rows that it is hashed to; their number stands for that of the ids where there is no vocabulary.

    Example:
        >>> default_init(TableSpec(name="item", num_embeddings=100, embedding_dim=8, feature_names=["item"]))
        RowInit(kind='uniform', scale=0.1, mean=0.0, last_column=None)
    """
    if spec.init_std is not None:
        return RowInit(kind="normal", scale=spec.init_std)
    num = spec.num_embeddings if spec.has_vocabulary or num_rows is None else num_rows
    return RowInit(scale=num**-0.5)


class RowProjection(Protocol):
    """What is done to rows after each update of theirs, such as rounding to a grid. A frozen dataclass, so that tables
    compare."""

    def __call__(self, rows_UD: Tensor, rows_U: Tensor, *, seed: int) -> Tensor:
        """New values of rows that were just updated.

        Args:
            rows_UD: their values.
            rows_U: int64, their numbers in the table: with `seed` all that randomness may depend on, so that shards
                agree with the whole table.
            seed: differs from update to update and from table to table.

        Returns:
            [U, D].
        """


@dataclass(frozen=True, kw_only=True)
class PhysicalTable:
    """A table that has rows: the unit of sharding, storage and optimizer state.

    Args:
        name: unique among the physical tables of a collection. Two logical tables that name the same physical table
            (with equal fields) share its rows.
        num_embeddings: number of rows.
        embedding_dim: width of a row.
        init: initial values.
        projection: applied to rows after each update of theirs, and once to the initial values.

    Example:
        >>> PhysicalTable(name="item", num_embeddings=1000, embedding_dim=8, init=RowInit(scale=0.1))
        PhysicalTable(name='item', num_embeddings=1000, embedding_dim=8, init=RowInit(kind='uniform', scale=0.1,
        mean=0.0, last_column=None), projection=None)
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    init: RowInit
    projection: RowProjection | None = None
