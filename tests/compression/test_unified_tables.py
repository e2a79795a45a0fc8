"""A shared table that consists of several: lookups dealt evenly, and everything else as with one."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from embank.compression.budget.solver import share
from embank.compression.methods.unified import Unified, UnifiedConfig
from embank.compression.multiplexing.growth import with_doubled_rows, with_lookups
from embank.compression.multiplexing.specs import advise, unified_specs
from embank.compression.parts.multiplexed import lookup_salts
from embank.tables import ConfigError, TableCollection, TableSpec, build_method, load_bundle, save_bundle
from embank.tables.ids.hashing import hash_rows
from tests.tables.batches import random_kjt

SIZES = {"user": 900, "item": 400, "place": 150, "gender": 3}
LOOKUPS = {"user": 3, "item": 1, "place": 4, "gender": 2}


def dealt(num_tables: int, *, rows: int = 64, embedding_dim: int | None = None) -> list[TableSpec]:
    return unified_specs(
        rows=rows, width=4, lookups=LOOKUPS, num_embeddings=SIZES, num_tables=num_tables, embedding_dim=embedding_dim
    )


def reads(specs: list[TableSpec]) -> Counter[str]:
    """Lookups by physical table."""
    methods = [build_method(spec) for spec in specs]
    return Counter(table.name for m in methods for table in m.physical if m.placement != "exact")


@pytest.mark.parametrize("num_tables", range(1, 12))
def test_tables_have_as_many_lookups_but_for_one(num_tables: int) -> None:
    counts = reads(dealt(num_tables))
    assert sum(counts.values()) == 3 + 1 + 4
    fewest = min(counts.values()) if len(counts) == num_tables else 0
    assert max(counts.values()) - fewest <= 1


def test_rows_are_those_of_the_hash_in_the_tables_that_were_dealt() -> None:
    tables = TableCollection(dealt(3))
    weights = tables.weights()
    assert {name: tuple(rows.shape) for name, rows in weights.items() if name != "gender"} == {
        f"unified/shared/4/{number} of 3": (64, 4) for number in (1, 2, 3)
    }
    batch = random_kjt(SIZES, batch_size=50, seed=1, max_bag=1)
    out = tables(batch)
    first = {"user": 0, "item": 0, "place": 1}  # 3 lookups, then 1, then 4, dealt in turn
    for name, start in first.items():
        ids, lengths = batch[name].values(), batch[name].lengths()
        salts = lookup_salts("unified", name, LOOKUPS[name])
        chunks = [
            weights[f"unified/shared/4/{(start + k) % 3 + 1} of 3"][hash_rows(ids, num_rows=64, salt=salt)]
            for k, salt in enumerate(salts)
        ]
        expected = torch.zeros(50, 4 * LOOKUPS[name])
        expected[lengths == 1] = torch.cat(chunks, dim=1)
        assert torch.equal(out[name], expected)


def test_without_the_one_line_a_feature_keeps_its_tables_whatever_else_is_there() -> None:
    def of(name: str) -> Unified:
        options = UnifiedConfig(rows=64, width=4, lookups=2, num_tables=5, placement="shared")
        method = build_method(
            TableSpec(
                name=name, num_embeddings=200, embedding_dim=8, feature_names=[name], method="unified", options=options
            )
        )
        assert isinstance(method, Unified)
        return method

    def numbers(name: str) -> list[int]:
        """The shared table that each lookup reads: "unified/shared/4/3 of 5" is number 2."""
        return [int(table.name.split("/")[-1].split()[0]) - 1 for table in of(name).physical]

    firsts = Counter(numbers(f"feature{k}")[0] for k in range(500))
    assert set(firsts) == set(range(5))
    assert max(firsts.values()) < 140  # 100 each and less than five sigma
    assert numbers("user") == numbers("user")
    assert numbers("user")[1] == (numbers("user")[0] + 1) % 5


def test_bytes_bundle_and_growth(tmp_path: Path) -> None:
    tables = TableCollection(dealt(3, embedding_dim=8))
    batch = random_kjt(SIZES, batch_size=40, seed=2, single=True)
    tables(batch).values().square().sum().backward()
    tables.update_rows()
    expected = tables(batch).values().detach()
    projections = 4 * 4 * 8 * (3 + 1 + 4) + 8 * (3 + 1 + 4)
    assert tables.nbytes("serving") == 4 * (3 * 64 * 4 + 3 * 8) + projections
    assert advise(tables.specs).serving_nbytes == tables.nbytes("serving")
    save_bundle(tmp_path / "bundle", tables)
    torch.testing.assert_close(load_bundle(tmp_path / "bundle")(batch).values(), expected)
    assert torch.equal(with_doubled_rows(tables)(batch).values(), expected)
    assert torch.equal(with_lookups(tables, {"item": 4, "user": 5})(batch).values(), expected)


def test_a_budget_pays_for_every_table() -> None:
    for num_tables in (1, 4):
        options = UnifiedConfig(lookups=2, num_tables=num_tables)
        specs = [
            TableSpec(name=n, num_embeddings=s, embedding_dim=8, feature_names=[n], method="unified", options=options)
            for n, s in {"user": 9000, "item": 4000}.items()
        ]
        tables = TableCollection(share(specs, budget=0.2, plain_below=0))
        assert 0.19 < tables.nbytes("serving") / tables.plain_nbytes <= 0.2


def test_expected_collisions_are_those_of_the_tables_that_are_read() -> None:
    """One lookup each in one of two tables: what shares a table collides, what does not never does."""
    sizes = {"a": 400, "b": 300, "c": 200}
    specs = unified_specs(rows=500, width=4, lookups=dict.fromkeys(sizes, 1), num_embeddings=sizes, num_tables=2)
    rates = {feature.name: feature.inter for feature in advise(specs).features}
    assert rates["a"] == pytest.approx(1 - (1 - 1 / 500) ** 200)  # c, not b
    assert rates["b"] == 0
    assert rates["c"] == pytest.approx(1 - (1 - 1 / 500) ** 400)


@pytest.mark.parametrize(("num_tables", "first"), [(0, None), (3, 3), (3, -1)])
def test_refusals(num_tables: int, first: int | None) -> None:
    options = UnifiedConfig(rows=9, lookups=1, num_tables=num_tables, first_table=first)
    spec = TableSpec(
        name="t", num_embeddings=200, embedding_dim=8, feature_names=["t"], method="unified", options=options
    )
    with pytest.raises(ConfigError, match=rf"'t' has num_tables {num_tables} and first_table {first}; give at least 1"):
        build_method(spec)
