"""What the methods with narrow rows share: rows of a smaller dim and one learned projection back to the logical dim.

Legend: d width of the rows, D embedding dim of the logical table.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from embank.compression.budget.floors import floor_error, share_text
from embank.compression.methods.full import PackedFull
from embank.tables import BudgetError, ConfigError, PackedTable, PhysicalTable, TableSpec, default_init
from embank.tables.method.options import options_of


def held_dim(spec: TableSpec, dim: int) -> int:
    """`dim`, or the whole embedding dim where narrow rows and their projection would be as large as the plain table."""
    narrow = dim * (spec.num_embeddings + spec.embedding_dim)
    return dim if narrow < spec.num_embeddings * spec.embedding_dim else spec.embedding_dim


def held_nbytes(spec: TableSpec, dim: int) -> int:
    """Serving bytes of a table with rows of `held_dim(spec, dim)`, projection included; never falls with `dim`."""
    held = held_dim(spec, dim)
    return spec.plain_nbytes if held == spec.embedding_dim else 4 * held * (spec.num_embeddings + spec.embedding_dim)


def width_within(spec: TableSpec, *, width: int | None) -> int:
    """Width of the rows of a table.

    Args:
        spec: of the table.
        width: the option that sets it, if it is set.

    Returns:
        Between 1 and the embedding dim, which it is without a budget and without the option.

    Raises:
        ConfigError: both a budget and an option, or an option outside 1 .. embedding_dim.
        BudgetError: the budget does not hold rows of one number and their projection.
    """
    if width is not None:
        if spec.budget is not None:
            raise ConfigError(f"table '{spec.name}' has both budget {spec.budget} and width {width}; keep one of them")
        if not 1 <= width <= spec.embedding_dim:
            raise ConfigError(
                f"table '{spec.name}' has width {width} for its rows; it must lie in 1 .. {spec.embedding_dim} (its "
                "embedding dim)"
            )
        return width
    if spec.budget is None or spec.budget == 1:
        return spec.embedding_dim
    width = int(spec.budget * spec.plain_nbytes // (4 * (spec.num_embeddings + spec.embedding_dim)))
    if width < 1:
        raise floor_error(spec, needs="rows of dim 1 and their projection", floor_nbytes=held_nbytes(spec, 1))
    return width


def with_width(spec: TableSpec, config: type, width: int) -> TableSpec:
    """The spec with its width as an option in place of a budget.

    Raises:
        ConfigError: the option is set already.
    """
    options: Any = options_of(spec, config)
    if options.width is not None:
        raise ConfigError(
            f"table '{spec.name}' has width {options.width} for its rows while the collection has a budget; keep one "
            "of them"
        )
    return replace(spec, budget=None, options=replace(options, width=width))


def refuse_below_floor(specs: Sequence[TableSpec], nbytes: int) -> None:
    """Refuses bytes that do not hold rows of dim 1 for every table.

    Raises:
        BudgetError: states the floor of these tables together.
    """
    floor_nbytes = sum(held_nbytes(spec, 1) for spec in specs)
    if floor_nbytes > nbytes:
        plain_nbytes = sum(spec.plain_nbytes for spec in specs)
        raise BudgetError(
            f"{len(specs)} tables from '{specs[0].name}' on: method '{specs[0].method}' needs rows of dim 1 and their "
            "projections, "
            f"{floor_nbytes:,} bytes, so its floor is budget {share_text(floor_nbytes, plain_nbytes)}; there are "
            f"{nbytes:,} bytes. "
            "Raise the budget"
        )


def narrow_table(spec: TableSpec, dim: int) -> PhysicalTable:
    """The rows, spread so that logical rows have the plain table's standard deviation.

    With orthonormal rows of the projection a logical row is as long as its narrow row, so each narrow value must be
    sqrt(D / d) times as large. (Public implementations draw both factors like a plain table: their products start
    thousands of times too small.)
    """
    init = default_init(spec)
    scaled = replace(init, scale=init.scale * (spec.embedding_dim / dim) ** 0.5)
    return PhysicalTable(name=spec.name, num_embeddings=spec.num_embeddings, embedding_dim=dim, init=scaled)


class Widening(nn.Module):
    """Narrow rows to logical ones, without a bias: [N, d] @ [d, D]. The identity, holding nothing, where d = D.

    The projection starts with orthonormal rows: it keeps lengths, of rows and of their updates.
    """

    def __init__(self, dim: int, embedding_dim: int) -> None:
        super().__init__()
        self.weight = None
        if dim < embedding_dim:
            self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(dim, embedding_dim)))

    def forward(self, rows_Nd: Tensor) -> Tensor:
        return rows_Nd if self.weight is None else rows_Nd @ self.weight

    def pack(self, rows_Rd: Tensor) -> PackedTable:
        """The inference form of all rows."""
        return PackedFull(rows_Rd) if self.weight is None else PackedProjected(rows_Rd, self.weight)


class PackedProjected(PackedTable):
    """Narrow rows and the projection."""

    uncounted: ClassVar[tuple[str, ...]] = ("projection",)
    rows: Tensor
    projection: Tensor

    def __init__(self, rows_Rd: Tensor, projection_dD: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows_Rd.detach())
        self.register_buffer("projection", projection_dD.detach().clone())

    def lookup(self, ids_N: Tensor) -> Tensor:
        return self.rows[ids_N] @ self.projection
