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
        return rows_NM.float() @ self.matrix_MD + self.offset_D


def fit_alignment(pairs: Iterable[tuple[Tensor, Tensor]] | tuple[Tensor, Tensor], *, kind: AlignmentKind) -> Alignment:
    """The map of least squared error from some vectors to others.

    It is made of sums over pairs in fp64, so that they may come some at a time.

    Args:
        pairs: what is mapped, fp32 [n, M], and what to, fp32 [n, D], of the same ids; or an iterable of such.
        kind: of the map.

    Returns:
        The map. Where columns are not independent, of all best affine maps the smallest.

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
    """What both maps are made of. A column of ones stands beside the vectors that are mapped, for the offset."""

    def __init__(self, width: int, dim: int) -> None:
        self.num_pairs = 0
        self.own_XX = torch.zeros(width + 1, width + 1, dtype=torch.float64)
        self.cross_XD = torch.zeros(width + 1, dim, dtype=torch.float64)

    def add(self, source_nM: Tensor, target_nD: Tensor) -> None:
        if len(source_nM) != len(target_nD):
            raise ConfigError(f"{len(source_nM)} vectors are to be mapped to {len(target_nD)}; give as many, by id")
        self.num_pairs += len(source_nM)
        ones_nX = torch.cat([source_nM.double(), torch.ones(len(source_nM), 1, dtype=torch.float64)], dim=1)
        self.own_XX += ones_nX.T @ ones_nX
        self.cross_XD += ones_nX.T @ target_nD.double()


def _orthogonal(sums: _Sums) -> Alignment:
    cross_MD = sums.cross_XD[:-1]
    width, dim = cross_MD.shape
    if width != dim:
        raise ConfigError(
            f"vectors of {width} numbers can't be mapped to {dim} by an orthogonal map, which is square; use an affine "
            "one"
        )
    left, _, right = torch.linalg.svd(cross_MD)
    return Alignment(kind="orthogonal", matrix_MD=(left @ right).float(), offset_D=torch.zeros(dim))


def _affine(sums: _Sums) -> Alignment:
    inverse_XX = torch.linalg.pinv(sums.own_XX, hermitian=True, rtol=_LEAST_VALUE)
    solved_XD = inverse_XX @ sums.cross_XD
    return Alignment(kind="affine", matrix_MD=solved_XD[:-1].float().contiguous(), offset_D=solved_XD[-1].float())
