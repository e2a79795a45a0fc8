"""Spaces whose bytes are the sum of those of their tables, and the first of them: how wide, and how long, each table
is."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from embank.search.spaces.base import Space
from embank.search.spaces.parameter import Candidate, Gene, Genes, Group, Parameter, Value
from embank.tables import ConfigError, TableSpec

Widths = int | Literal["log2"] | Sequence[int]
"""Which widths: multiples of a number, powers of two, or a list."""

RowLevels = int | Sequence[float]
"""Which numbers of rows: so many levels (all, a half, a quarter, ...), or a list of shares."""


class TableSpace(Space):
    """A space of tables that share no bytes.

    Args:
        specs: the plain tables.
        groups: one per table, in the order of `specs`, perhaps followed by one of parameters without bytes (learning
            rates).
    """

    def __init__(self, specs: Sequence[TableSpec], groups: Iterable[Group]) -> None:
        self.tables = tuple(specs)
        super().__init__(groups, plain_nbytes=sum(spec.plain_nbytes for spec in specs))
        self._costs: list[dict[Gene, int]] = [{} for _ in self.groups]

    def form(self, spec: TableSpec, values: Candidate) -> TableSpec:
        """The table that some values make of a plain one."""
        raise NotImplementedError

    def form_nbytes(self, spec: TableSpec, values: Candidate) -> int:
        """Serving bytes of that table."""
        raise NotImplementedError

    def cost(self, place: int, gene: Gene) -> int:
        """Serving bytes of one table."""
        known = self._costs[place]
        if gene not in known:
            is_table = place < len(self.tables)
            values = self.groups[place].values(gene)
            known[gene] = self.form_nbytes(self.tables[place], values) if is_table else 0
        return known[gene]

    def nbytes_of(self, genes: Genes) -> int:
        return sum(self.cost(place, gene) for place, gene in enumerate(genes))

    def change(self, genes: Genes, place: int, gene: Gene) -> int:
        return self.cost(place, gene) - self.cost(place, genes[place])

    def specs(self, candidate: Mapping[str, Value]) -> list[TableSpec]:
        genes = self.encode(candidate)
        return [
            self.form(spec, group.values(gene))
            for spec, group, gene in zip(self.tables, self.groups, genes, strict=False)
        ]

    @cached_property
    def _floor(self) -> Genes:
        return self._extreme(min)

    @cached_property
    def _ceiling(self) -> Genes:
        return self._extreme(max)

    def floor(self) -> Genes:
        return self._floor

    def ceiling(self) -> Genes:
        return self._ceiling

    def _extreme(self, pick: Callable[..., Gene]) -> Genes:
        return tuple(
            pick(group.genes, key=lambda gene, place=place: self.cost(place, gene))
            for place, group in enumerate(self.groups)
        )


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is kept of a plain table: its first rows and its first columns.

    Args:
        rows: rows kept, the most frequent ids; the others read row 0.
        width: columns kept.
    """

    rows: int
    width: int


class DimensionSpace(TableSpace):
    """How wide each table's rows are, and how many rows it has.

    Args:
        specs: the plain tables (method 'full').
        widths: a number (its multiples up to the embedding dim, and the dim itself), "log2" (1, 2, 4, ... and the dim),
            or a list of widths (those above a table's dim are left out, the dim itself is added).
        row_levels: number of levels of rows: all, a half, a quarter, ... of the most frequent ids; 1 keeps all rows.
            Or a list of shares of the rows, such as (1, 0.7, 0.5); all rows are added.
        extra: parameters without bytes, such as learning rates.

    A candidate's parameters are `width.TABLE` and `rows.TABLE`, where there is more than one value. Its tables are
    plain ones of embedding dim `width`, cut to their most frequent ids (`frequency_cut`) where rows are left out, so
    that a table has 4 * rows * width serving bytes.

    >>> from embank.tables import TableSpec
    >>> sizes = {"a": 9, "b": 5}
    >>> tables = [TableSpec(name=n, num_embeddings=k, embedding_dim=10, feature_names=[n]) for n, k in sizes.items()]
    >>> space = DimensionSpace(tables)
    >>> space.parameters["width.a"].values, space.nbytes({"width.a": 4, "width.b": 10})
    ((4, 8, 10), 344)
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        *,
        widths: Widths = 4,
        row_levels: RowLevels = 1,
        extra: Sequence[Parameter] = (),
    ) -> None:
        for spec in specs:
            if spec.method != "full":
                raise ConfigError(f"table '{spec.name}' has method '{spec.method}'; a space of widths needs 'full'")
        self.row_shares = row_shares(row_levels)
        groups = [Group(name=spec.name, parameters=_shape_parameters(spec, widths, self.row_shares)) for spec in specs]
        if extra:
            groups.append(Group(name="", parameters=tuple(extra)))
        super().__init__(specs, groups)

    def shapes(self, candidate: Mapping[str, Value]) -> dict[str, Shape]:
        """By table what is kept of it: how a supernet masks it."""
        return {spec.name: _shape_of(spec, dict(candidate)) for spec in self.tables}

    def form(self, spec: TableSpec, values: Candidate) -> TableSpec:
        shape = _shape_of(spec, values)
        if shape.rows == spec.num_embeddings:
            return replace(spec, embedding_dim=shape.width)
        from embank.compression.methods.frequency_cut import FrequencyCutConfig

        options = FrequencyCutConfig(num_rows=shape.rows)
        return replace(spec, embedding_dim=shape.width, method="frequency_cut", options=options)

    def form_nbytes(self, spec: TableSpec, values: Candidate) -> int:
        shape = _shape_of(spec, values)
        return 4 * shape.rows * shape.width

    def uniform(self, nbytes: int) -> Candidate:
        """The same share of the columns of every table, all rows, as wide as some bytes allow: the candidate that any
        search has to beat.

        Raises:
            ConfigError: the narrowest tables with all rows have more bytes.
        """
        shares = sorted({int(w) / s.embedding_dim for s in self.tables for w in self._widths(s)}, reverse=True)
        for share in shares:
            candidate = self._at_share(share)
            if self.nbytes(candidate) <= nbytes:
                return candidate
        raise ConfigError(
            f"the narrowest tables with all rows have {self.nbytes(self._at_share(0.0)):,} bytes, more than {nbytes:,}"
        )

    def _widths(self, spec: TableSpec) -> tuple[Value, ...]:
        parameter = self.parameters.get(f"width.{spec.name}")
        return (spec.embedding_dim,) if parameter is None else parameter.values

    def _at_share(self, share: float) -> Candidate:
        found: Candidate = {}
        for spec in self.tables:
            widths = [int(width) for width in self._widths(spec)]
            fits = [width for width in widths if width <= share * spec.embedding_dim]
            if len(widths) > 1:
                found[f"width.{spec.name}"] = max(fits, default=widths[0])
            if f"rows.{spec.name}" in self.parameters:
                found[f"rows.{spec.name}"] = spec.num_embeddings
        return found


def _shape_of(spec: TableSpec, values: Candidate) -> Shape:
    rows = values.get(f"rows.{spec.name}", spec.num_embeddings)
    width = values.get(f"width.{spec.name}", spec.embedding_dim)
    return Shape(rows=int(rows), width=int(width))


def row_shares(levels: RowLevels) -> tuple[float, ...]:
    """The shares of a table's rows that may be kept, falling, from all rows on.

    >>> row_shares(3), row_shares([0.7, 0.2])
    ((1.0, 0.5, 0.25), (1.0, 0.7, 0.2))
    """
    if isinstance(levels, int):
        if levels < 1:
            raise ConfigError(f"row_levels is {levels}; 1 keeps all rows")
        return tuple(0.5**level for level in range(levels))
    wrong = [share for share in levels if not 0 < share <= 1]
    if wrong:
        raise ConfigError(f"row_levels holds {wrong[0]}; a share of the rows lies in (0, 1]")
    return tuple(sorted({1.0, *map(float, levels)}, reverse=True))


def rows_at(spec: TableSpec, share: float) -> int:
    """Rows of a table at a share of them, at least 1."""
    return max(1, int(spec.num_embeddings * share))


def _shape_parameters(spec: TableSpec, widths: Widths, shares: Sequence[float]) -> tuple[Parameter, ...]:
    name = spec.name
    rows = sorted({rows_at(spec, share) for share in shares})
    choices: list[tuple[str, tuple[Value, ...]]] = [
        (f"width.{name}", widths_of(spec.embedding_dim, widths)),
        (f"rows.{name}", tuple(rows)),
    ]
    return tuple(Parameter(name=name, values=values) for name, values in choices if len(values) > 1)


def widths_of(dim: int, widths: Widths) -> tuple[int, ...]:
    """The widths that a table of an embedding dim may have, rising, the dim itself included.

    >>> widths_of(10, 4), widths_of(10, "log2"), widths_of(10, [3, 12])
    ((4, 8, 10), (1, 2, 4, 8, 10), (3, 10))
    """
    if widths == "log2":
        asked = [1 << k for k in range(dim.bit_length())]
    elif isinstance(widths, int):
        if widths < 1:
            raise ConfigError(f"widths is {widths}; give the number that widths are multiples of, at least 1")
        asked = list(range(widths, dim, widths))
    else:
        asked = [int(width) for width in widths]
    if min(asked, default=1) < 1:
        raise ConfigError(f"a width is {min(asked)}; it must be at least 1")
    return tuple(sorted({width for width in asked if width < dim} | {dim}))
