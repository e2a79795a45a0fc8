"""Traffic of rows against loops over a prepared folder, and its statistics against their definitions."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from embank.compression.methods.unified import UnifiedConfig
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.diagnosis.traffic import Traffic, count_traffic, norm_trends
from embank.tables import RowOptimizer, TableCollection, TableSpec
from embank.tables.ids.hashing import salt64
from tests.compression.oracles import splitmix64
from tests.tables.batches import random_kjt
from tests.training.runs import write_data

SIZES = {"user": 50, "item": 7, "genre": 9}


def row_of(value: int, *, table: str, lookup: int, num_rows: int) -> int:
    mixed = splitmix64((value ^ salt64("unified", table, lookup)) & (2**64 - 1))
    return (mixed & (2**63 - 1)) % num_rows


def tables() -> TableCollection:
    """Three features in one table, one of them with three lookups and bags of ids; one of them again in a plain
    table."""
    specs = [
        TableSpec(
            name=name,
            num_embeddings=size,
            embedding_dim=12 if name == "genre" else 8,
            feature_names=[name],
            method="unified",
            options=UnifiedConfig(rows=20, width=4, exact_below=0),
        )
        for name, size in SIZES.items()
    ]
    return TableCollection([*specs, TableSpec(name="again", num_embeddings=7, embedding_dim=4, feature_names=["item"])])


def test_counts_are_those_of_a_loop(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    found = count_traffic(tables(), Loader(data, "train", batch_size=70, shuffle=False).epoch(0))
    shared, plain = Counter[int](), Counter[int]()
    features: dict[int, set[str]] = {}
    for batch in Loader(data, "train", batch_size=600, shuffle=False).epoch(0):
        for name in SIZES:
            for value in batch.sparse[name].values().tolist():
                for lookup in range(3 if name == "genre" else 2):
                    row = row_of(value, table=name, lookup=lookup, num_rows=20)
                    shared[row] += 1
                    features.setdefault(row, set()).add(name)
                if name == "item":
                    plain[value] += 1
    assert found["unified/shared/4"].lookups.tolist() == [shared[row] for row in range(20)]
    assert found["unified/shared/4"].num_features.tolist() == [len(features.get(row, ())) for row in range(20)]
    assert found["unified/shared/4"].readers == 3
    assert found["again"].lookups.tolist() == [plain[row] for row in range(7)]
    assert found["again"].readers == 1


def traffic_of(lookups: list[int], features: list[int] | None = None) -> Traffic:
    return Traffic(
        table="t",
        lookups=torch.tensor(lookups),
        num_features=torch.tensor(features or [int(count > 0) for count in lookups]),
        readers=3,
    )


def test_statistics() -> None:
    skewed = traffic_of([0, 60, 0, 30, 10, 0, 0, 0, 0, 0], [0, 3, 0, 2, 1, 0, 0, 0, 0, 0])
    assert skewed.hottest(0.1) == 0.6
    assert skewed.hottest(0.001) == 0.6, "at least one row"
    assert skewed.hottest(0.2) == 0.9
    assert skewed.unused == 0.7
    assert skewed.features_per_row == 2
    counts = [0, 60, 0, 30, 10, 0, 0, 0, 0, 0]
    pairs = sum(abs(a - b) for a in counts for b in counts)
    assert skewed.gini == pytest.approx(pairs / (2 * 10 * sum(counts)))
    assert traffic_of([5] * 8).gini == pytest.approx(0)
    assert traffic_of([0] * 99 + [7]).gini == pytest.approx(0.99)
    nothing = traffic_of([0, 0])
    assert (nothing.gini, nothing.hottest(0.5), nothing.features_per_row, nothing.unused) == (0, 0, 0, 1)


def test_norms_before_and_after_training_by_decile() -> None:
    trained = TableCollection(
        [TableSpec(name="t", num_embeddings=200, embedding_dim=4, feature_names=["a"])],
        seed=5,
        optimizer=RowOptimizer(name="sgd", lr=0.1),
    )
    initial = trained.weights()["t"].clone()
    lookups = torch.zeros(200, dtype=torch.int64)
    for step in range(5):
        kjt = random_kjt({"a": 200}, batch_size=16, seed=step)
        lookups += kjt.values().bincount(minlength=200)
        (trained(kjt).values() - 1).square().sum().backward()
        trained.update_rows()
    traffic = Traffic(table="t", lookups=lookups, num_features=lookups.clamp(max=1), readers=1)
    (trend,) = norm_trends(trained, {"t": traffic})
    order = sorted(range(200), key=lambda row: (-int(lookups[row]), row))
    for decile in range(10):
        rows = order[20 * decile : 20 * decile + 20]
        assert trend.lookups[decile] == pytest.approx(float(lookups[rows].double().mean()))
        for seen, values in ((trend.initial, initial), (trend.final, trained.weights()["t"])):
            assert seen[decile] == pytest.approx(float(values[rows].square().sum(1).mean()), rel=1e-5)
    assert trend.final[0] > 2 * trend.initial[0]
    assert trend.final[9] == trend.initial[9], "rows that nothing reads stay"


def test_methods_of_several_stages_have_no_trend() -> None:
    """Rows of a later stage do not start from initial values."""
    spec = TableSpec(name="t", num_embeddings=200, embedding_dim=4, feature_names=["a"], method="pep", budget=0.5)
    staged = TableCollection([spec])
    (name,) = staged.weights()
    even = torch.ones(staged.weights()[name].shape[0], dtype=torch.int64)
    assert norm_trends(staged, {name: Traffic(table=name, lookups=even, num_features=even, readers=1)}) == []
