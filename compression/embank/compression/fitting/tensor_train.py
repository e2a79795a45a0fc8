"""Fits of tensor trains: TT-SVD, and least squares core by core after it.

TT-SVD (Oseledets, SIAM Journal on Scientific Computing 33(5), 2011, algorithm 1) cuts the table, laid out as [n0 q0, n1
q1, n2 q2], by two truncated singular value decompositions. Its squared error is at most twice the least one. It knows
no weights, so each core is then solved for in turn with the others as they are: one small least-squares problem for
each slice (alternating least squares; Holtz, Rohwedder, Schneider, SIAM Journal on Scientific Computing 34(2), 2012).

Legend as in `tt_rec`: R rank, n and q the factors of the table's rows and of its dim, P columns before padding is cut
off.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from embank.tables import CurrentRows, Fitted, Fitting, NewRows, Wanted

_SWEEPS = 4
_COMPLETIONS = 4
_LEAST_GAIN = 1e-3
_MIDDLE = 160
"""Numbers R1 R2 of a middle slice up to which it is solved for: its problem has as many unknowns."""
_NUMBERS_AT_ONCE = 1 << 22

Cores = tuple[Tensor, Tensor, Tensor]
"""Float64 [n0, q0, R1], [n1, R1, q1, R2] and [n2, R2, q2]."""


class TensorTrainSvd(Fitting):
    """TT-SVD of the table, then sweeps over the cores for the weighted squared error of the vectors alone. Exact where
    the ranks suffice. Padded columns are wanted to be 0.

    Example:
        >>> options = method_class("tt_rec").Config(rank=64)  # more than the shape can use
        >>> table = build_table(method="tt_rec", num_embeddings=30, embedding_dim=8, options=options)
        >>> table.fit(torch.randn(30, 8)).error < 1e-5
        True
    """

    def fit(self, methods: Sequence[Any], wanted: Sequence[Wanted], rows: CurrentRows, *, seed: int) -> Fitted:
        (method,), (own,) = methods, wanted
        cores = balanced(sweep(completed_cores(own, method), own, method))
        names = [table.name for table in method.physical]
        return Fitted(
            rows={
                name: NewRows(numbers_U=torch.arange(len(core)), values_Uw=core.flatten(1).float())
                for name, core in zip(names, cores, strict=True)
            }
        )


def completed_cores(wanted: Wanted, method: Any) -> Cores:
    """The cores by TT-SVD of a table whose other rows (of ids without a vector, and beyond the last id) nobody wants:
    they begin as zeros, and a few times become what the cores before give."""
    train = method.tensor_train
    whole_NP = torch.zeros(math.prod(train.rows), math.prod(train.dims))
    whole_NP[wanted.ids_K, : wanted.vectors_KD.shape[1]] = wanted.vectors_KD
    cores = svd_cores(whole_NP, train)
    is_other_N = torch.ones(len(whole_NP), dtype=torch.bool)
    is_other_N[wanted.ids_K] = False
    others = is_other_N.nonzero()[:, 0]
    last = _square(cores, wanted, method)
    for _ in range(_COMPLETIONS if others.numel() else 0):
        for ids in torch.split(others, max(1, _NUMBERS_AT_ONCE // (whole_NP.shape[1] * max(train.ranks)))):
            first, middle, final = (core[digit] for core, digit in zip(cores, method.address(ids), strict=True))
            whole_NP[ids] = torch.einsum("kap,kpbr,krc->kabc", first, middle, final).flatten(1).float()
        new = svd_cores(whole_NP, train)
        square = _square(new, wanted, method)
        if square > last:
            break
        cores, before, last = new, last, square
        if before - square <= _LEAST_GAIN * before:
            break
    return cores


def svd_cores(whole_NP: Tensor, train: Any) -> Cores:
    """The cores by TT-SVD of all rows, those beyond the last id too."""
    (n0, n1, n2), (q0, q1, q2), (r1, r2) = train.rows, train.dims, train.ranks
    unfolded = whole_NP.view(n0, n1, n2, q0, q1, q2).permute(0, 3, 1, 4, 2, 5).reshape(n0 * q0, -1).double()
    left = _largest(unfolded @ unfolded.T, r1)
    rest = (left.T @ unfolded).view(r1 * n1 * q1, n2 * q2)
    right = _largest(rest.T @ rest, r2)
    middle = (rest @ right).view(r1, n1, q1, r2).transpose(0, 1).contiguous()
    return left.view(n0, q0, r1), middle, right.T.reshape(r2, n2, q2).transpose(0, 1).contiguous()


def _largest(gram: Tensor, num: int) -> Tensor:
    """The eigenvectors of the largest eigenvalues, as columns."""
    vectors: Tensor = torch.linalg.eigh(gram).eigenvectors
    return vectors.flip(1)[:, :num].contiguous()


def sweep(cores: Cores, wanted: Wanted, method: Any) -> Cores:
    """Solves for each core in turn until that gains little."""
    last = _square(cores, wanted, method)
    for _ in range(_SWEEPS):
        found = list(cores)
        for number in (2, 0, 1):
            if number != 1 or cores[1].shape[1] * cores[1].shape[3] <= _MIDDLE:
                found[number] = _solved(number, (found[0], found[1], found[2]), wanted, method)
        new: Cores = (found[0], found[1], found[2])
        square = _square(new, wanted, method)
        if square > last:  # rounding
            return cores
        cores, before, last = new, last, square
        if before - square <= _LEAST_GAIN * before:
            break
    return cores


@dataclass(frozen=True)
class _Part:
    """Some ids: the slices of each core that they have, their vectors [k, q0, q1, q2] and weights, in float64."""

    slices: list[Tensor]
    vectors: Tensor
    weights_k: Tensor


def _parts(cores: Cores, wanted: Wanted, method: Any, chosen_K: Tensor | None = None) -> Iterator[_Part]:
    """All ids, or some by their places in what is wanted, a few at a time."""
    (_, q0, r1), (_, _, q1, r2), (_, _, q2) = (core.shape for core in cores)
    size = max(1, _NUMBERS_AT_ONCE // max(r1 * q1 * r2, q0 * q1 * r2, r1 * q1 * q2))
    places = torch.arange(len(wanted.ids_K)) if chosen_K is None else chosen_K
    for some in torch.split(places, size):
        digits = method.address(wanted.ids_K[some])
        vectors = wanted.vectors_KD[some].double()
        padded = torch.nn.functional.pad(vectors, (0, q0 * q1 * q2 - vectors.shape[1])).view(-1, q0, q1, q2)
        slices = [core[digit_k] for core, digit_k in zip(cores, digits, strict=True)]
        yield _Part(slices, padded, wanted.weights_K[some].double())


def _square(cores: Cores, wanted: Wanted, method: Any) -> float:
    total = 0.0
    for part in _parts(cores, wanted, method):
        found = torch.einsum("kap,kpbr,krc->kabc", *part.slices)
        total += float((part.weights_k * (found - part.vectors).square().flatten(1).sum(1)).sum())
    return total


def _solved(number: int, cores: Cores, wanted: Wanted, method: Any) -> Tensor:
    """One core with which the others come nearest; a slice that no id has stays."""
    before = _as_unknowns(number, cores[number])
    num, size, _ = before.shape
    gram = torch.zeros(num, size, size, dtype=torch.float64)
    right = torch.zeros_like(before)
    digit_K = method.address(wanted.ids_K)[number]
    order, counts = digit_K.argsort(stable=True), torch.bincount(digit_K, minlength=num)
    for digit, places in enumerate(torch.split(order, counts.tolist())):
        for part in _parts(cores, wanted, method, places):
            known, target = _problem(number, part.slices, part.vectors)  # [k, m, size] and [k, m, columns]
            weighted = (known * part.weights_k[:, None, None]).flatten(0, 1)
            gram[digit] += weighted.T @ known.flatten(0, 1)
            right[digit] += weighted.T @ target.flatten(0, 1)
    ridge = 1e-10 * gram.diagonal(dim1=1, dim2=2).sum(1).clamp(min=1e-30)[:, None, None]
    solved = torch.linalg.solve(gram + ridge * torch.eye(size, dtype=torch.float64), right + ridge * before)
    return _as_core(number, solved, like=cores[number])


def _problem(number: int, slices: list[Tensor], vectors: Tensor) -> tuple[Tensor, Tensor]:
    """What is known and what is wanted of some ids, so that `known @ unknown = wanted`."""
    first, middle, last = slices
    if number == 0:  # unknown [R1, q0]: [q1 q2, R1] known
        return torch.einsum("kpbr,krc->kbcp", middle, last).flatten(1, 2), vectors.permute(0, 2, 3, 1).flatten(1, 2)
    if number == 2:  # unknown [R2, q2]: [q0 q1, R2] known
        return torch.einsum("kap,kpbr->kabr", first, middle).flatten(1, 2), vectors.flatten(1, 2)
    known = torch.einsum("kap,krc->kacpr", first, last)  # unknown [R1 R2, q1]: [q0 q2, R1 R2] known
    return known.flatten(3, 4).flatten(1, 2), vectors.permute(0, 1, 3, 2).flatten(1, 2)


def _as_unknowns(number: int, core: Tensor) -> Tensor:
    if number == 0:
        return core.transpose(1, 2)
    return core if number == 2 else core.permute(0, 1, 3, 2).flatten(1, 2)


def _as_core(number: int, unknowns: Tensor, *, like: Tensor) -> Tensor:
    if number == 0:
        return unknowns.transpose(1, 2).contiguous()
    if number == 2:
        return unknowns
    num, r1, q1, r2 = like.shape
    return unknowns.view(num, r1, r2, q1).permute(0, 1, 3, 2).contiguous()


def balanced(cores: Cores) -> Cores:
    """The same product from cores that are spread alike, as training expects them."""
    sizes = [float(core.square().mean().sqrt()) for core in cores]
    if min(sizes) == 0:
        return cores
    common = float((sizes[0] * sizes[1] * sizes[2]) ** (1 / 3))
    first, middle, last = (core * (common / size) for core, size in zip(cores, sizes, strict=True))
    return first, middle, last
