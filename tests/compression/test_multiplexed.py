"""Rows that several features share: places, gradients, bytes, budgets and files of every method that has them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from embank.compression.budget.solver import share
from embank.compression.methods.compositional import CompositionalConfig
from embank.compression.methods.hash_embedding import HashEmbeddingConfig
from embank.compression.methods.memcom import MemcomConfig
from embank.compression.methods.robe import RobeConfig
from embank.compression.methods.unified import UnifiedConfig
from embank.tables import (
    BudgetError,
    ConfigError,
    RowOptimizer,
    TableCollection,
    TableSpec,
    build_method,
    load_bundle,
    method_class,
    save_bundle,
)
from embank.tables.ids.hashing import salt64
from embank.tables.rows.store_spec import RowOptimizerName
from embank.tables.storage.checkpoint import load_checkpoint, save_checkpoint
from tests.compression.oracles import splitmix64
from tests.tables.batches import random_kjt

SIZES = {"user": 300, "item": 120, "place": 40}
ROWS = 30
DIM = 6
SHARED: dict[str, Any] = {
    "compositional": CompositionalConfig(table="pool", num_rows=ROWS),
    "memcom": MemcomConfig(table="pool", num_rows=ROWS, bias=True),
    "hash_embedding": HashEmbeddingConfig(table="pool", num_rows=ROWS),
    "robe": RobeConfig(array="pool", chunk=3, num_weights=3 * ROWS),
    "unified": UnifiedConfig(table="pool", rows=ROWS, width=3, exact_below=0),
}
UNDECIDED: dict[str, Any] = {
    "compositional": CompositionalConfig(table="pool"),
    "memcom": MemcomConfig(table="pool"),
    "hash_embedding": HashEmbeddingConfig(table="pool"),
}
every = pytest.mark.parametrize("method", sorted(SHARED))
new = pytest.mark.parametrize("method", sorted(UNDECIDED))


def specs_of(method: str, *names: str, options: Any = None, dims: dict[str, int] | None = None) -> list[TableSpec]:
    return [
        TableSpec(
            name=name,
            num_embeddings=SIZES.get(name, 200),
            embedding_dim=(dims or {}).get(name, DIM),
            feature_names=[name],
            method=method,
            options=SHARED[method] if options is None else options,
            init_std=0.1 if method == "robe" else None,
        )
        for name in names or SIZES
    ]


def one_each(ids: dict[str, Tensor]) -> KeyedJaggedTensor:
    values = torch.cat(list(ids.values()))
    return KeyedJaggedTensor(keys=list(ids), values=values, lengths=torch.ones(values.numel(), dtype=torch.int32))


def train(tables: TableCollection, *, steps: int, seed: int = 0) -> None:
    for step in range(steps):
        kjt = random_kjt(SIZES, batch_size=16, seed=seed + step)
        (tables(kjt).values() - 1).square().sum(1).mean().backward()
        tables.update_rows()


def logical(tables: Any) -> Tensor:
    """The first 40 logical rows of every feature."""
    with torch.no_grad():
        values: Tensor = tables(one_each({name: torch.arange(40) for name in SIZES})).values()
    return values


def row_of(value: int, *, method: str, table: str, lookup: int, num_rows: int) -> int:
    """The row of an id's lookup on Python's integers."""
    mixed = splitmix64((value ^ salt64(method, table, lookup)) & (2**64 - 1))
    return (mixed & (2**63 - 1)) % num_rows


def compositional_row(weights: dict[str, Tensor], name: str, x: int, *, how: str, parts: int) -> Tensor:
    tables = [weights[f"compositional/pool/{DIM}/part{i}"] for i in range(parts)]
    rows = [
        table[row_of(x, method="compositional", table=name, lookup=i, num_rows=len(table))]
        for i, table in enumerate(tables)
    ]
    return torch.stack(rows).prod(0) if how == "mul" else torch.stack(rows).sum(0)


def memcom_row(weights: dict[str, Tensor], name: str, x: int) -> Tensor:
    row = weights[f"memcom/pool/{DIM}/rows"][row_of(x, method="memcom", table=name, lookup=0, num_rows=ROWS)]
    return row * weights[f"{name}/multipliers"][x] + weights[f"{name}/biases"][x]


def hash_embedding_row(weights: dict[str, Tensor], name: str, x: int, *, num_hashes: int) -> Tensor:
    pool, importances = weights[f"hash_embedding/pool/{DIM}/rows"], weights[f"{name}/importances"][x]
    places = [row_of(x, method="hash_embedding", table=name, lookup=i, num_rows=ROWS) for i in range(num_hashes)]
    return sum((importances[i] * pool[place] for i, place in enumerate(places)), torch.zeros(DIM))


ORACLES = {
    "product": (
        "compositional",
        SHARED["compositional"],
        lambda w, n, x: compositional_row(w, n, x, how="mul", parts=2),
    ),
    "sum of three": (
        "compositional",
        CompositionalConfig(table="pool", num_rows=29, num_partitions=3, combine="sum"),
        lambda w, n, x: compositional_row(w, n, x, how="sum", parts=3),
    ),
    "memcom": ("memcom", SHARED["memcom"], memcom_row),
    "two hashes": (
        "hash_embedding",
        SHARED["hash_embedding"],
        lambda w, n, x: hash_embedding_row(w, n, x, num_hashes=2),
    ),
    "three hashes": (
        "hash_embedding",
        HashEmbeddingConfig(table="pool", num_rows=ROWS, num_hashes=3),
        lambda w, n, x: hash_embedding_row(w, n, x, num_hashes=3),
    ),
}


@pytest.mark.parametrize("case", list(ORACLES))
def test_values_and_summed_gradients_are_those_of_loops_in_python(case: str) -> None:
    """Two features in one batch: a shared row's gradient is the sum over both."""
    method, options, row = ORACLES[case]
    names = ("user", "item")
    tables = TableCollection(
        specs_of(method, *names, options=options), backend="torch", optimizer=RowOptimizer(name="sgd", lr=1.0)
    )
    generator = torch.Generator().manual_seed(0)
    for rows in tables.weights().values():
        rows.copy_(torch.randn(rows.shape, generator=generator))
    leaves = {name: rows.clone().requires_grad_() for name, rows in tables.weights().items()}
    ids = {name: torch.randint(0, SIZES[name], (150,), generator=generator) for name in names}
    expected = torch.cat([torch.stack([row(leaves, n, int(x)) for x in ids[n]]) for n in names], dim=1)
    out = tables(one_each(ids)).values()
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    direction = torch.randn(out.shape, generator=generator)
    (expected * direction).sum().backward()
    (out * direction).sum().backward()
    tables.update_rows()
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        moved = leaf.detach() - tables.weights()[name]
        torch.testing.assert_close(moved, leaf.grad, rtol=1e-4, atol=1e-4)


@every
def test_features_share_rows_whose_bytes_count_once(method: str) -> None:
    specs = specs_of(method)
    together = TableCollection(specs)
    apart = [TableCollection([spec]) for spec in specs]
    shared = set.intersection(*(set(tables.weights()) for tables in apart))
    assert shared
    shared_nbytes = sum(4 * together.weights()[name].numel() for name in shared)
    assert together.nbytes("serving") == sum(t.nbytes("serving") for t in apart) - 2 * shared_nbytes
    train(together, steps=2)
    before = {name: rows.clone() for name, rows in together.weights().items()}
    alone = together(random_kjt({"user": SIZES["user"], "item": 1, "place": 1}, batch_size=64, seed=9, single=True))
    alone.values()[:, :DIM].sum().backward()
    together.update_rows()
    assert any(not torch.equal(before[name], together.weights()[name]) for name in shared), (
        "one feature moves all's rows"
    )


@every
def test_features_have_independent_places(method: str) -> None:
    """The same id of two features has the same row in a lookup at the rate of chance, and so have two ids of one
    feature."""
    num, rows = 40_000, 100
    sized: dict[str, Any] = {
        "compositional": replace(SHARED[method], num_rows=2 * rows) if method == "compositional" else None,
        "robe": RobeConfig(array="pool", chunk=DIM, num_weights=DIM * rows),
        "unified": UnifiedConfig(table="pool", rows=rows, width=3),
    }
    options = sized.get(method) or replace(SHARED[method], num_rows=rows)
    methods = [
        build_method(replace(spec, num_embeddings=num)) for spec in specs_of(method, "user", "item", options=options)
    ]
    first, second = (m.address(torch.arange(num)) for m in methods)
    places = [i for i, table in enumerate(methods[0].physical) if table in methods[1].physical]
    std = (num / rows) ** 0.5
    for i in places:
        assert abs(int((first[i] == second[i]).sum()) - num / rows) < 4 * std
        assert abs(int((first[i][1:] == first[i][:-1]).sum()) - num / rows) < 4 * std
        joint = (first[i] // 10 * 10 + second[i] // 10).bincount(minlength=100).double()
        assert abs(float(((joint - num / 100).square() / (num / 100)).sum()) - 99) < 5 * (2 * 99) ** 0.5


@every
def test_adding_removing_and_reordering_features_leaves_the_places_of_others_alone(method: str) -> None:
    ids = torch.arange(40)
    before = {spec.name: build_method(spec) for spec in specs_of(method)}
    for names in (("place", "new", "user"), ("item",), ("other", "place", "item")):
        for spec in specs_of(method, *names):
            if spec.name in before:
                built = build_method(spec)
                assert torch.equal(torch.stack(built.address(ids)), torch.stack(before[spec.name].address(ids)))


@every
@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad"])
def test_backends_agree(method: str, optimizer: RowOptimizerName) -> None:
    rows = RowOptimizer(name=optimizer, lr=0.05)
    pair = [TableCollection(specs_of(method), backend=b, optimizer=rows) for b in ("fbgemm", "torch")]
    for tables in pair:
        train(tables, steps=5)
    torch.testing.assert_close(logical(pair[0]), logical(pair[1]), rtol=1e-4, atol=1e-5)


@every
def test_files_hold_shared_rows_once(method: str, tmp_path: Path) -> None:
    """A bundle gives the same bits from as many bytes as are counted; a checkpoint restores rows and what they do
    next."""
    tables = TableCollection(specs_of(method), seed=3)
    train(tables, steps=3)
    save_bundle(tmp_path / "bundle", tables)
    loaded = load_bundle(tmp_path / "bundle")
    assert torch.equal(logical(loaded), logical(tables))
    assert loaded.nbytes() == tables.nbytes("serving")
    file = tmp_path / "bundle" / "tables.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert file.stat().st_size - header == tables.nbytes("serving")

    save_checkpoint(tmp_path / "c", tables=tables, dense={"methods": tables.methods.state_dict()}, meta={})
    other = TableCollection(tables.specs, seed=4)
    dense, _ = load_checkpoint(tmp_path / "c", tables=other)
    other.methods.load_state_dict(dense["methods"])
    for kept in (tables, other):
        train(kept, steps=3, seed=40)
    assert torch.equal(logical(tables), logical(other))


@new
def test_a_budget_for_a_collection_is_kept_and_used(method: str) -> None:
    """Tables of two dims under one name get equally many rows; a table whose own numbers cost as much as it stays
    plain."""
    dims = {"user": 16, "item": 16, "place": 8, "first/user": 1}
    sizes = {"user": 5000, "item": 3000, "place": 800, "first/user": 5000}
    specs = [
        replace(spec, num_embeddings=sizes[spec.name])
        for spec in specs_of(method, *dims, options=UNDECIDED[method], dims=dims)
    ]
    alone = [
        replace(specs[0], name="alone", options=None),
        replace(specs[1], name="other", method="hash", options=None),
    ]
    plain = sum(spec.plain_nbytes for spec in (*specs, *alone))
    for budget in (0.7, 0.3):
        tables = TableCollection(share([*specs, *alone], budget=budget))
        assert 0.9 * budget * plain <= tables.nbytes("serving") <= budget * plain
        pooled = {name: rows for name, rows in tables.weights().items() if name.startswith(f"{method}/pool/")}
        per_dim: dict[int, int] = {}
        for rows in pooled.values():
            per_dim[rows.shape[1]] = per_dim.get(rows.shape[1], 0) + rows.shape[0]
        assert set(per_dim) == ({16, 8} if method != "compositional" else {16, 8, 1})
        assert len(set(per_dim.values())) == 1
        by_name = {spec.name: spec.method for spec in tables.specs}
        assert by_name["first/user"] == (method if method == "compositional" else "full")


@new
def test_budgets_too_small_are_refused_with_their_floor(method: str) -> None:
    specs = specs_of(method, options=UNDECIDED[method])
    plain = sum(spec.plain_nbytes for spec in specs)
    with pytest.raises(
        BudgetError, match=f"the rows 'pool' of 3 tables of method '{method}' .* floor is budget"
    ) as info:
        method_class(method).traits.allocation.share(specs, 40)
    floor = int(str(info.value).split("need ")[1].split(" bytes")[0].replace(",", ""))
    with pytest.raises(BudgetError):
        method_class(method).traits.allocation.share(specs, floor - 1)
    said = float(str(info.value).split("floor is budget ")[1].split(";")[0])
    assert floor <= said * plain < floor + 1, "rounded up, so that what is said will do"
    tables = TableCollection(method_class(method).traits.allocation.share(specs, floor))
    assert tables.nbytes("serving") == floor < plain


@new
def test_refusals(method: str) -> None:
    (spec,) = specs_of(method, "user", options=UNDECIDED[method])
    with pytest.raises(ConfigError, match="table 'user' shares the rows 'pool' but does not say how many; give all"):
        build_method(spec)
    given = replace(spec, options=SHARED[method])
    with pytest.raises(ConfigError, match=rf"table 'user' has both budget 0\.5 and num_rows {ROWS}; keep one of them"):
        build_method(replace(given, budget=0.5))
    with pytest.raises(ConfigError, match=f"has num_rows {ROWS} while the collection has a budget; keep one of them"):
        method_class(method).traits.allocation.share([given], 4000)
    with pytest.raises(BudgetError, match="rows and what is not shared, .* so its floor is budget"):
        build_method(replace(spec, budget=1e-3))
    other = replace(given, name="item", options=replace(given.options, num_rows=ROWS + 2))
    with pytest.raises(ConfigError, match=f"declare the physical table '{method}/pool/6/.*' with different shapes"):
        TableCollection([given, other])


def test_compositional_options_that_do_not_go_together() -> None:
    (spec,) = specs_of("compositional", "user", options=CompositionalConfig(num_rows=9))
    with pytest.raises(ConfigError, match="has num_rows 9 but no table to share them; give table="):
        build_method(spec)
    with pytest.raises(
        ConfigError, match="shares the rows 'pool', where ids are hashed, but has divisor 4; give num_rows"
    ):
        build_method(replace(spec, options=CompositionalConfig(table="pool", num_rows=9, divisor=4)))
    with pytest.raises(ConfigError, match="has num_rows 1; method 'compositional' needs 2"):
        build_method(replace(spec, options=CompositionalConfig(table="pool", num_rows=1)))


@new
def test_a_budget_of_its_own_gives_a_table_rows_of_its_own(method: str) -> None:
    (spec,) = specs_of(method, "user", options=UNDECIDED[method])
    tables = TableCollection([replace(spec, budget=0.6)])
    assert all(name.startswith("user/") for name in tables.weights())
    assert 0.6 * spec.plain_nbytes - 4 * DIM <= tables.nbytes("serving") <= 0.6 * spec.plain_nbytes


@new
def test_initial_spread_is_the_shared_tables_whatever_the_features_sizes(method: str) -> None:
    """U(-0.05, 0.05), as all rows of a shared table start."""
    dims = dict.fromkeys(SIZES, 32)
    options = replace(SHARED[method], num_rows=2000)
    specs = [replace(spec, num_embeddings=2000) for spec in specs_of(method, options=options, dims=dims)]
    tables = TableCollection(specs)
    out = tables(one_each({name: torch.arange(2000) for name in SIZES})).values().detach()
    for rows in out.split(32, dim=1):
        assert rows.std() == pytest.approx(0.05 / 3**0.5, rel=0.1)
