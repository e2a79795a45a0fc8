"""Equally narrow rows against their definition, the product of two matrices."""

import pytest
import torch

from embank.compression import build_table
from embank.compression.methods.uniform_dim import UniformDim, UniformDimConfig
from embank.tables import BudgetError, ConfigError, TableSpec, build_method
from tests.compression.materialised import check_against


def spec(num: int = 500, dim: int = 12, *, name: str = "t", **more: object) -> TableSpec:
    return TableSpec(
        name=name, num_embeddings=num, embedding_dim=dim, feature_names=[name], method="uniform_dim", **more
    )


def test_lookups_and_gradients_are_those_of_the_product() -> None:
    check_against(spec(options=UniformDimConfig(width=5)), lambda rows, dense: rows["t"] @ dense["widening.weight"])
    check_against(spec(), lambda rows, dense: rows["t"])


@pytest.mark.slow
def test_rank_and_initial_spread() -> None:
    for dim, width in ((16, 1), (16, 7), (2048, 3), (3, 2)):
        table = build_table(
            method="uniform_dim", num_embeddings=2000, embedding_dim=dim, options=UniformDimConfig(width=width), seed=1
        )
        rows = table.lookup(torch.arange(2000)).detach()
        assert torch.linalg.matrix_rank(rows) == width
        plain_std = 2000**-0.5 / 3**0.5
        assert abs(float(rows.square().mean().sqrt()) / plain_std - 1) < 0.05


def test_the_projection_is_counted() -> None:
    table = build_table(method="uniform_dim", num_embeddings=500, embedding_dim=12, budget=0.3)
    width = 3  # 0.3 * 500 * 12 = 1800 numbers; 512 for each of the columns
    assert table.nbytes("serving") == 4 * (500 * width + width * 12)
    with pytest.raises(
        BudgetError, match="needs rows of dim 1 and their projection, 2,048 bytes, so its floor is budget 0.0853334"
    ):
        build_method(spec(budget=0.08))
    assert build_method(spec(budget=1.0)).dim == 12


def test_a_collection_gets_the_largest_common_dim() -> None:
    sizes = (2, 40, 3000, 70_000)
    specs = [spec(num, 16, name=f"t{num}") for num in sizes] + [spec(9000, 4, name="narrow"), spec(500, 1, name="one")]

    def held(table: TableSpec, width: int) -> int:
        width = min(width, table.embedding_dim)
        plain = table.num_embeddings * table.embedding_dim
        narrow = table.num_embeddings * width + width * table.embedding_dim
        return 4 * (plain if width == table.embedding_dim else min(plain, narrow))

    for budget in (1.0, 0.9, 0.8, 0.7, 0.3, 0.2, 0.15, 0.12):
        nbytes = int(budget * sum(s.plain_nbytes for s in specs))
        given = UniformDim.traits.allocation.share(specs, nbytes)
        best = max(w for w in range(1, 17) if sum(held(s, w) for s in specs) <= nbytes)
        for table, made in zip(specs, given, strict=True):
            built = build_method(made)
            width = min(best, table.embedding_dim)
            is_plain = held(table, width) == table.plain_nbytes
            assert built.dim == (table.embedding_dim if is_plain else width)
    with pytest.raises(BudgetError, match="6 tables from 't2' on: .* so its floor is budget"):
        UniformDim.traits.allocation.share(specs, 1000)


def test_sizes_at_the_edge_and_options() -> None:
    assert build_method(spec(1, 1)).dim == 1
    assert build_method(spec(2**31 + 1, 2048, budget=0.1)).dim == 204
    with pytest.raises(ConfigError, match="width 13 for its rows; it must lie in 1 .. 12"):
        build_method(spec(options=UniformDimConfig(width=13)))
    with pytest.raises(ConfigError, match="both budget 0.5 and width 3"):
        build_method(spec(options=UniformDimConfig(width=3), budget=0.5))
    with pytest.raises(ConfigError, match="width 3 for its rows while the collection has a budget"):
        UniformDim.traits.allocation.share([spec(options=UniformDimConfig(width=3))], 10_000)
