"""The frequency cut against sorted counts and the plain table."""

import pytest
import torch

from embank.compression import build_table
from embank.compression.methods.frequency_cut import FrequencyCutConfig
from embank.tables import BudgetError, ConfigError, TableSpec, build_method
from tests.compression.materialised import check_against, zipf_counts


def spec(num: int = 500, dim: int = 6, **more: object) -> TableSpec:
    return TableSpec(
        name="t", num_embeddings=num, embedding_dim=dim, feature_names=["a"], method="frequency_cut", **more
    )


def test_exactly_the_most_frequent_ids_have_rows_of_their_own() -> None:
    counts = zipf_counts(500)
    method = build_method(spec(budget=0.2, counts=counts))
    (rows,) = method.address(torch.arange(500))
    alone = {i for i in range(500) if int((rows == rows[i]).sum()) == 1}
    by_count = sorted(range(1, 500), key=lambda i: (-int(counts[i]), i))
    assert alone == set(by_count[:99])  # 100 rows, of which row 0 is shared
    assert set(rows.tolist()) == set(range(100))
    assert set(rows[100:].tolist()) == {0}
    assert int(rows[0]) == 0


def test_lookups_and_gradients_are_those_of_the_plain_table_with_rare_ids_as_unknown() -> None:
    check_against(spec(budget=0.1), lambda rows, _: torch.stack([rows["t"][i if i < 50 else 0] for i in range(500)]))


def test_every_byte_is_a_row() -> None:
    for budget, expected in ((1.0, 500), (0.999, 499), (0.5, 250), (0.1, 50), (0.002, 1)):
        table = build_table(method="frequency_cut", num_embeddings=500, embedding_dim=6, budget=budget)
        assert table.nbytes("serving") == expected * 6 * 4
    with pytest.raises(
        BudgetError, match="'t': method 'frequency_cut' needs one row, 24 bytes, so its floor is budget 0.002"
    ):
        build_method(spec(budget=0.0019))


def test_counts_that_contradict_the_prefix_are_refused() -> None:
    counts = zipf_counts(500)
    swapped = counts.clone()
    swapped[[20, 400]] = swapped[[400, 20]]
    with pytest.raises(ConfigError, match="id 20 occurs .* times and id 400 .* Rank the ids by frequency"):
        build_method(spec(budget=0.2, counts=swapped))
    within = counts.clone()
    within[[20, 40]] = within[[40, 20]]  # both have rows of their own
    build_method(spec(budget=0.2, counts=within))
    build_method(spec(counts=swapped))  # all have


def test_sizes_at_the_edge() -> None:
    build_method(spec(num=1, dim=2048, budget=1.0))
    method = build_method(spec(num=2**31 + 1, dim=3, budget=1e-4))
    kept = method.physical[0].num_embeddings
    assert kept == int(1e-4 * (2**31 + 1))
    (rows,) = method.address(torch.tensor([0, kept - 1, kept, 2**31]))
    assert rows.tolist() == [0, kept - 1, 0, 0]
    whole = build_method(spec(num=2**31 + 1, dim=3))
    assert whole.address(torch.tensor([2**31]))[0].tolist() == [2**31]


def test_options() -> None:
    assert build_method(spec(options=FrequencyCutConfig(num_rows=7))).physical[0].num_embeddings == 7
    with pytest.raises(ConfigError, match="both budget 0.5 and num_rows 7"):
        build_method(spec(options=FrequencyCutConfig(num_rows=7), budget=0.5))
    for wrong in (0, 501):
        with pytest.raises(ConfigError, match=rf"num_rows {wrong}; it must lie in 1 .. 500"):
            build_method(spec(options=FrequencyCutConfig(num_rows=wrong)))
