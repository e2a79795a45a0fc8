"""What the methods with narrow rows share: rows of a smaller dim and one learned projection back to the logical dim.

Legend: d width of the rows, D embedding dim of the logical table.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from embank.compression.budget.floors import refuse_fixed, share_text, size_within
from embank.tables import (
    BudgetError,
    ConfigError,
    Held,
    Method,
    PhysicalTable,
    Served,
    Spine,
    TableSpec,
    default_init,
    own_table,
)
from embank.tables.ids.hashing import seeded
from embank.tables.method.options import options_of
from embank.tables.method.together import Array, Together, Widened


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
    whole, column_nbytes = spec.embedding_dim, 4 * (spec.num_embeddings + spec.embedding_dim)
    if width is not None and not 1 <= width <= whole:
        raise ConfigError(
            f"table '{spec.name}' has width {width} for its rows; it must lie in 1 .. {whole} (its embedding dim)"
        )
    return size_within(
        spec,
        width=width,
        default=whole,
        room=lambda nbytes: whole if nbytes == spec.plain_nbytes else nbytes // column_nbytes,
        needs="rows of dim 1 and their projection",
        floor_nbytes=held_nbytes(spec, 1),
    )


def with_width(spec: TableSpec, config: type, width: int) -> TableSpec:
    """The spec with its width as an option in place of a budget.

    Raises:
        ConfigError: the option is set already.
    """
    options: Any = options_of(spec, config)
    refuse_fixed(spec, of=" for its rows", width=options.width)
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
            f"projections, {floor_nbytes:,} bytes, so its floor is budget {share_text(floor_nbytes, plain_nbytes)}; "
            f"there are {nbytes:,} bytes. Raise the budget"
        )


def narrow_table(spec: TableSpec, dim: int) -> PhysicalTable:
    """The rows, spread so that logical rows have the plain table's standard deviation.

    With orthonormal rows of the projection a logical row is as long as its narrow row, so each narrow value must be
    sqrt(D / d) times as large. (Public implementations draw both factors like a plain table: their products start
    thousands of times too small.)
    """
    init = default_init(spec)
    scaled = replace(init, scale=init.scale * (spec.embedding_dim / dim) ** 0.5)
    return own_table(spec, width=dim, init=scaled)


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


class NarrowRows(Method):
    """Rows of a width d and one learned projection [d, D] to the embedding dim, without a bias, which is counted.

    What methods of this kind differ in is how widths are shared between tables. Their `Config` has a `width`.

    Raises:
        BudgetError: the budget does not hold rows of dim 1 and the projection.
        ConfigError: both a budget and a width, or a width outside 1 .. embedding_dim.
    """

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        self.dim = width_within(spec, width=self.options.width)
        self.physical = (narrow_table(spec, self.dim),)
        with seeded(seed, "method", spec.name):
            self.widening = Widening(self.dim, spec.embedding_dim)

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        logical_ND: Tensor = self.widening(rows[0])
        return logical_ND

    def served(self, rows: Mapping[str, Tensor]) -> Served:
        weight_dD = self.widening.weight
        return Served.of_rows(rows[self.spec.name], spine=None if weight_dD is None else Projected(weight_dD))


class Projected(Spine):
    """Each id's row times a matrix, with a bias or without.

    Args:
        weight_dD: the matrix.
        bias_D: the bias.
    """

    held = Held(facts=("has_bias",), uncounted=("weight", "bias"))
    weight: Tensor
    bias: Tensor

    def __init__(self, weight_dD: Tensor, bias_D: Tensor | None = None) -> None:
        super().__init__()
        self.has_bias = bias_D is not None
        self.register_buffer("weight", weight_dD.detach())
        if bias_D is not None:
            self.register_buffer("bias", bias_D.detach())

    def joint_place(self) -> Hashable:
        return self.has_bias, self.weight.shape

    @classmethod
    def together(cls, spines: Sequence[Self]) -> Together:
        weights = [spine.weight for spine in spines]
        weights_JdD = torch.stack(weights)
        biases_JD = torch.stack([spine.bias for spine in spines]) if spines[0].has_bias else None

        def combine(rows_BJd: Tensor, side: Array | None) -> Tensor:
            num_ids, num_tables, _ = rows_BJd.shape
            out_BJD = rows_BJd.new_empty(num_ids, num_tables, weights_JdD.shape[2])
            if num_ids == 1:  # of more rows torch adds up in another order than `mm`
                torch.bmm(rows_BJd.transpose(0, 1), weights_JdD, out=out_BJD.view(num_tables, 1, -1))
            else:
                for j, weight_dD in enumerate(weights):
                    torch.mm(rows_BJd[:, j], weight_dD, out=out_BJD[:, j])
            return out_BJD if biases_JD is None else out_BJD.add_(biases_JD)

        return Together(combine=combine, widening=Widened(weights_JdD, biases_JD))

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        projected_ND = rows[0].mm(self.weight)
        return projected_ND.add_(self.bias) if self.has_bias else projected_ND
