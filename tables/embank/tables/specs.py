"""What a model asks for (`TableSpec`) and what is really held (`PhysicalTable`)."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from embank.tables.errors import ConfigError
from embank.tables.ids.hashing import generator_of, seed_of
from embank.tables.ids.token_hash import NUM_TOKEN_IDS, TOKEN_HASH_VERSION
from embank.tables.scalars import plain, whole

Pooling = Literal["sum", "mean"]

ROWS_PER_CHUNK = 65_536
"""Rows are initialised in chunks of this many, each from its own seed: any range of rows can be made without the
others."""

_NORMALS_AT_ONCE = 16
"""torch makes normal values in groups of so many; what is over at the end, or fewer values than that, it draws in
another way."""


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """A logical table: `num_embeddings x embedding_dim`, as the model sees it.

    Args:
        name: unique in its collection; seeds and hash salts come from it, so renaming a table changes its values.
        num_embeddings: number of ids; valid ids are 0 .. num_embeddings - 1. `NUM_TOKEN_IDS` for hashes of tokens,
            where there is no vocabulary (see `embank.tables.ids.token_hash`).
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
        fused_pooling: whether the lookup kernel may pool bags, which it can for methods that are linear in their rows.
            False keeps the ids' rows apart until `TableCollection.look_up` has shown them: for losses per id. Results
            are the same.

    Raises:
        ConfigError: a size below 1, no feature, a budget outside (0, 1], counts of another length or type, values of
            other types.
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
    fused_pooling: bool = field(default=True, compare=False, repr=False)

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
            object.__setattr__(self, key, whole(getattr(self, key), what=f"table '{self.name}' has {key}", least=1))
        for key in ("options", "budget", "init_std"):
            object.__setattr__(self, key, plain(getattr(self, key)))
        if self.num_embeddings > NUM_TOKEN_IDS:
            raise ConfigError(
                f"table '{self.name}' has num_embeddings {self.num_embeddings}; ids are int64, so use at most "
                f"{NUM_TOKEN_IDS} (2**63)"
            )
        if not self.feature_names:
            raise ConfigError(f"table '{self.name}' has no feature_names; name at least one key of the input")
        if self.pooling not in ("sum", "mean"):
            raise ConfigError(f"table '{self.name}' has pooling '{self.pooling}'; use 'sum' or 'mean'")
        for key in ("budget", "init_std"):
            value = getattr(self, key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ConfigError(f"table '{self.name}' has {key} {value!r}; it must be a number")
        if self.init_std is not None and not 0 <= self.init_std < math.inf:
            raise ConfigError(f"table '{self.name}' has init_std {self.init_std}; it must be finite and 0 or more")
        if self.budget is not None and not 0 < self.budget <= 1:
            raise ConfigError(
                f"table '{self.name}' has budget {self.budget}; a budget is serving bytes / bytes of the plain fp32 "
                "table and lies in (0, 1]"
            )
        if self.counts is not None and self.counts.shape != (self.num_embeddings,):
            raise ConfigError(
                f"table '{self.name}' has counts of shape {tuple(self.counts.shape)} for {self.num_embeddings} ids; "
                "give one per id"
            )
        if self.counts is not None and self.counts.dtype != torch.int64:
            raise ConfigError(f"table '{self.name}' has counts of type {self.counts.dtype}; they must be torch.int64")

    @property
    def plain_nbytes(self) -> int:
        """Bytes of the plain fp32 table, what budgets refer to."""
        return 4 * self.num_embeddings * self.embedding_dim

    @property
    def has_vocabulary(self) -> bool:
        """Whether ids are places in a list of values; False where they are hashes of tokens."""
        return self.num_embeddings < NUM_TOKEN_IDS


def plain_nbytes_of(specs: Iterable[TableSpec]) -> int | None:
    """Bytes of some plain fp32 tables together; None where one has no vocabulary, so that there is no plain table."""
    listed = list(specs)
    return sum(spec.plain_nbytes for spec in listed) if all(spec.has_vocabulary for spec in listed) else None


def token_hash_version_of(specs: Iterable[TableSpec]) -> int | None:
    """The version of the token hash that rows depend on; None where every table has a vocabulary."""
    return None if all(spec.has_vocabulary for spec in specs) else TOKEN_HASH_VERSION


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
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    init: RowInit
    projection: RowProjection | None = None


STRIPES = 64
"""Rows of a striped table are dealt to this many stripes, which are stored one after the other."""

_STRIPE_OF = torch.tensor([int(f"{residue:06b}"[::-1], 2) for residue in range(STRIPES)])
"""Stripe of a row by `row % STRIPES`: bits reversed, so that the first rows lie far apart (van der Corput's
sequence)."""

_RESIDUE_OF = _STRIPE_OF.argsort()


@dataclass(frozen=True, kw_only=True)
class TableShard:
    """The part of a physical table that one process holds: a range of places and columns.

    A row's *place* is its number, except in a striped table. Rows are ranked by frequency, so a plain cut into ranges
    would give the first process nearly all lookups; stripes spread the frequent rows evenly over any number of
    processes, and within a stripe they are neighbours still, which is what pages of a disk like.

    Args:
        table: the physical table.
        first_place, num_rows: which places are held.
        first_column, num_columns: which columns.
        is_striped: whether places are striped. A striped table has a few places without a row, filled with zeros.
    """

    table: PhysicalTable
    first_place: int
    num_rows: int
    first_column: int
    num_columns: int
    is_striped: bool = False

    @classmethod
    def whole(cls, table: PhysicalTable) -> "TableShard":
        """All of a table."""
        return cls(
            table=table,
            first_place=0,
            num_rows=table.num_embeddings,
            first_column=0,
            num_columns=table.embedding_dim,
        )

    @property
    def num_places(self) -> int:
        """Places of the whole table."""
        return num_places(self.table.num_embeddings) if self.is_striped else self.table.num_embeddings

    def row_numbers(self, local_N: Tensor | None = None) -> Tensor:
        """Rows of the table, int64, that some local rows (all, by default) are; `num_embeddings` or more for a place
        without one."""
        places = (torch.arange(self.num_rows) if local_N is None else local_N) + self.first_place
        return rows_of(places, num_rows=self.table.num_embeddings) if self.is_striped else places

    def local_rows(self, rows_N: Tensor) -> tuple[Tensor, Tensor]:
        """Which of some rows of the table are held here (as indices into `rows_N`), and their local numbers."""
        places = places_of(rows_N, num_rows=self.table.num_embeddings) if self.is_striped else rows_N
        local = places - self.first_place
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
        if self.is_striped:  # in the order of places they would have to be drawn once per stripe: see `scatter_initial`
            for start in range(0, self.num_rows, ROWS_PER_CHUNK):
                yield torch.zeros(min(ROWS_PER_CHUNK, self.num_rows - start), self.num_columns, dtype=torch.float32)
            return
        memory = torch.empty(min(self.num_rows, ROWS_PER_CHUNK), self.table.embedding_dim, dtype=torch.float32)
        for start in range(self.first_place, self.first_place + self.num_rows, ROWS_PER_CHUNK):
            rows = torch.arange(start, min(self.first_place + self.num_rows, start + ROWS_PER_CHUNK))
            yield self._initial_values(rows, memory, seed=seed)

    def write_initial(self, out_RD: Tensor, *, seed: int) -> None:
        """Writes what `initial_chunks` gives, in place, on any device."""
        start = 0
        for chunk in self.initial_chunks(seed=seed):
            out_RD[start : start + len(chunk)] = chunk
            start += len(chunk)

    def scatter_initial(self, out_RD: Tensor, *, seed: int) -> None:
        """Writes the initial values of a striped shard, whose places are not in the order in which rows are drawn.

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
                out_RD[local] = self._initial_values(rows, memory, seed=seed)[held].to(out_RD.device)

    def _initial_values(self, rows_N: Tensor, memory: Tensor, *, seed: int) -> Tensor:
        """Initial values of consecutive rows of the table, in the columns that are held, drawn into some memory."""
        table = self.table
        values = memory[: rows_N.numel()]
        table.init.fill(values, seed=seed, table=table.name, first_row=int(rows_N[0]))
        if table.projection is not None:
            values = table.projection(values, rows_N, seed=seed_of(seed, "projection", table.name, 0))
        return values[:, self.first_column : self.first_column + self.num_columns]


def num_places(num_rows: int) -> int:
    """Places of a striped table: its rows, rounded up to a multiple of the number of stripes."""
    return -(-num_rows // STRIPES) * STRIPES


def places_of(rows_N: Tensor, *, num_rows: int) -> Tensor:
    """Places of rows in a striped table of num_rows rows."""
    return _STRIPE_OF[rows_N % STRIPES] * (-(-num_rows // STRIPES)) + rows_N // STRIPES


def rows_of(places_N: Tensor, *, num_rows: int) -> Tensor:
    """The inverse of `places_of`; num_rows or more for a place without a row."""
    per_stripe = -(-num_rows // STRIPES)
    return (places_N % per_stripe) * STRIPES + _RESIDUE_OF[places_N // per_stripe]
