"""Mixed dims against the product of two matrices, the power rule, and what the published solver leaves unused."""

from dataclasses import replace

import pytest
import torch

from embank.compression import build_table
from embank.compression.methods.mde import Mde, MdeConfig, ids_per_lookup, power_dims
from embank.tables import BudgetError, ConfigError, TableCollection, TableSpec, build_method
from tests.compression.cardinalities import AVAZU, CRITEO
from tests.compression.materialised import check_against
from tests.compression.published_mde import published_dims


def spec(num: int = 500, dim: int = 12, *, name: str = "t", **more: object) -> TableSpec:
    return TableSpec(name=name, num_embeddings=num, embedding_dim=dim, feature_names=[name], method="mde", **more)


def tables_of(sizes: tuple[int, ...], dim: int = 16) -> list[TableSpec]:
    return [spec(num, dim, name=f"f{i}") for i, num in enumerate(sizes)]


def numbers_held(specs: list[TableSpec]) -> int:
    """Rows and projections, from what the built methods declare."""
    built = [build_method(s) for s in specs]
    rows = sum(p.num_embeddings * p.embedding_dim for m in built for p in m.physical)
    return rows + sum(p.numel() for m in built for p in m.parameters())


def test_lookups_and_gradients_are_those_of_the_product() -> None:
    check_against(spec(options=MdeConfig(width=4)), lambda rows, dense: rows["t"] @ dense["widening.weight"])
    check_against(spec(), lambda rows, dense: rows["t"])


def test_rank_of_the_materialised_table() -> None:
    table = build_table(method="mde", num_embeddings=800, embedding_dim=12, budget=0.4)
    (method,) = table.collection.built_methods()
    assert method.dim == 4
    assert torch.linalg.matrix_rank(table.lookup(torch.arange(800)).detach()) == 4


def test_the_power_rule() -> None:
    specs = tables_of(CRITEO)
    sizes = ids_per_lookup(specs)
    assert power_dims(specs, sizes, 0.0) == [16] * 26
    assert power_dims(specs, sizes, 2.0) == [1] * 26
    assert (
        power_dims(specs, sizes, 0.1)[19] == 16
    )  # the rule says 15.5: 4 ids and a projection would take more than 4 plain rows
    last = None
    for exponent in [i / 20 for i in range(41)]:
        dims = power_dims(specs, sizes, exponent)
        by_size = [dim for _, dim in sorted(zip(CRITEO, dims, strict=True))]
        assert by_size == sorted(by_size, reverse=True)
        held = sum(n * d + (d * 16 if d < 16 else 0) for n, d in zip(CRITEO, dims, strict=True))
        assert last is None or held <= last
        last = held
    third = CRITEO[2]
    assert power_dims(specs, sizes, 0.1)[2] == round(16 * (3 / third) ** 0.1)


@pytest.mark.parametrize("sizes", [CRITEO, AVAZU], ids=["criteo", "avazu"])
def test_a_collection_uses_its_budget(sizes: tuple[int, ...]) -> None:
    plain = 16 * sum(sizes)
    for budget in (0.5, 0.2, 0.1, 0.065):
        given = Mde.traits.allocation.share(tables_of(sizes), int(budget * 4 * plain))
        held = numbers_held(given)
        assert held <= budget * plain
        by_size = sorted(given, key=lambda s: s.num_embeddings)
        dims = [s.options.width for s in by_size]
        assert dims == sorted(dims, reverse=True)
        if budget != 0.065:
            assert held / (budget * plain) > published_dims(sizes, embedding_dim=16, budget=budget).ratio / budget
        assert budget * plain - held < max(sizes) + 16, "what is left would hold one more dim of every table"
    with pytest.raises(BudgetError, match="floor is budget 0.0625"):
        Mde.traits.allocation.share(tables_of(sizes), int(0.06 * 4 * plain))


def test_small_collections_keep_bytes_and_order_and_leave_no_room_for_a_dim() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        sizes = (10 ** (3 * torch.rand(4, generator=generator))).long().tolist()
        specs = tables_of(tuple(sizes), 8)
        allowed = int((0.3 + 0.6 * float(torch.rand(1, generator=generator))) * 8 * sum(sizes))
        floor = sum(min(8 * n, n + 8) for n in sizes)
        if floor > allowed:
            continue
        given = Mde.traits.allocation.share(specs, 4 * allowed)
        dims = [s.options.width for s in given]
        assert numbers_held(given) <= allowed
        for n, dim in zip(sizes, dims, strict=True):
            assert all(other <= dim for m, other in zip(sizes, dims, strict=True) if m > n), (sizes, dims)
        for i, n in enumerate(sizes):
            raised = dims[i] + 1 if (dims[i] + 1) * (n + 8) < 8 * n else 8
            if dims[i] < 8:
                extra = (8 * n if raised == 8 else raised * (n + 8)) - dims[i] * (n + 8)
                assert numbers_held(given) + extra > allowed


def test_tables_of_one_size_share_evenly() -> None:
    given = Mde.traits.allocation.share(tables_of((1000, 1000, 1000)), int(0.4 * 4 * 48_000))
    assert sorted(s.options.width for s in given) == [6, 6, 6]
    (alone,) = Mde.traits.allocation.share([spec()], int(0.4 * 4 * 6000))
    assert alone.options.width == build_method(spec(budget=0.4)).dim == 4


def test_a_feature_that_is_looked_up_more_often_counts_as_smaller() -> None:
    pair = [spec(3000, 16, name="single"), spec(3000, 16, name="bags"), spec(6000, 16, name="large")]
    lookups = (60_000, 480_000, 60_000)
    counted = [
        replace(s, counts=torch.full((s.num_embeddings,), n // s.num_embeddings))
        for s, n in zip(pair, lookups, strict=True)
    ]
    given = Mde.traits.allocation.share(counted, int(0.4 * sum(s.plain_nbytes for s in pair)))
    single, bags, large = (s.options.width for s in given)
    assert bags > single > large


def test_nominal_bytes_leave_projections_out() -> None:
    assert TableCollection([spec(options=MdeConfig(width=4))]).nbytes("nominal") == 4 * 500 * 4


def test_sizes_at_the_edge_and_options() -> None:
    assert build_method(spec(1, 2048)).dim == 2048
    given = Mde.traits.allocation.share(
        [spec(2**31 + 1, 3, name="a"), spec(1, 3, name="b")], int(0.5 * 4 * 3 * (2**31 + 2))
    )
    assert [build_method(s).dim for s in given] == [1, 3]
    with pytest.raises(BudgetError, match="floor is budget"):
        build_method(spec(budget=0.01))
    with pytest.raises(ConfigError, match="both budget 0.5 and width 3"):
        build_method(spec(options=MdeConfig(width=3), budget=0.5))
