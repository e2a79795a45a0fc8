"""Tensor-train tables: a row is a product of three small matrices.

Yin, Acun, Wu, Liu, "TT-Rec: Tensor Train Compression for Deep Learning Recommendation Models", MLSys 2021.

Legend: R rank, n and q the factors of the table's rows and of its dim, P columns before padding is cut off.
"""

import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from embank.compression.budget.floors import share, size_within
from embank.compression.fitting.tensor_train import TensorTrainSvd
from embank.tables import (
    Allocation,
    DistinctMethod,
    Held,
    RowInit,
    TableSpec,
    Traits,
    default_init,
    option_class,
    own_table,
)

Triple = tuple[int, int, int]

_RANK = 16


@option_class
class TTRecConfig:
    """Options of tensor-train tables.

    Args:
        rank: of both inner bonds, capped at what the shape can use; None takes the largest that the budget allows, or
            16.
    """

    rank: int | None = None


@dataclass(frozen=True, kw_only=True)
class TensorTrain:
    """Shape of a tensor train.

    Args:
        rows: n0, n1, n2, with a product of at least num_embeddings.
        dims: q0, q1, q2, with a product of at least embedding_dim.
        ranks: of the bonds between the first and the middle, and the middle and the last core.
    """

    rows: Triple
    dims: Triple
    ranks: tuple[int, int]

    @property
    def core_shapes(self) -> tuple[tuple[int, ...], ...]:
        """[n0, q0, R1], [n1, R1, q1, R2], [n2, R2, q2]."""
        (n0, n1, n2), (q0, q1, q2), (r1, r2) = self.rows, self.dims, self.ranks
        return (n0, q0, r1), (n1, r1, q1, r2), (n2, r2, q2)

    @property
    def nbytes(self) -> int:
        """Bytes of all cores."""
        return 4 * sum(math.prod(shape) for shape in self.core_shapes)


def ceil_root(number: int, degree: int) -> int:
    """The smallest whole number whose power is at least `number`."""
    root: int = max(1, round(number ** (1 / degree)))
    while int(root**degree) < number:
        root += 1
    while root > 1 and (root - 1) ** degree >= number:
        root -= 1
    return root


def row_factors(num_embeddings: int) -> Triple:
    """Three nearly equal factors, the smallest in the middle, where the core grows with the square of the rank."""
    large = ceil_root(num_embeddings, 3)
    medium = ceil_root(-(-num_embeddings // large), 2)
    return medium, -(-num_embeddings // (large * medium)), large


def dim_factors(embedding_dim: int) -> Triple:
    """Three factors of a small sum, the smallest in the middle.

    They multiply up to the dim, unless that makes their sum a quarter larger than padding to a few more columns does: 7
    is better stored as 2 x 2 x 2, and one column cut off.
    """
    most = 2 * ceil_root(embedding_dim, 3)
    padded = [
        (first, middle, -(-embedding_dim // (first * middle)))
        for middle in range(1, ceil_root(embedding_dim, 3) + 1)
        for first in range(middle, most + 1)
    ]
    divisors = [d for d in range(1, math.isqrt(embedding_dim) + 1) if embedding_dim % d == 0]
    exact = [
        (embedding_dim // (middle * last), middle, last)
        for middle, last in itertools.product(divisors, repeat=2)
        if embedding_dim % (middle * last) == 0
    ]
    near, whole = (
        min(choices, key=lambda dims: (sum(dims), math.prod(dims), dims[1], dims)) for choices in (padded, exact)
    )
    chosen = whole if 4 * sum(whole) <= 5 * sum(near) else near
    low, middle_size, high = sorted(chosen)[1], min(chosen), max(chosen)
    return high, middle_size, low  # the first core has fewer row factors than the last


def train_of(spec: TableSpec, rank: int) -> TensorTrain:
    """The shape of a table at a rank, each bond capped at the smaller side of its unfolding."""
    rows, dims = row_factors(spec.num_embeddings), dim_factors(spec.embedding_dim)
    first, middle, last = (n * q for n, q in zip(rows, dims, strict=True))
    caps = min(first, middle * last), min(last, first * middle)
    return TensorTrain(rows=rows, dims=dims, ranks=(min(rank, caps[0]), min(rank, caps[1])))


def full_rank(spec: TableSpec) -> int:
    """The rank above which nothing changes."""
    return max(train_of(spec, spec.num_embeddings * spec.embedding_dim).ranks)


class _CommonRank(Allocation):
    """The largest common rank that fits, capped by each table's shape, and what is left to the small tables."""

    def share(self, specs: Sequence[TableSpec], nbytes: int) -> list[TableSpec]:
        costs = [partial(_nbytes_at, spec) for spec in specs]
        return share(specs, costs, num_levels=max(full_rank(spec) for spec in specs), nbytes=nbytes)


class TTRec(DistinctMethod):
    """Three digits of the id choose a slice of each core; the slices are multiplied.

    With the digits `x = (i0 * n1 + i1) * n2 + i2`, most significant first as `numpy.unravel_index` gives them, a row is
    `G0[i0] @ G1[i1] @ G2[i2]` with shapes [q0, R], [R, q1 R] and [R, q2], its columns in row-major order of (q0, q1,
    q2). The first core is the most significant, as in FBTT; Hetu's first core is the least significant, so its rows
    come in another order.

    Differences from public implementations: the published initial values have a standard deviation that grows with the
    rank and forgets that cutting out the middle of a normal distribution makes it wider; here each core's is
    `(std**2 / (R1 R2)) ** (1/6)`, which gives the materialised table the spread of the plain one at every rank. Ranks
    are each table's own, and capped where its shape can't use more.

    Raises:
        BudgetError: the budget is below rank 1.
        ConfigError: both a budget and a rank.

    Example:
        >>> table = build_table(method="tt_rec", num_embeddings=1000, embedding_dim=8, budget=0.1)
        >>> {name: tuple(rows.shape) for name, rows in table.collection.weights().items()}
        {'table/core0': (10, 10), 'table/core1': (10, 50), 'table/core2': (10, 10)}
        >>> table.nbytes("serving") / table.spec.plain_nbytes
        0.0875
    """

    Config = TTRecConfig
    traits = Traits(allocation=_CommonRank(), fitting=TensorTrainSvd())
    held = Held(facts=("row_factors", "slice_shapes", "dim"), sizes=("dim",))
    row_factors: Sequence[int]
    slice_shapes: Sequence[Sequence[int]]

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        self.tensor_train = train_of(spec, _rank(spec, self.options))
        self.row_factors = self.tensor_train.rows
        self.slice_shapes = tuple(shape[1:] for shape in self.tensor_train.core_shapes)
        self.dim = spec.embedding_dim
        init = RowInit(kind="tails", scale=_core_std(spec, self.tensor_train))
        self.physical = tuple(
            own_table(spec, name=f"{spec.name}/core{core}", num_rows=shape[0], width=math.prod(shape[1:]), init=init)
            for core, shape in enumerate(self.tensor_train.core_shapes)
        )

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        return digits(ids_N, self.row_factors)

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        return contract(self._slices(rows))[:, : self.dim]

    def combine_distinct(self, rows: tuple[Tensor, ...], places_LN: Tensor, side: Tensor | None) -> Tensor:
        return contract_distinct(self._slices(rows), places_LN.unbind())[:, : self.dim]

    def _slices(self, rows: tuple[Tensor, ...]) -> list[Tensor]:
        """Slices [N, q0, R1], [N, R1, q1, R2] and [N, R2, q2] from rows."""
        return [slice_NW.view(-1, *shape) for slice_NW, shape in zip(rows, self.slice_shapes, strict=True)]


def _nbytes_at(spec: TableSpec, level: int) -> int:
    return train_of(spec, level + 1).nbytes


def _rank(spec: TableSpec, options: TTRecConfig) -> int:
    """The rank by the options, or the largest within the budget."""
    return size_within(
        spec,
        rank=options.rank,
        default=_RANK,
        room=lambda nbytes: bisect_right(range(full_rank(spec)), nbytes, key=partial(_nbytes_at, spec)),
        needs="three cores of rank 1",
        floor_nbytes=_nbytes_at(spec, 0),
    )


def _core_std(spec: TableSpec, train: TensorTrain) -> float:
    """Standard deviation of core entries: a table entry sums R1 R2 products of three of them."""
    plain = default_init(spec)
    variance = plain.scale**2 / (3 if plain.kind == "uniform" else 1)
    return float((variance / math.prod(train.ranks)) ** (1 / 6))


def digits(ids_N: Tensor, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The slice of each core, most significant first."""
    rest_N = torch.div(ids_N, rows[2], rounding_mode="floor")
    return torch.div(rest_N, rows[1], rounding_mode="floor"), rest_N % rows[1], ids_N % rows[2]


def contract(slices: Sequence[Tensor]) -> Tensor:
    """Rows [N, P] from slices [N, q0, R1], [N, R1, q1, R2] and [N, R2, q2]: two batched products."""
    first, middle, last = slices
    left = torch.bmm(first, middle.flatten(2)).view(-1, first.shape[1] * middle.shape[2], middle.shape[3])
    return torch.bmm(left, last).flatten(1)


class BlockProduct(torch.autograd.Function):
    """Blocks of consecutive rows, each times a matrix of its own: [M, K] and [G, K, n] to [M, n].

    One product per block: matrices are read in place, where a batched product would want a copy of one for every row.
    """

    @staticmethod
    def forward(ctx: Any, rows_MK: Tensor, matrices_GKn: Tensor, sizes: list[int], which: Sequence[int]) -> Tensor:
        """`sizes` are the numbers of rows of the blocks, `which` their matrices, each at most once."""
        ctx.save_for_backward(rows_MK, matrices_GKn)
        ctx.sizes, ctx.which = sizes, which
        out_Mn = rows_MK.new_empty(rows_MK.shape[0], matrices_GKn.shape[2])
        matrices = matrices_GKn.unbind()  # views of all blocks by one call each: they took a tenth of the time
        for rows, out, number in zip(torch.split(rows_MK, sizes), torch.split(out_Mn, sizes), which, strict=True):
            torch.mm(rows, matrices[number], out=out)
        return out_Mn

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows_MK, matrices_GKn = ctx.saved_tensors
        grad_Mn, sizes, which = grads[0].contiguous(), ctx.sizes, ctx.which
        grad_MK, grad_GKn = torch.empty_like(rows_MK), torch.empty_like(matrices_GKn)
        turned, own_grads = matrices_GKn.transpose(1, 2).unbind(), grad_GKn.unbind()
        for number in {*range(len(own_grads))}.difference(which):  # without a block
            own_grads[number].zero_()
        blocks = (torch.split(grad_Mn, sizes), torch.split(grad_MK, sizes), torch.split(rows_MK.T, sizes, dim=1))
        for grad, grad_rows, rows_turned, number in zip(*blocks, which, strict=True):
            torch.mm(grad, turned[number], out=grad_rows)
            torch.mm(rows_turned, grad, out=own_grads[number])
        return grad_MK, grad_GKn, None, None


def contract_distinct(slices: Sequence[Tensor], places: Sequence[Tensor]) -> Tensor:
    """Rows [N, P] as `contract` makes them, from slices that are there once each and the places of each id's three.

    Ids that share their slices are contracted once, and so are the first two slices of those that share only these,
    which after ranking by frequency are the neighbours of most ids. Legend: M distinct ids, B distinct pairs of the
    first two slices.
    """
    first, middle, last = slices
    (num_first, q0, _), (_, _, q1, r2), num_last = first.shape, middle.shape, last.shape[0]
    last = last.transpose(1, 2).contiguous().transpose(1, 2)  # products with few columns take a third of the time so
    ids_M, id_N = torch.unique((places[1] * num_first + places[0]) * num_last + places[2], return_inverse=True)
    pairs_B, pair_M = torch.unique_consecutive(ids_M // max(1, num_last), return_inverse=True)
    middle_B = pairs_B // max(1, num_first)  # ascending, so the pairs of a middle slice are neighbours
    left = times_own(first.index_select(0, pairs_B - middle_B * num_first), middle.flatten(2), middle_B)
    last_M, order_M = torch.sort(ids_M % max(1, num_last), stable=True)
    left_M = left.view(-1, q0 * q1, r2).index_select(0, pair_M[order_M])
    out_MP = times_own(left_M, last, last_M).flatten(1)
    return out_MP.index_select(0, torch.argsort(order_M)[id_N])


def times_own(rows_Bqr: Tensor, slices_Urn: Tensor, own_B: Tensor) -> Tensor:
    """Each [q, r] of some times its slice [r, n]: [B, q, n]. `own_B` says which, ascending."""
    size = rows_Bqr.shape[1]
    which, counts = torch.unique_consecutive(own_B, return_counts=True)
    sizes = (size * counts).tolist()
    out: Tensor = BlockProduct.apply(rows_Bqr.flatten(0, 1), slices_Urn, sizes, which.tolist())  # type: ignore[no-untyped-call]
    return out.view(-1, size, slices_Urn.shape[2])
