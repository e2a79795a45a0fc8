"""Unified Embedding: the invariants of a shared table, against brute force on Python's integers."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from embank.compression.budget.solver import share
from embank.compression.methods.unified import Unified, UnifiedConfig
from embank.compression.multiplexing.specs import unified_specs
from embank.compression.parts.multiplexed import lookup_salts
from embank.tables import (
    BudgetError,
    ConfigError,
    RowOptimizer,
    TableCollection,
    TableSpec,
    build_method,
    load_bundle,
    save_bundle,
)
from embank.tables.ids.hashing import salt64
from embank.tables.ids.token_hash import token_ids
from embank.tables.ids.token_space import NUM_TOKEN_IDS
from tests.compression.oracles import check_against_dense, spec_of, splitmix64, table_of
from tests.tables.batches import random_kjt

SIZES = {"user": 900, "item": 400, "place": 150, "gender": 3}


def row_of(value: int, *, table: str, lookup: int, num_rows: int) -> int:
    """The row of an id's lookup on Python's integers."""
    mixed = splitmix64((value ^ salt64("unified", table, lookup)) & (2**64 - 1))
    return (mixed & (2**63 - 1)) % num_rows


def built(spec: TableSpec) -> Unified:
    method = build_method(spec)
    assert isinstance(method, Unified)
    return method


def some(*names: str, rows: int = 64, width: int = 4, lookups: int = 2) -> list[TableSpec]:
    sizes = {name: SIZES.get(name, 200) for name in names}
    return unified_specs(rows=rows, width=width, lookups=dict.fromkeys(names, lookups), num_embeddings=sizes)


def one_each(ids: dict[str, Tensor]) -> KeyedJaggedTensor:
    values = torch.cat(list(ids.values()))
    return KeyedJaggedTensor(keys=list(ids), values=values, lengths=torch.ones(values.numel(), dtype=torch.int32))


def random_ids(num: int, *names: str, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randint(0, SIZES.get(name, 200), (num,), generator=generator) for name in names}


SHAPES = [(8, 4, 2), (8, 8, 1), (9, 3, 3), (6, 4, 2), (12, 4, 2), (5, 4, 3)]


@pytest.mark.parametrize(("dim", "width", "lookups"), SHAPES)
def test_rows_and_gradients_are_those_of_a_dense_graph(dim: int, width: int, lookups: int) -> None:
    options = UnifiedConfig(rows=17, width=width, lookups=lookups)
    table = table_of("unified", 150, dim, options=options)
    (method,) = table.collection.built_methods()
    assert isinstance(method, Unified)
    assert (method.projection is None) == (dim == width * lookups)
    places = torch.tensor([[row_of(x, table="t", lookup=j, num_rows=17) for j in range(lookups)] for x in range(150)])

    def dense(weights: dict[str, Tensor]) -> Tensor:
        wide = weights[f"unified/shared/{width}"][places].flatten(1)
        return wide if method.projection is None else wide @ method.projection.detach().flatten(0, 1)

    check_against_dense(table, dense)


def test_features_share_one_table_whose_bytes_count_once() -> None:
    tables = TableCollection(some("user", "item", "gender"))
    assert {name: tuple(rows.shape) for name, rows in tables.weights().items()} == {
        "unified/shared/4": (64, 4),
        "gender": (3, 8),
    }
    assert tables.nbytes("serving") == 4 * (64 * 4 + 3 * 8) + 2 * 2 * 8
    assert tables.dims == [8, 8, 8]


def test_outputs_lie_lookup_by_lookup() -> None:
    sizes = {"user": 900, "item": 400}
    tables = TableCollection(unified_specs(rows=64, width=4, lookups={"user": 12, "item": 1}, num_embeddings=sizes))
    rows = tables.weights()["unified/shared/4"]
    out = tables(one_each({"user": torch.tensor([7]), "item": torch.tensor([9])})).values()[0]
    expected = [rows[row_of(7, table="user", lookup=j, num_rows=64)] for j in range(12)]
    assert torch.equal(out, torch.cat([*expected, rows[row_of(9, table="item", lookup=0, num_rows=64)]]))


def test_adding_removing_and_reordering_features_leaves_the_rows_of_others_alone() -> None:
    names = ("user", "item", "place")
    before = {spec.name: built(spec) for spec in some(*names)}
    ids = torch.arange(150)
    for changed in (("place", "new", "user", "item"), ("item",), ("other", "place")):
        for spec in some(*changed):
            if spec.name in before:
                assert torch.equal(
                    torch.stack(built(spec).address(ids)), torch.stack(before[spec.name].address(ids))
                ), spec.name
    salts = [salt for name in names for salt in lookup_salts("unified", name, 20)]
    assert len(set(salts)) == 60


def test_a_renamed_feature_keeps_its_rows_by_its_salt_name() -> None:
    (spec,) = some("user")
    renamed = replace(spec, name="member", feature_names=["member"])
    kept = replace(renamed, options=replace(spec.options, salt_name="user"))
    ids = torch.arange(150)
    addresses = [torch.stack(built(s).address(ids)) for s in (spec, renamed, kept)]
    assert torch.equal(addresses[0], addresses[2])
    assert not torch.equal(addresses[0], addresses[1])


def test_rows_are_even_and_lookups_independent() -> None:
    num, rows = 200_000, 1000
    (spec,) = unified_specs(rows=rows, width=4, lookups={"user": 3})
    address = built(spec).address(torch.arange(num))
    for row in address:
        counts = row.bincount(minlength=rows).double()
        chi_square = float(((counts - num / rows).square() / (num / rows)).sum())
        assert abs(chi_square - 999) < 5 * (2 * 999) ** 0.5
    std = (num / rows) ** 0.5
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs(int((address[a] == address[b]).sum()) - num / rows) < 3 * std
        joint = (address[a] % 20 * 20 + address[b] % 20).bincount(minlength=400).double()
        assert abs(float(((joint - num / 400).square() / (num / 400)).sum()) - 399) < 5 * (2 * 399) ** 0.5


def test_the_same_value_in_two_features_collides_at_the_rate_of_chance() -> None:
    first, second = (built(spec) for spec in unified_specs(rows=500, width=4, lookups={"user": 1, "item": 1}))
    ids = torch.arange(100_000)
    agree = int((first.address(ids)[0] == second.address(ids)[0]).sum())
    assert abs(agree - 200) < 3 * 200**0.5


def gradient_of(specs: list[TableSpec], ids: dict[str, Tensor], readers: dict[str, Tensor], labels: Tensor) -> Tensor:
    """The gradient of the shared rows under the summed logistic loss of sum_f <reader_f, row of f>, as the rows' SGD
    step shows it."""
    tables = TableCollection(specs, backend="torch", optimizer=RowOptimizer(name="sgd", lr=1.0))
    before = tables.weights()["unified/shared/4"].clone()
    logits = tables(one_each(ids)).values() @ torch.cat([readers[name] for name in ids])
    torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum").backward()
    tables.update_rows()
    return before - tables.weights()["unified/shared/4"]


def test_a_rows_gradient_is_the_true_one_and_those_of_collisions_within_and_between_features() -> None:
    """The paper's equations 3 to 5: theta_f sum r for the value itself, its row mates of the feature, and those of the
    other."""
    specs = some("user", "item", rows=40, lookups=1)
    ids = random_ids(600, "user", "item")
    generator = torch.Generator().manual_seed(1)
    readers = {name: torch.randn(4, generator=generator) for name in ids}
    labels = torch.randint(0, 2, (600,), generator=generator).float()
    moved = gradient_of(specs, ids, readers, labels)
    rows = TableCollection(specs).weights()["unified/shared/4"]
    place = {
        name: [row_of(x, table=name, lookup=0, num_rows=40) for x in range(SIZES[name])] for name in ("user", "item")
    }
    logits = sum(rows[torch.tensor(place[name])[ids[name]]] @ readers[name] for name in ids)
    residuals = (torch.sigmoid(logits) - labels).tolist()
    seen = {"true": 0, "intra": 0, "inter": 0}
    for user in ids["user"].unique().tolist():
        row = place["user"][user]
        true, intra, inter = torch.zeros(4), torch.zeros(4), torch.zeros(4)
        for u, v, r in zip(ids["user"].tolist(), ids["item"].tolist(), residuals, strict=True):
            if u == user:
                true += r * readers["user"]
                seen["true"] += 1
            elif place["user"][u] == row:
                intra += r * readers["user"]
                seen["intra"] += 1
            if place["item"][v] == row:
                inter += r * readers["item"]
                seen["inter"] += 1
        torch.testing.assert_close(moved[row], true + intra + inter, rtol=1e-4, atol=1e-5)
    assert min(seen.values()) > 100


def test_orthogonal_readers_do_not_see_the_others_updates() -> None:
    specs = some("user", "item", rows=20, lookups=1)
    user, other = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0.0, 1, 0, 0])
    ids = random_ids(300, "user", "item")
    labels = torch.ones(300)
    mine = {"user": ids["user"], "item": ids["item"]}
    moves = {}
    for name, reader in (("orthogonal", other), ("parallel", user)):
        both = gradient_of(specs, mine, {"user": user, "item": reader}, labels)
        rows = TableCollection(specs).weights()["unified/shared/4"]
        places = {f: torch.tensor([row_of(int(x), table=f, lookup=0, num_rows=20) for x in ids[f]]) for f in ids}
        residual = torch.sigmoid(rows[places["user"]] @ user + rows[places["item"]] @ reader) - 1
        alone = torch.zeros(20, 4).index_add(0, places["user"], residual[:, None] * user)
        moves[name] = float(((both - alone) @ user).abs().max())
    assert moves["orthogonal"] < 1e-4
    assert moves["parallel"] > 1


def test_values_that_collide_in_all_lookups_are_equal_and_others_are_not() -> None:
    tables = TableCollection(unified_specs(rows=12, width=4, lookups={"user": 2}, num_embeddings={"user": 900}))
    out = tables(one_each({"user": torch.arange(900)})).values().detach()
    pairs = torch.stack(next(iter(tables.built_methods())).address(torch.arange(900)), dim=1)
    same = (pairs[:, None] == pairs[None]).all(2)
    once = (pairs[:, None] == pairs[None]).sum(2) == 1
    equal = (out[:, None] == out[None]).all(2)
    assert torch.equal(same, equal)
    assert once.sum() > 1000
    assert not equal[once].any()


def test_an_empty_bag_gives_zeros_and_moves_nothing() -> None:
    tables = TableCollection(some("user"), backend="torch", optimizer=RowOptimizer(name="sgd", lr=1.0))
    before = tables.weights()["unified/shared/4"].clone()
    empty = KeyedJaggedTensor(
        keys=["user"], values=torch.empty(0, dtype=torch.int64), lengths=torch.zeros(3, dtype=torch.int32)
    )
    out = tables(empty).values()
    assert torch.equal(out, torch.zeros(3, 8))
    out.sum().backward()
    tables.update_rows()
    assert torch.equal(before, tables.weights()["unified/shared/4"])


@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
@pytest.mark.parametrize("projected", [False, True])
def test_missing_ids_among_others_give_zeros_and_no_gradient(backend: str, projected: bool) -> None:
    """Bags without an id between bags with one: rows move as if they were not there, those of the absent ids' hashes
    not at all."""
    size = {"user": SIZES["user"]}
    specs = unified_specs(
        rows=64, width=4, lookups={"user": 2}, num_embeddings=size, embedding_dim=6 if projected else None
    )
    ids = torch.tensor([5, 700, 5])
    moved = []
    for lengths in ([0, 1, 0, 1, 1, 0], [1, 1, 1]):
        tables = TableCollection(specs, backend=backend, optimizer=RowOptimizer(name="sgd", lr=1.0))  # type: ignore[arg-type]
        kjt = KeyedJaggedTensor(keys=["user"], values=ids, lengths=torch.tensor(lengths, dtype=torch.int32))
        out = tables(kjt).values()
        present = torch.tensor(lengths) > 0
        assert torch.equal(out[~present], torch.zeros(int((~present).sum()), out.shape[1]))
        out.square().sum().backward()
        tables.update_rows()
        moved.append((tables.weights()["unified/shared/4"].clone(), out[present].detach()))
    for first, second in zip(*moved, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-7)
    places = {row_of(x, table="user", lookup=j, num_rows=64) for x in (5, 700) for j in range(2)}
    initial = TableCollection(specs).weights()["unified/shared/4"]
    changed = (moved[0][0] != initial).any(1).nonzero().flatten().tolist()
    assert set(changed) == places


@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_bags_of_several_features_are_pooled_rows_projected_or_not(backend: str, pooling: str) -> None:
    """Rows are pooled in the kernel, before projections; values and gradients are those of pooling after them."""
    sizes = {"user": SIZES["user"], "item": SIZES["item"]}
    for dims in ({"user": 8, "item": 8}, {"user": 8, "item": 6}):
        specs = [
            TableSpec(
                name=name,
                num_embeddings=sizes[name],
                embedding_dim=dim,
                feature_names=[name],
                pooling=pooling,  # type: ignore[arg-type]
                method="unified",
                options=UnifiedConfig(rows=64, width=4, lookups=2),
            )
            for name, dim in dims.items()
        ]
        tables = TableCollection(specs, backend=backend, optimizer=RowOptimizer(name="sgd", lr=1.0))  # type: ignore[arg-type]
        kjt = random_kjt(sizes, batch_size=20, seed=1)
        leaf = tables.weights()["unified/shared/4"].clone().requires_grad_()
        columns = []
        for name, method in zip(dims, tables.built_methods(), strict=True):
            bags = kjt[name]
            rows = method.combine(tuple(leaf[place] for place in method.address(bags.values())), None)
            parts = [rows[a:b].sum(0) for a, b in pairwise(bags.offsets().tolist())]
            lengths = bags.lengths().clamp(min=1)[:, None] if pooling == "mean" else 1
            columns.append(torch.stack(parts) / lengths)
        expected = torch.cat(columns, dim=1)
        out = tables(kjt).values()
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
        direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
        (expected * direction).sum().backward()
        (out * direction).sum().backward()
        tables.update_rows()
        assert leaf.grad is not None
        moved = leaf.detach() - tables.weights()["unified/shared/4"]
        torch.testing.assert_close(moved, leaf.grad, rtol=1e-4, atol=1e-5)


def test_output_columns_follow_the_specs_and_not_what_else_is_there() -> None:
    """A feature's columns hold the same values wherever its spec stands and whoever else shares the table."""
    ids = random_ids(50, "user", "item", "place")
    seen: dict[str, Tensor] = {}
    for order in (("user", "item", "place"), ("place", "user"), ("item",), ("item", "place", "user")):
        out = TableCollection(some(*order))(one_each({name: ids[name] for name in order}))
        assert out.keys() == list(order)
        for name, columns in out.to_dict().items():
            assert torch.equal(seen.setdefault(name, columns.detach()), columns.detach()), name


@pytest.mark.slow
def test_a_bundle_gives_the_same_bits_in_a_fresh_process_with_another_seed(tmp_path: Path) -> None:
    specs = unified_specs(rows=64, width=4, lookups={"user": 2, "item": 3}, embedding_dim=8)
    tables = TableCollection(specs, seed=3)
    tokens = {"user": ["anna", "", None], "item": [b"\xff", 7, -1]}
    ids = {name: torch.from_numpy(token_ids(values)) for name, values in tokens.items()}
    expected = tables.eval()(one_each(ids)).values().tolist()
    save_bundle(tmp_path / "b", tables)
    code = f"""
import json, torch
from torchrec import KeyedJaggedTensor
from embank.tables import load_bundle
from embank.tables.ids.token_hash import token_ids
torch.manual_seed(99)
tables = load_bundle({str(tmp_path / "b")!r})
ids = torch.cat([torch.from_numpy(token_ids(values)) for values in {tokens!r}.values()])
kjt = KeyedJaggedTensor(keys=["user", "item"], values=ids, lengths=torch.ones(6, dtype=torch.int32))
print(json.dumps(tables(kjt).values().tolist()))
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout.splitlines()[-1]) == expected
    loaded = load_bundle(tmp_path / "b")
    assert loaded.nbytes() == tables.nbytes("serving")


def test_a_budget_for_a_collection_is_kept_and_used() -> None:
    specs = [
        TableSpec(
            name=name, num_embeddings=num, embedding_dim=dim, feature_names=[name], method="unified", options=options
        )
        for name, num, dim, options in (
            ("user", 5000, 16, None),
            ("item", 3000, 16, UnifiedConfig(lookups=4, width=8)),
            ("tag", 800, 16, UnifiedConfig(placement="private")),
            ("gender", 3, 16, None),
            ("first/user", 5000, 1, None),
        )
    ]
    plain = sum(spec.plain_nbytes for spec in specs)
    for budget in (0.9, 0.3, 0.05):
        shared = share(specs, budget=budget)
        tables = TableCollection(shared)
        assert budget * plain - 200 <= tables.nbytes("serving") <= budget * plain
        assert sorted(tables.weights()) == ["gender", "tag", "unified/shared/1", "unified/shared/8"]
        assert tables.weights()["unified/shared/1"].shape[0] == tables.weights()["unified/shared/8"].shape[0]
    least = Unified.traits.allocation.share(specs, 2300)
    assert {spec.options.placement for spec in least} == {"shared", "private"}, "too little for an exact table"
    with pytest.raises(BudgetError, match=r"5 tables of method 'unified' need 2,204 bytes .* so their floor is budget"):
        Unified.traits.allocation.share(specs, 2203)


def test_placements() -> None:
    def placement(num: int = 5000, budget: float | None = None, **options: object) -> str:
        return built(spec_of("unified", num, 8, budget=budget, options=UnifiedConfig(**options))).placement  # type: ignore[arg-type]

    assert placement(99) == "exact"
    assert placement(99, budget=0.9) == "private"
    assert placement(100) == placement() == "private"
    assert placement(rows=50) == "shared"
    assert placement(rows=50, placement="private") == "private"
    assert placement(placement="exact") == "exact"
    assert placement(200, rows=50, exact_below=201) == "exact"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"placement": "shared"}, "table 't' shares table 'shared' but does not say its rows; give all"),
        ({"rows": 0}, "has rows 0; it must be at least 1"),
        ({"lookups": 0}, "has lookups 0; it must be at least 1"),
        ({"lookups": 3}, "has dim 8, which 3 lookups do not divide; use another number, or give the width"),
        ({"width": 3}, "has dim 8, which is no multiple of its width 3; use another width, or give the lookups"),
    ],
)
def test_refusals(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built(spec_of("unified", 5000, 8, options=UnifiedConfig(**options)))  # type: ignore[arg-type]


def test_refusals_of_budgets() -> None:
    with pytest.raises(ConfigError, match=r"has both budget 0\.5 and rows 9; keep one of them"):
        built(spec_of("unified", 5000, 8, budget=0.5, options=UnifiedConfig(rows=9)))
    with pytest.raises(ConfigError, match=r"has the placement 'exact' and budget 0\.5; keep one of them"):
        built(spec_of("unified", 5000, 8, budget=0.5, options=UnifiedConfig(placement="exact")))
    with pytest.raises(ConfigError, match="has rows 9 while the collection has a budget; keep one of them"):
        Unified.traits.allocation.share([spec_of("unified", 5000, 8, options=UnifiedConfig(rows=9))], 1000)
    for options in (UnifiedConfig(), UnifiedConfig(placement="exact")):
        with pytest.raises(ConfigError, match=r"table 't' has no vocabulary .* give the number of rows"):
            built(spec_of("unified", NUM_TOKEN_IDS, 8, options=options))
    with pytest.raises(BudgetError, match="needs a row of 4, its salts and its projection, 32 bytes, so its floor is"):
        built(spec_of("unified", 5000, 8, budget=1e-4))
    first, second = some("user", "item")
    with pytest.raises(ConfigError, match="two methods declare the physical table 'unified/shared/4' with different"):
        TableCollection([first, replace(second, options=replace(second.options, rows=65))])


def test_refusals_of_the_one_line() -> None:
    with pytest.raises(ConfigError, match="'exact' names feature 'usr', which has no lookups; did you mean 'user'"):
        unified_specs(rows=9, width=4, lookups={"user": 1}, exact=["usr"])
    with pytest.raises(ConfigError, match="feature 'user' is both exact and private; keep one of them"):
        unified_specs(rows=9, width=4, lookups={"user": 1}, exact=["user"], private={"user": 5})


def test_features_without_a_vocabulary_train_from_tokens() -> None:
    """Two values of a feature are told apart although nothing ever listed them."""
    specs = unified_specs(rows=1000, width=4, lookups={"word": 2}, private={"word": 100})
    tables = TableCollection(specs, optimizer=RowOptimizer(name="adagrad", lr=0.1))
    ids = torch.from_numpy(token_ids(["yes", "no"]))
    for _ in range(50):
        out = tables(one_each({"word": ids})).values().sum(1)
        (out - torch.tensor([1.0, -1.0])).square().sum().backward()
        tables.update_rows()
    assert (out - torch.tensor([1.0, -1.0])).abs().max() < 0.1
    assert list(tables.weights()) == ["word"]
