"""Unified Embedding: one table of rows for every feature ("feature multiplexing").

Coleman, Kang, Fahrbach, Wang, Hong, Chi, Cheng, "Unified Embedding: Battle-Tested Feature Representations for Web-Scale
ML Systems", NeurIPS 2023.

Legend: M rows of the shared table, w their width, c lookups per id.
"""

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from embank.compression.budget.floors import (
    common_floor_error,
    refuse_below_one,
    refuse_fixed,
    refuse_sizes,
    size_within,
)
from embank.compression.fitting.projected import ProjectedRows
from embank.compression.parts.multiplexed import SALT_NBYTES, hashed_rows, lookup_salts, shared_init
from embank.tables import (
    Allocation,
    BudgetError,
    ConfigError,
    Held,
    Method,
    PhysicalTable,
    Served,
    TableSpec,
    Traits,
    option_class,
    own_table,
)
from embank.tables.ids.hashing import salt64, seeded
from embank.tables.ids.token_space import NUM_TOKEN_IDS
from embank.tables.method.options import options_of

Placement = Literal["auto", "shared", "private", "exact"]


def _width_choices(spec: TableSpec) -> tuple[int, ...]:
    """Widths of a row that a search tries: those that build with any number of lookups, and without one. Tables of dim
    1 take one lookup of one column, whatever is given."""
    dim = spec.embedding_dim
    return tuple(width for width in (4, 8, 16, 32) if dim % width == 0 or dim == 1) or (dim,)


def _lookup_choices(spec: TableSpec) -> tuple[int, ...]:
    """Numbers of lookups that a search tries: those that build with any width, and without one."""
    return tuple(count for count in (1, 2, 4) if spec.embedding_dim % count == 0 or spec.embedding_dim == 1)


@option_class
class UnifiedConfig:
    """Options of Unified Embedding.

    Args:
        table: tables of one such name read the same rows, as far as these have one width.
        rows: M, rows of the table that is read. With it a table is shared; without it (or under a budget) it is hashed
            into rows of its own. `Unified.allocate` sets it from a budget for all tables.
        width: w; None takes embedding_dim / lookups. A table whose dim is below the width takes one lookup of its own
            dim.
        lookups: c; None takes embedding_dim / width, or without a width two lookups, one where the dim is odd. The rows
            of all lookups lie side by side; where that is not the embedding dim, a learned matrix projects them to it.
        placement: "shared"; "private": hashed into rows of its own; "exact": a plain table; "auto": exact for few ids
            (`exact_below`) without a budget, else shared or private by `rows`.
        exact_below: tables of fewer ids are "few".
        num_tables: S, tables of M rows each that a shared table consists of: lookup k reads table (first_table + k) mod
            S, so that S processes with a table each share the work. Sharding row by row does that too and leaves one
            table to hash into.
        first_table: where that begins; None takes it from the name that rows are chosen by. `unified_specs` deals
            tables out evenly.
        salt_name: the name that rows are chosen by, if not the table's: a renamed table keeps its rows in a shared
            table.
    """

    table: str = "shared"
    rows: int | None = None
    width: int | None = field(default=None, metadata={"choices": _width_choices})
    lookups: int | None = field(default=None, metadata={"choices": _lookup_choices})
    placement: Placement = "auto"
    exact_below: int = 100
    num_tables: int = 1
    first_table: int | None = None
    salt_name: str | None = None


class _Shares(Allocation):
    """One number of rows for each shared table (its widths alike), private tables by their share, exact ones first.

    Tables of few ids are exact as long as that leaves every other table a row."""

    def share(self, specs: Sequence[TableSpec], nbytes: int) -> list[TableSpec]:
        """See `Allocation.share`.

        Raises:
            BudgetError: exact tables and one row for each of the others need more; states the floor.
            ConfigError: a table that has a number of rows already, or no vocabulary, so that a budget can't be a share
                of it.
        """
        for spec in specs:
            _refuse_no_vocabulary(spec, wants="a budget")
            refuse_fixed(spec, rows=_options(spec).rows)
        few = {spec.name for spec in specs if _options(spec).placement == "auto" and _has_few(spec)}
        try:
            return _allocate(specs, nbytes, exact=few)
        except BudgetError:
            return _allocate(specs, nbytes, exact=set())


class Unified(Method):
    """The c rows of an id, chosen by c independent hashes of it, side by side.

    The hash is one 64-bit mixer, salted by the table's *name* and the number of the lookup: a feature that is added,
    removed or moved leaves the rows of the others alone. (Google's layer in TensorFlow Recommenders salts by the
    feature's position, so there it does not.) Memory does not depend on c, which costs lookups and collisions only.

    Do not share rows between tables whose outputs are added before any weight is applied to them (an item's and its
    position's, as in sequence models): both would get the same gradient, and nothing could tell their values apart.

    Raises:
        BudgetError: a budget that does not hold one row, the salts and the projection.
        ConfigError: a size below 1, a width or a number of lookups that does not divide the dim, a shared table without
            a number of rows, or with a budget of its own.

    Example:
        >>> table = build_table(method="unified", num_embeddings=1000, embedding_dim=8, budget=0.1)
        >>> table.nbytes("serving") / table.spec.plain_nbytes
        0.1
    """

    Config = UnifiedConfig
    traits = Traits(combines="linearly", takes_token_ids=True, allocation=_Shares(), fitting=ProjectedRows())
    held = Held(facts=("num_rows", "is_hashed", "has_projection"), on_host=("salts",))
    salts: Tensor

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        config: UnifiedConfig = self.options
        self.placement = placement_of(spec, config)
        self.width, self.num_lookups = shape_of(spec, config)
        self.num_rows = spec.num_embeddings if self.placement == "exact" else _num_rows(spec, config)
        numbers = tables_of(spec, config) if self.placement == "shared" else (0,) * self.num_lookups
        self.physical = tuple(self._table(config, number) for number in numbers)
        self.is_hashed = self.placement != "exact"
        self.has_projection = self.is_hashed and self.width * self.num_lookups != spec.embedding_dim
        self.projection: nn.Parameter | None = None
        if not self.is_hashed:
            self.physical = self.physical[:1]
        else:
            salts = lookup_salts("unified", config.salt_name or spec.name, self.num_lookups)
            self.register_buffer("salts", salts, persistent=False)
        if self.has_projection:
            with seeded(seed, "method", spec.name):
                self.projection = nn.Parameter(_projection(self.num_lookups, self.width, spec.embedding_dim))
        else:
            self.traits = replace(self.traits, combines="side by side")

    def _table(self, config: UnifiedConfig, number: int) -> PhysicalTable:
        spec = self.spec
        if self.placement == "shared":
            part = f"/{number + 1} of {config.num_tables}" if config.num_tables > 1 else ""
            name = f"unified/{config.table}/{self.width}{part}"
            return own_table(spec, name=name, num_rows=self.num_rows, width=self.width, init=shared_init(spec))
        dim = spec.embedding_dim if self.placement == "exact" else self.width
        return own_table(spec, num_rows=self.num_rows, width=dim)

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        if not self.is_hashed:
            return (ids_N,)
        return hashed_rows(ids_N, sizes=[self.num_rows] * len(self.salts), salts=self.salts)

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        return join_lookups(rows, self.projection if self.has_projection else None)

    def served(self, rows: Mapping[str, Tensor]) -> Served:
        return super().served(rows) if self.is_hashed else Served.of_rows(rows[self.spec.name])


def join_lookups(chunks: Sequence[Tensor], projection_cwD: Tensor | None) -> Tensor:
    """Rows [N, w] of c lookups to [N, c w], or to [N, D] by one matrix per lookup.

    The products are added lookup by lookup: a further one whose matrix is zero changes no bit.
    """
    if projection_cwD is None:
        return torch.cat(tuple(chunks), dim=1)
    out_ND = chunks[0] @ projection_cwD[0]
    for chunk_Nw, matrix_wD in zip(chunks[1:], projection_cwD[1:], strict=True):
        out_ND = out_ND + chunk_Nw @ matrix_wD
    return out_ND


def _projection(num_lookups: int, width: int, dim: int) -> Tensor:
    """Matrices [c, w, D] that together are orthogonal, scaled so that an output varies as much as a row's element."""
    whole: Tensor = nn.init.orthogonal_(torch.empty(num_lookups * width, dim))
    scale: float = max(1.0, dim / (num_lookups * width)) ** 0.5
    return whole.view(num_lookups, width, dim) * scale


def placement_of(spec: TableSpec, config: UnifiedConfig) -> Placement:
    """Where a table's rows are: "shared", "private" or "exact".

    Raises:
        ConfigError: an exact table without a vocabulary or under a budget that it can't keep.
    """
    if config.placement == "exact":
        _refuse_no_vocabulary(spec, wants="the placement 'exact'")
        if spec.budget is not None and spec.budget < 1:
            raise ConfigError(
                f"table '{spec.name}' has the placement 'exact' and budget {spec.budget}; keep one of them"
            )
        return "exact"
    if config.placement != "auto":
        return config.placement
    if spec.budget is None and _has_few(spec):
        return "exact"
    return "private" if config.rows is None else "shared"


def shape_of(spec: TableSpec, config: UnifiedConfig) -> tuple[int, int]:
    """Width and number of lookups of a table.

    Raises:
        ConfigError: a size below 1, or one that leaves the other undecided.
    """
    dim, width, lookups = spec.embedding_dim, config.width, config.lookups
    refuse_below_one(spec, width=width, lookups=lookups)
    if width is not None and dim < width:
        return dim, 1
    if width is None:
        lookups = (1 if dim % 2 else 2) if lookups is None else min(lookups, dim)
        if dim % lookups:
            raise ConfigError(
                f"table '{spec.name}' has dim {dim}, which {lookups} lookups do not divide; use another number, or "
                "give the width as well and the rows are projected"
            )
        return dim // lookups, lookups
    if lookups is None and dim % width:
        raise ConfigError(
            f"table '{spec.name}' has dim {dim}, which is no multiple of its width {width}; use another width, or give "
            "the lookups as well and the rows are projected"
        )
    return width, dim // width if lookups is None else lookups


def tables_of(spec: TableSpec, config: UnifiedConfig) -> tuple[int, ...]:
    """Which of the tables that it shares each lookup of a table reads.

    Raises:
        ConfigError: no table to share, or a first one that is not there.
    """
    num, first = config.num_tables, config.first_table
    if num < 1 or not (first is None or 0 <= first < num):
        raise ConfigError(
            f"table '{spec.name}' has num_tables {num} and first_table {first}; give at least 1, and one of them"
        )
    if first is None:
        first = salt64("unified", "first table", config.salt_name or spec.name) % num
    return tuple((first + lookup) % num for lookup in range(shape_of(spec, config)[1]))


def _options(spec: TableSpec) -> UnifiedConfig:
    return options_of(spec, UnifiedConfig)


def _has_few(spec: TableSpec) -> bool:
    return spec.num_embeddings < _options(spec).exact_below


def _refuse_no_vocabulary(spec: TableSpec, *, wants: str) -> None:
    if spec.num_embeddings >= NUM_TOKEN_IDS:
        raise ConfigError(
            f"table '{spec.name}' has no vocabulary (its ids are hashes of tokens), so it can't have {wants}; give the "
            "number of rows, rows=..."
        )


def fixed_nbytes(spec: TableSpec) -> int:
    """Bytes of a hashed table besides its rows: the salts and the projection."""
    width, lookups = shape_of(spec, _options(spec))
    projection = 0 if width * lookups == spec.embedding_dim else 4 * width * lookups * spec.embedding_dim
    return SALT_NBYTES * lookups + projection


def _num_rows(spec: TableSpec, config: UnifiedConfig) -> int:
    """Rows of a hashed table, by its options, its budget, or as many bytes as the plain table has."""
    refuse_sizes(spec, rows=config.rows)
    if config.rows is not None:
        return config.rows
    if config.placement == "shared":
        raise ConfigError(
            f"table '{spec.name}' shares table '{config.table}' but does not say its rows; give all of its tables the "
            "same rows=..., or let Unified.allocate share a budget"
        )
    _refuse_no_vocabulary(spec, wants="rows of its own by default")
    width, _ = shape_of(spec, config)
    return size_within(
        spec,
        default=-(-spec.num_embeddings * spec.embedding_dim // width),
        room=lambda nbytes: (nbytes - fixed_nbytes(spec)) // (4 * width),
        needs=f"a row of {width}, its salts and its projection",
        floor_nbytes=4 * width + fixed_nbytes(spec),
    )


def _group(spec: TableSpec) -> tuple[Placement, str]:
    """The rows that a hashed table reads under a common budget: those of its name, or its own."""
    options = _options(spec)
    return ("private", spec.name) if options.placement == "private" else ("shared", options.table)


def _allocate(specs: Sequence[TableSpec], nbytes: int, *, exact: set[str]) -> list[TableSpec]:
    """Specs that keep the bytes, with some tables exact besides those that ask for it."""
    exact = exact | {spec.name for spec in specs if _options(spec).placement == "exact"}
    hashed = [spec for spec in specs if spec.name not in exact]
    groups = {spec.name: _group(spec) for spec in hashed}
    rows_nbytes: dict[tuple[Placement, str], int] = {}  # of one row of each group, in all of its widths
    weights: dict[tuple[Placement, str], int] = {}  # plain bytes of the tables that read it
    for name in dict.fromkeys(groups.values()):
        members = [spec for spec in hashed if groups[spec.name] == name]
        read = {
            (shape_of(spec, _options(spec))[0], number)
            for spec in members
            for number in (tables_of(spec, _options(spec)) if name[0] == "shared" else (0,))
        }
        rows_nbytes[name] = 4 * sum(width for width, _ in read)
        weights[name] = sum(spec.plain_nbytes for spec in members)
    left = nbytes - sum(spec.plain_nbytes for spec in specs if spec.name in exact) - sum(map(fixed_nbytes, hashed))
    spare = left - sum(rows_nbytes.values())
    if spare < 0:
        needs = (
            f"{len(specs)} tables of method 'unified' need {nbytes - spare:,} bytes for their exact tables, salts, "
            "projections and a row of each other table"
        )
        raise common_floor_error(specs, needs=needs, floor_nbytes=nbytes - spare, nbytes=nbytes)
    total = sum(weights.values())
    rows = {name: 1 + spare * weights[name] // total // rows_nbytes[name] for name in weights}
    return [
        replace(
            spec,
            budget=None,
            options=replace(_options(spec), placement="exact", rows=None)
            if spec.name in exact
            else replace(_options(spec), placement=groups[spec.name][0], rows=rows[groups[spec.name]]),
        )
        for spec in specs
    ]
