"""What a model asks for (`TableSpec`) and what is really held (`PhysicalTable`)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from embank.tables.errors import ConfigError
from embank.tables.hashing import generator_of, seed_of

Pooling = Literal["sum", "mean"]

ROWS_PER_CHUNK = 65_536
"""Rows are initialised in chunks of this many, each from its own seed: any range of rows can be made without the others."""


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """A logical table: `num_embeddings x embedding_dim`, as the model sees it.

    Args:
        name: unique in its collection; seeds and hash salts come from it, so renaming a table changes its values.
        num_embeddings: number of ids; valid ids are 0 .. num_embeddings - 1.
        embedding_dim: width of a logical row.
        feature_names: keys of the KeyedJaggedTensor that are looked up in this table.
        pooling: how the rows of a bag become one: their sum or their mean (an empty bag gives zeros).
        method: name of a registered method; how the table is stored.
        options: the method's own configuration (an instance of its `Config`); None takes its defaults.
        budget: serving bytes / bytes of the plain fp32 table, in (0, 1]; None leaves the size to the options.
        init_std: standard deviation of normal initial values; None draws from U(-b, b), b = num_embeddings ** -0.5, as
            TorchRec does.
        counts: int64 [num_embeddings], occurrences of each id in training, for the methods that use them.
        stage: for methods that train in several stages, the index of the current one.
        found: what the stages before have found (`Advance.found`).

    Raises:
        ConfigError: a size below 1, no feature, a budget outside (0, 1], counts of another length.
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    feature_names: Sequence[str]
    pooling: Pooling = "sum"
    method: str = "full"
    options: Any = None
    budget: float | None = None
    init_std: float | None = None
    counts: Tensor | None = field(default=None, compare=False, repr=False)
    stage: int = 0
    found: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.feature_names, str):
            raise ConfigError(
                f"table '{self.name}' has feature_names {self.feature_names!r}; give a list, [{self.feature_names!r}]"
            )
        object.__setattr__(self, "feature_names", tuple(self.feature_names))
        if len(set(self.feature_names)) < len(self.feature_names):
            raise ConfigError(
                f"table '{self.name}' names a feature twice in {list(self.feature_names)}; name each once"
            )
        for key in ("num_embeddings", "embedding_dim"):
            value = getattr(self, key)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"table '{self.name}' has {key} {value}; it must be a whole number of at least 1")
        if not self.feature_names:
            raise ConfigError(f"table '{self.name}' has no feature_names; name at least one key of the input")
        if self.pooling not in ("sum", "mean"):
            raise ConfigError(f"table '{self.name}' has pooling '{self.pooling}'; use 'sum' or 'mean'")
        if self.budget is not None and not 0 < self.budget <= 1:
            raise ConfigError(
                f"table '{self.name}' has budget {self.budget}; a budget is serving bytes / bytes of the plain fp32 "
                "table and lies in (0, 1]"
            )
        if self.counts is not None and self.counts.shape != (self.num_embeddings,):
            raise ConfigError(
                f"table '{self.name}' has counts of shape {tuple(self.counts.shape)} for {self.num_embeddings} ids; give one per id"
            )

    @property
    def plain_nbytes(self) -> int:
        """Bytes of the plain fp32 table, what budgets refer to."""
        return 4 * self.num_embeddings * self.embedding_dim


@dataclass(frozen=True, kw_only=True)
class RowInit:
    """Initial values of a physical table's rows.

    Args:
        kind: "uniform" draws U(mean - scale, mean + scale), "normal" draws N(mean, scale**2).
        scale: half width or standard deviation; 0 sets every value to the mean.
        mean: centre of the distribution.
    """

    kind: Literal["uniform", "normal"] = "uniform"
    scale: float
    mean: float = 0.0

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
            values = target if low == start and target.is_contiguous() else torch.empty(high - start, dim)
            generator = generator_of(seed, "rows", table, chunk)
            if self.kind == "uniform":
                values.uniform_(self.mean - self.scale, self.mean + self.scale, generator=generator)
            else:
                values.normal_(self.mean, self.scale, generator=generator)
            if values is not target:
                target.copy_(values[low - start :])


def default_init(spec: TableSpec) -> RowInit:
    """Initial values of a table whose rows are used as they are."""
    if spec.init_std is not None:
        return RowInit(kind="normal", scale=spec.init_std)
    return RowInit(scale=spec.num_embeddings**-0.5)


class RowProjection(Protocol):
    """What is done to rows after each update of theirs, such as rounding to a grid. A frozen dataclass, so that tables compare."""

    def __call__(self, rows_UD: Tensor, rows_U: Tensor, *, seed: int) -> Tensor:
        """New values of rows that were just updated.

        Args:
            rows_UD: their values.
            rows_U: int64, their numbers in the table: with `seed` all that randomness may depend on, so that shards agree with
                the whole table.
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
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    init: RowInit
    projection: RowProjection | None = None


@dataclass(frozen=True, kw_only=True)
class TableShard:
    """The part of a physical table that one process holds: a range of rows and columns.

    Args:
        table: the physical table.
        first_row, num_rows: its rows.
        first_column, num_columns: its columns.
    """

    table: PhysicalTable
    first_row: int
    num_rows: int
    first_column: int
    num_columns: int

    @classmethod
    def whole(cls, table: PhysicalTable) -> "TableShard":
        """All of a table."""
        return cls(
            table=table,
            first_row=0,
            num_rows=table.num_embeddings,
            first_column=0,
            num_columns=table.embedding_dim,
        )

    def initial_chunks(self, *, seed: int) -> Iterator[Tensor]:
        """The table's initial values in the part that is held, in order, a few rows at a time; the same however it is cut.

        Args:
            seed: the collection's seed.

        Yields:
            [r, num_columns], r at most `ROWS_PER_CHUNK`; `num_rows` rows in all. A chunk is good until the next one is asked
            for, which may take its memory: fresh memory for each costs more time than drawing the values.
        """
        held = torch.empty(min(self.num_rows, ROWS_PER_CHUNK), self.table.embedding_dim)
        for start in range(0, self.num_rows, ROWS_PER_CHUNK):
            stop = min(self.num_rows, start + ROWS_PER_CHUNK)
            values = held[: stop - start]
            self.table.init.fill(values, seed=seed, table=self.table.name, first_row=self.first_row + start)
            if self.table.projection is not None:
                rows = torch.arange(self.first_row + start, self.first_row + stop)
                values = self.table.projection(values, rows, seed=seed_of(seed, "projection", self.table.name, 0))
            yield values[:, self.first_column : self.first_column + self.num_columns]

    def initialise(self, out_RD: Tensor, *, seed: int) -> None:
        """Writes the initial values.

        Args:
            out_RD: float [num_rows, num_columns], written in place, a few rows at a time.
            seed: the collection's seed.
        """
        start = 0
        for values in self.initial_chunks(seed=seed):
            out_RD[start : start + len(values)] = values
            start += len(values)
