"""The published solver against its published dims."""

import pytest

from embank.tables import BudgetError
from tests.compression.cardinalities import AVAZU, CRITEO
from tests.compression.published_mde import power_of_two_dims, published_dims


def test_dims_of_criteo_at_a_tenth() -> None:
    found = published_dims(CRITEO, embedding_dim=16, budget=0.1)
    # fmt: off
    assert found.dims == (8, 8, 1, 2, 8, 8, 4, 8, 16, 4, 4, 1, 4, 8, 4, 2, 16, 4, 8, 16, 2, 16, 16, 4, 8, 4)
    # fmt: on
    assert round(found.alpha, 2) == 0.16
    assert round(100 * found.ratio, 2) == 9.29


def test_ratios() -> None:
    ratios = [
        round(100 * published_dims(sizes, embedding_dim=16, budget=budget).ratio, 1)
        for sizes, budget in ((CRITEO, 0.5), (AVAZU, 0.5), (AVAZU, 0.1))
    ]
    assert ratios == [42.5, 32.2, 8.1]


def test_a_sweep_of_the_exponent() -> None:
    assert set(power_of_two_dims(CRITEO, embedding_dim=16, alpha=0.0)) == {16}
    for alpha in (0.05, 0.2, 0.6, 1.0):
        dims = power_of_two_dims(CRITEO, embedding_dim=16, alpha=alpha)
        by_size = [dim for _, dim in sorted(zip(CRITEO, dims, strict=True))]
        assert by_size == sorted(by_size, reverse=True)


def test_floor() -> None:
    with pytest.raises(BudgetError, match="floor at budget 0.0625"):
        published_dims(CRITEO, embedding_dim=16, budget=0.01)
