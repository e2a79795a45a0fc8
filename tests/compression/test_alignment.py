"""Maps between two trainings of a table."""

import numpy as np
import pytest
import torch

from embank.compression import Alignment, fit_alignment
from embank.tables import ConfigError
from tests.compression.codecs import random_rows


def rotation(dim: int, *, seed: int = 5) -> torch.Tensor:
    """Turned or mirrored at random."""
    drawn = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.float()


@pytest.mark.parametrize("dim", [1, 2, 7, 32])
def test_a_planted_rotation_is_found(dim: int) -> None:
    old, turn = random_rows(dim + 5, dim), rotation(dim)
    found = fit_alignment((old @ turn.T, old), kind="orthogonal")
    torch.testing.assert_close(found.matrix_MD, turn, atol=1e-5, rtol=0)
    torch.testing.assert_close(found(old @ turn.T), old, atol=1e-5, rtol=0)
    assert not found.offset_D.any()


@pytest.mark.parametrize(("width", "dim"), [(1, 1), (6, 6), (6, 3), (3, 6)])
def test_a_planted_affine_map_is_found(width: int, dim: int) -> None:
    new = random_rows(50, width)
    matrix, offset = random_rows(width, dim, seed=1), random_rows(1, dim, seed=2)[0]
    found = fit_alignment((new, new @ matrix + offset), kind="affine")
    torch.testing.assert_close(found.matrix_MD, matrix, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.offset_D, offset, atol=1e-4, rtol=0)


def test_an_orthogonal_map_is_orthogonal_and_no_worse_than_others() -> None:
    old, new = random_rows(40, 5), random_rows(40, 5, seed=1)
    found = fit_alignment((new, old), kind="orthogonal")
    torch.testing.assert_close(found.matrix_MD @ found.matrix_MD.T, torch.eye(5), atol=1e-5, rtol=0)
    least = (found(new) - old).norm()
    for seed in range(50):
        assert (new @ rotation(5, seed=seed) - old).norm() >= least


def test_an_affine_map_is_that_of_least_squares() -> None:
    old, new = random_rows(40, 5), random_rows(40, 4, seed=1)
    found = fit_alignment((new, old), kind="affine")
    ones = np.concatenate([new.numpy(), np.ones((40, 1))], axis=1)
    solved, *_ = np.linalg.lstsq(ones, old.numpy().astype(float), rcond=None)
    torch.testing.assert_close(found.matrix_MD, torch.from_numpy(solved[:-1]).float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.offset_D, torch.from_numpy(solved[-1]).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dim", [3, 16])
@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0, 1e6, 1e12])
@pytest.mark.parametrize("moved", [0.0, 3.0, 30.0, 1e3])
def test_an_affine_map_does_not_depend_on_scale_and_place(dim: int, scale: float, moved: float) -> None:
    """An exact relation is found as far as fp32 can hold it, wherever the vectors lie."""
    new = ((random_rows(200, dim).double() + moved) * scale).float()
    around = new.double() / scale - moved
    matrix = random_rows(dim, dim, seed=1).double()
    for own_scale in (1e-12, 1.0, 1e12):
        old = (around @ matrix * own_scale).float()
        found = fit_alignment(zip(new.split(70), old.split(70), strict=True), kind="affine")
        error = float((found(new) - old).norm() / old.norm())
        assert error < 1e-6 + moved * 1e-7, f"{error} for old vectors of scale {own_scale}"
        wanted = matrix * own_scale / scale
        assert float((found.matrix_MD - wanted).norm() / wanted.norm()) < 1e-5 + moved * 1e-7


def test_columns_of_unlike_scales_and_places() -> None:
    units = torch.tensor([1e-12, 1.0, 1e12], dtype=torch.float64)
    moved = torch.tensor([1e3, 0.0, -30.0], dtype=torch.float64)
    new = ((random_rows(200, 3).double() + moved) * units).float()
    old = ((new.double() / units - moved) @ random_rows(3, 2, seed=1).double() + 5).float()
    found = fit_alignment((new, old), kind="affine")
    torch.testing.assert_close(found(new), old, atol=1e-4, rtol=0)


def test_constant_columns_tell_nothing() -> None:
    new, old = random_rows(101, 4), random_rows(101, 2, seed=1)
    new[:, 1], new[:, 3] = 0.1, 0
    for source in (new, new * 1e-9, new * 1e9):
        found = fit_alignment(zip(source.split(10), old.split(10), strict=True), kind="affine")
        assert not found.matrix_MD[[1, 3]].any()
        plain = fit_alignment((source[:, [0, 2]], old), kind="affine")
        torch.testing.assert_close(found(source), plain(source[:, [0, 2]]), atol=1e-6, rtol=0)
    one = fit_alignment((new[:1], old[:1]), kind="affine")
    torch.testing.assert_close(one(new[:1]), old[:1])


def test_columns_that_are_not_independent_get_the_smallest_map() -> None:
    new = random_rows(30, 3).repeat(1, 2)
    found = fit_alignment((new, random_rows(30, 2, seed=1)), kind="affine")
    torch.testing.assert_close(found.matrix_MD[:3], found.matrix_MD[3:], atol=1e-4, rtol=0)


def test_pairs_may_come_some_at_a_time() -> None:
    old, new = random_rows(40, 5), random_rows(40, 5, seed=1)
    for kind in ("orthogonal", "affine"):
        whole = fit_alignment((new, old), kind=kind)
        parts = fit_alignment(zip(new.split(7), old.split(7), strict=True), kind=kind)
        torch.testing.assert_close(parts.matrix_MD, whole.matrix_MD, atol=1e-6, rtol=0)


def test_what_can_not_be_fitted_is_refused() -> None:
    with pytest.raises(ConfigError, match="of 3 numbers can't be mapped to 2 by an orthogonal map"):
        fit_alignment((torch.ones(4, 3), torch.ones(4, 2)), kind="orthogonal")
    with pytest.raises(ConfigError, match="no pairs"):
        fit_alignment([], kind="affine")
    with pytest.raises(ConfigError, match="4 vectors are to be mapped to 5"):
        fit_alignment((torch.ones(4, 3), torch.ones(5, 3)), kind="affine")
    with pytest.raises(ConfigError, match="no map 'turn'"):
        fit_alignment((torch.ones(4, 3), torch.ones(4, 3)), kind="turn")
    turn = Alignment(kind="orthogonal", matrix_MD=torch.eye(3), offset_D=torch.zeros(3))
    with pytest.raises(ConfigError, match=r"of shape \[4, 2\] can't be mapped: the map takes \[N, 3\]"):
        turn(torch.ones(4, 2))
