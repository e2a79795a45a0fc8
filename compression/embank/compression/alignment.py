"""The linear map between two trainings of a table, from vectors of the same ids in both.

Source: Schönemann, "A generalized solution of the orthogonal Procrustes problem" (Psychometrika 31(1), 1966): the
orthogonal map of least squared error is U V of the singular vectors of X.T Y. The affine map is that of least squares.

Legend: M columns of the vectors that are mapped, D of those that they are mapped to.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from embank.tables import ConfigError

AlignmentKind = Literal["orthogonal", "affine"]
_LEAST_VALUE = 1e-12
"""Eigenvalues below so large a share of the largest are rounding: columns that are not independent."""
_LEAST_SPREAD = 1e-12
"""A column whose spread is below so large a share of its mean is constant: it varies by the rounding of sums."""


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """A map of vectors: `x @ matrix + offset`.

    Args:
        kind: "orthogonal" keeps lengths and angles; "affine" is any linear map and a shift.
        matrix_MD: fp32.
        offset_D: fp32; zeros where the map is orthogonal.

    Example:
        >>> turn = Alignment(kind="orthogonal", matrix_MD=torch.tensor([[0.0, 1.0], [-1.0, 0.0]]),
        ...                  offset_D=torch.zeros(2))
        >>> turn(torch.tensor([[3.0, 4.0]]))
        tensor([[-4.,  3.]])
    """

    kind: AlignmentKind
    matrix_MD: Tensor
    offset_D: Tensor

    def __call__(self, rows_NM: Tensor) -> Tensor:
        """Vectors mapped, fp32 [N, D].

        Raises:
            ConfigError: they are not as long as those that the map was fitted to.
        """
        if rows_NM.dim() != 2 or rows_NM.shape[1] != len(self.matrix_MD):
            raise ConfigError(
                f"vectors of shape {list(rows_NM.shape)} can't be mapped: the map takes [N, {len(self.matrix_MD)}]"
            )
        # In fp64, since vectors far from the origin and the offset are large, and what is left of them is not.
        return (rows_NM.double() @ self.matrix_MD.double() + self.offset_D.double()).float()


def fit_alignment(pairs: Iterable[tuple[Tensor, Tensor]] | tuple[Tensor, Tensor], *, kind: AlignmentKind) -> Alignment:
    """The map of least squared error from some vectors to others.

    It is made of sums over pairs in fp64, so that they may come some at a time. An affine map is fitted to columns
    around their means and of unit spread, so that it depends neither on the scale of the vectors nor on where they lie.

    Args:
        pairs: what is mapped, fp32 [n, M], and what to, fp32 [n, D], of the same ids; or an iterable of such.
        kind: of the map.

    Returns:
        The map. Where columns are not independent, of all best affine maps the one of the smallest weights for columns
        of unit spread; a constant column has weight 0.

    Raises:
        ConfigError: there are no pairs, numbers of rows differ, no such kind, or an orthogonal map of unlike widths.

    Example:
        >>> old = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
        >>> turn = torch.tensor([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        >>> found = fit_alignment((old @ turn, old), kind="orthogonal")
        >>> torch.allclose(found(old @ turn), old, atol=1e-5)
        True
    """
    if kind not in ("orthogonal", "affine"):
        raise ConfigError(f"there is no map '{kind}'; give 'orthogonal' or 'affine'")
    sums: _Sums | None = None
    given = [pairs] if isinstance(pairs, tuple) else pairs
    for source_nM, target_nD in given:
        if sums is None:
            sums = _Sums(source_nM.shape[1], target_nD.shape[1])
        sums.add(source_nM, target_nD)
    if sums is None or not sums.num_pairs:
        raise ConfigError("there are no pairs of vectors to fit a map to")
    return _orthogonal(sums) if kind == "orthogonal" else _affine(sums)


class _Sums:
    """What both maps are made of: means, and sums of products around them.

    Attributes:
        num_pairs: that were added.
        mean_M, mean_D: of the vectors that are mapped, and of what they are mapped to.
        own_MM: sums of products of the vectors that are mapped with themselves, around their mean.
        cross_MD: with what they are mapped to, around both means.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979),
    equation 2.1. The plain sums of products would lose the spread of vectors that lie far from the origin.
    """

    def __init__(self, width: int, dim: int) -> None:
        self.num_pairs = 0
        self.mean_M = torch.zeros(width, dtype=torch.float64)
        self.mean_D = torch.zeros(dim, dtype=torch.float64)
        self.own_MM = torch.zeros(width, width, dtype=torch.float64)
        self.cross_MD = torch.zeros(width, dim, dtype=torch.float64)

    def add(self, source_nM: Tensor, target_nD: Tensor) -> None:
        if len(source_nM) != len(target_nD):
            raise ConfigError(f"{len(source_nM)} vectors are to be mapped to {len(target_nD)}; give as many, by id")
        num = len(source_nM)
        if not num:
            return
        own_nM, target_nD = source_nM.double(), target_nD.double()
        own_M, target_D = own_nM.mean(dim=0), target_nD.mean(dim=0)
        own_nM = own_nM - own_M
        moved_M, moved_D = own_M - self.mean_M, target_D - self.mean_D
        weight = self.num_pairs * num / (self.num_pairs + num)
        self.own_MM += own_nM.T @ own_nM + weight * torch.outer(moved_M, moved_M)
        self.cross_MD += own_nM.T @ (target_nD - target_D) + weight * torch.outer(moved_M, moved_D)
        self.num_pairs += num
        self.mean_M += moved_M * (num / self.num_pairs)
        self.mean_D += moved_D * (num / self.num_pairs)


def _orthogonal(sums: _Sums) -> Alignment:
    cross_MD = sums.cross_MD + sums.num_pairs * torch.outer(sums.mean_M, sums.mean_D)  # around the origin
    width, dim = cross_MD.shape
    if width != dim:
        raise ConfigError(
            f"vectors of {width} numbers can't be mapped to {dim} by an orthogonal map, which is square; use an affine "
            "one"
        )
    left, _, right = torch.linalg.svd(cross_MD)
    return Alignment(kind="orthogonal", matrix_MD=(left @ right).float(), offset_D=torch.zeros(dim))


def _affine(sums: _Sums) -> Alignment:
    spread_M = (sums.own_MM.diagonal() / sums.num_pairs).sqrt()
    varies_M = spread_M > _LEAST_SPREAD * sums.mean_M.abs()
    unit_M = torch.where(varies_M, 1 / spread_M, 0.0)
    correlation_MM = sums.own_MM / sums.num_pairs * unit_M[:, None] * unit_M
    inverse_MM = torch.linalg.pinv(correlation_MM, hermitian=True, rtol=_LEAST_VALUE)
    solved_MD = inverse_MM @ (sums.cross_MD / sums.num_pairs * unit_M[:, None])
    matrix_MD = (solved_MD * unit_M[:, None]).float()
    # Of the rounded matrix: the mean is mapped to the mean, however far from the origin it lies.
    offset_D = sums.mean_D - sums.mean_M @ matrix_MD.double()
    return Alignment(kind="affine", matrix_MD=matrix_MD, offset_D=offset_D.float())
