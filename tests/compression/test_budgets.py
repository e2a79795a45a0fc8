"""Sharing bytes between tables, against exhaustive search, and budgets that are exact to the byte."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embank.compression.budget.floors import budget_nbytes, share, share_text, with_nbytes
from embank.tables import BudgetError, TableSpec


def spec(num: int, dim: int, *, name: str = "t") -> TableSpec:
    return TableSpec(name=name, num_embeddings=num, embedding_dim=dim, feature_names=["a"], method="hash")


@given(num=st.integers(1, 2**40), dim=st.integers(1, 2048), share_of=st.floats(0, 1))
def test_a_budget_is_its_bytes_exactly(num: int, dim: int, share_of: float) -> None:
    table = spec(num, dim)
    nbytes = max(1, int(share_of * table.plain_nbytes))
    assert budget_nbytes(with_nbytes(table, nbytes)) == nbytes


def cost(num: int, level: int) -> int:
    """Tables that grow by a tenth of their bytes per level, up to twice the plain table."""
    return num * 4 * (level + 1) // 10 + 4


def sizes_of(specs: list[TableSpec]) -> list[int]:
    return [s.plain_nbytes if s.method == "full" else budget_nbytes(s) or 0 for s in specs]


@given(nums=st.lists(st.integers(1, 500), min_size=1, max_size=5), nbytes=st.integers(1, 8000))
def test_no_table_is_below_the_highest_common_level(nums: list[int], nbytes: int) -> None:
    specs = [spec(num, 1, name=str(i)) for i, num in enumerate(nums)]
    costs = [partial(cost, num) for num in nums]
    levels = [[min(4 * num, cost(num, level)) for num in nums] for level in range(20)]
    fitting = [sizes for sizes in levels if sum(sizes) <= nbytes]
    if not fitting:
        with pytest.raises(
            BudgetError, match=f"floor is budget {share_text(sum(levels[0]), 4 * sum(nums))}; they were given"
        ):
            share(specs, costs, num_levels=20, nbytes=nbytes)
        return
    sizes = sizes_of(share(specs, costs, num_levels=20, nbytes=nbytes))
    assert sum(sizes) <= nbytes
    assert all(size >= common for size, common in zip(sizes, fitting[-1], strict=True))
    for num, size in zip(nums, sizes, strict=True):  # nothing that would fit is left out
        larger = [level[nums.index(num)] for level in levels if level[nums.index(num)] > size]
        assert not larger or sum(sizes) - size + min(larger) > nbytes


def test_what_is_left_goes_to_the_smallest_tables() -> None:
    specs = [spec(num, 1, name=str(num)) for num in (400, 10, 100)]
    costs = [partial(cost, num) for num in (400, 10, 100)]
    at_level_2 = sum(cost(num, 2) for num in (400, 10, 100))
    assert sizes_of(share(specs, costs, num_levels=20, nbytes=at_level_2)) == [484, 16, 124]
    assert sizes_of(share(specs, costs, num_levels=20, nbytes=at_level_2 + 30)) == [484, 40, 124]
    assert sizes_of(share(specs, costs, num_levels=20, nbytes=at_level_2 + 70)) == [484, 40, 164]
