"""What every registered method says to input that it can't use, and what it does at the edges of what it can: one id,
2**31 + 1 ids, dims 1, 3, 2048 and 2501, packs of another version."""

import copy
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from embank.compression import METHODS, build_table
from embank.compression.budget.floors import share_text
from embank.tables import (
    BudgetError,
    CheckpointError,
    ConfigError,
    DataError,
    PackedTable,
    RowOptimizer,
    TableCollection,
    TableSpec,
    build_method,
    load_bundle,
    method_class,
    pack_table,
    save_bundle,
)
from embank.tables.collections.stages import finished, settle
from embank.tables.storage.checkpoint import save_checkpoint, verify_checkpoint
from tests.contracts.specs import BATCH_DEPENDENT
from tests.tables.bundles import rewrite

pytestmark = pytest.mark.slow

NAMES = sorted(name for name in METHODS if not name.startswith("test_"))  # other tests register methods of theirs
TAKES_BUDGET = [name for name in NAMES if method_class(name).traits.allocation.takes_budget]
MANY = 2**31 + 1
SHARED = {"hash", "unified", "robe", "dhe"}
"""Methods that hash ids, so that two may agree in all that they read."""
SHARED_UNDER_A_BUDGET = {"adapt", "frequency_cut"}
"""Methods in which rare ids read the same row where there are fewer rows than ids."""


def spec(method: str, *, num: int = 300, dim: int = 8, **changes: Any) -> TableSpec:
    return TableSpec(name="t", num_embeddings=num, embedding_dim=dim, feature_names=["a"], method=method, **changes)


def look_up(tables: TableCollection, ids: Tensor) -> Tensor:
    features = KeyedJaggedTensor(keys=["a"], values=ids, lengths=torch.ones(ids.numel(), dtype=torch.int32))
    values: Tensor = tables(features).values()
    return values


def one_step(tables: TableCollection, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs in evaluation before and after a training step towards 1, dense parameters included."""
    outputs = []
    dense = torch.optim.SGD(tables.dense_parameters(), lr=0.01) if tables.dense_parameters() else None
    for _ in range(2):
        with torch.no_grad():
            outputs.append(look_up(tables.eval(), ids))
        loss = (look_up(tables.train(), ids) - 1).square().mean()
        extra = tables.extra_loss()
        (loss if extra is None else loss + extra).backward()
        tables.update_rows()
        if dense:
            dense.step()
    return outputs[0], outputs[1]


@pytest.mark.parametrize("budget", [0.0, -0.5, 1.5, math.nan, math.inf])
@pytest.mark.parametrize("method", NAMES)
def test_budgets_that_are_no_share(method: str, budget: float) -> None:
    with pytest.raises(ConfigError, match=rf"table 't' has budget {budget}; a budget is .* lies in \(0, 1\]"):
        build_method(spec(method, budget=budget))


@pytest.mark.parametrize(("num", "dim"), [(300, 8), (7, 4), (5000, 5), (100_003, 16)])
@pytest.mark.parametrize("method", TAKES_BUDGET)
def test_below_the_floor(method: str, num: int, dim: int) -> None:
    """The message has table, bytes, floor, value and cure; at the floor that it states the table builds and keeps
    it."""
    tiny = spec(method, num=num, dim=dim, budget=1e-9)
    with pytest.raises(
        BudgetError, match=r"^table 't': method '.*' needs .*[\d,]+ bytes.* the budget is 1e-09\. "
    ) as caught:
        build_method(tiny)
    message = str(caught.value)
    stated = re.search(
        r"so its floor is budget ([^;,]+); .* Raise the budget, or keep the table plain with method 'full'$", message
    )
    if stated is None:
        assert re.search(
            r"so its floor is budget \S+, more than the plain table; .* Keep the table plain with method 'full'$",
            message,
        )
        with pytest.raises(BudgetError, match="more than the plain table; the budget is 1.0"):
            build_method(replace(tiny, budget=1.0))
        return
    floor = float(stated[1])
    built = build_method(replace(tiny, budget=floor))
    with pytest.raises(BudgetError):
        build_method(replace(tiny, budget=floor * (1 - 1e-5)))
    if num < 10_000:
        packed = build_table(method=method, num_embeddings=num, embedding_dim=dim, budget=floor)
        assert packed.nbytes("serving") <= floor * 4 * num * dim
    assert built.spec.budget == floor


def test_a_stated_share_holds_the_bytes() -> None:
    for plain in (7, 300, 4096, 40_000, 10**9 + 7, 2**63 * 64):
        for nbytes in {1, 2, plain // 3, plain // 7 + 1, plain - 1, plain} - {0}:
            share = float(share_text(nbytes, plain))
            assert nbytes <= share * plain <= nbytes * (1 + 2e-5)


def test_full_states_its_floor() -> None:
    message = (
        r"table 't': method 'full' keeps every row, its floor is budget 1\.0 \(9,600 bytes\); the budget is "
        r"0\.5\. Raise the budget, or use"
    )
    with pytest.raises(BudgetError, match=message):
        build_method(spec("full", budget=0.5))
    build_method(spec("full", budget=1.0))


@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
@pytest.mark.parametrize("method", NAMES)
def test_a_table_of_one_id(method: str, backend: Any) -> None:
    tables = finished(
        TableCollection([spec(method, num=1)], backend=backend, optimizer=RowOptimizer(name="sgd", lr=0.1))
    )
    before, after = one_step(tables, torch.zeros(5, dtype=torch.int64))
    assert before.shape == (5, 8)
    assert torch.equal(before[0], before[1])
    assert not torch.equal(before, after)
    if method not in BATCH_DEPENDENT:  # equal ids have no variance to normalise by
        assert (after - 1).square().mean() < (before - 1).square().mean()
    settle(tables)
    (built,) = tables.built_methods()
    packed = pack_table(built, tables.weights())
    assert packed.lookup(torch.zeros(2, dtype=torch.int64)).shape == (2, 8)
    with pytest.raises(IndexError, match=r"feature 'a' has id 1, outside table 't' of 1 ids \(0 \.\. 0\)"):
        look_up(tables, torch.tensor([0, 1]))


@pytest.mark.parametrize("budget", [None, 0.9, 0.5])
@pytest.mark.parametrize("method", NAMES)
def test_addresses_beyond_31_bits(method: str, budget: float | None) -> None:
    """No row is allocated. Rows stay inside their tables; where ids keep apart, no two have all in common."""
    if budget is not None and method not in TAKES_BUDGET:
        budget = 1.0
    if budget is not None and method == "dhe":
        budget = 1e-5  # its network is as large as the budget says, whatever the number of ids
    built = build_method(spec(method, num=MANY, dim=16, budget=budget))
    held = sum(t.numel() * t.element_size() for t in (*built.parameters(), *built.buffers()))
    assert held < 32 * 2**20, "a method must not hold anything per id before its rows are made"
    ids_N = torch.tensor(
        [0, 1, 2, 2**16, 2**24 + 1, 2**31 - 2, 2**31 - 1, 2**31, *range(MANY - 200, MANY - 1), MANY - 1]
    ).unique()
    addressed = built.address(ids_N)
    for table, rows_N in zip(built.physical, addressed, strict=True):
        assert rows_N.dtype == torch.int64
        assert int(rows_N.min()) >= 0
        assert int(rows_N.max()) < table.num_embeddings
    side = built.side(ids_N)
    if side is not None:
        assert side.shape[0] == ids_N.numel()
    if method not in SHARED and (budget is None or method not in SHARED_UNDER_A_BUDGET):
        assert torch.stack(addressed, dim=1).unique(dim=0).shape[0] == ids_N.numel()


@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
@pytest.mark.parametrize("dim", [1, 3, 2048, 2501])
@pytest.mark.parametrize("method", NAMES)
def test_dims_at_the_edges(method: str, dim: int, backend: Any) -> None:
    tables = finished(
        TableCollection(
            [spec(method, dim=dim, num=40)], backend=backend, optimizer=RowOptimizer(name="adagrad", lr=0.05)
        )
    )
    ids = torch.tensor([0, 39, 7, 7])
    before, after = one_step(tables, ids)
    assert before.shape == after.shape == (4, dim)
    assert after.isfinite().all()
    assert not torch.equal(before, after)
    (built,) = tables.built_methods()
    settle(tables)
    assert pack_table(built, tables.weights()).lookup(ids).shape == (4, dim)


@pytest.mark.parametrize("method", NAMES)
def test_counts_of_another_length(method: str) -> None:
    with pytest.raises(ConfigError, match=r"table 't' has counts of shape \(299,\) for 300 ids; give one per id"):
        build_method(spec(method, counts=torch.ones(299, dtype=torch.int64)))


@pytest.mark.parametrize("num", [0, -1, 2**63 + 1])
def test_numbers_of_ids_that_no_table_has(num: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"table 't' has num_embeddings {num}; .*(at least 1|use at most 9223372036854775808)"
    ):
        spec("hash", num=num)


@pytest.mark.parametrize("method", NAMES)
def test_a_method_that_is_misspelt(method: str) -> None:
    with pytest.raises(ConfigError, match=rf"table 't': there is no method '{method}e'.*'{method}'"):
        build_method(spec(method + "e"))


@pytest.mark.parametrize("method", NAMES)
def test_options_of_another_method(method: str) -> None:
    other = next(name for name in NAMES if method_class(name).Config is not method_class(method).Config)
    message = rf"table 't' has method '{method}' but options of type \w+; give embank\.\S+"
    with pytest.raises(ConfigError, match=message):
        build_method(spec(method, options=method_class(other).Config()))


@pytest.mark.parametrize("method", NAMES)
class TestPacks:
    def test_facts_of_another_version(self, method: str) -> None:
        tables = finished(TableCollection([spec(method)], backend="torch"))
        settle(tables)
        (built,) = tables.built_methods()
        packed = pack_table(built, tables.weights())
        manifest, tensors = packed.manifest(), packed.state_dict()
        ids = torch.arange(300)
        assert torch.equal(PackedTable.restore(method, manifest, tensors).lookup(ids), packed.lookup(ids))
        message = r"a saved \w+ has the facts .*; this embank expects .* written by another version: export it again"
        parts = [("facts", manifest["facts"]), *(("matrices", m["facts"]) for m in manifest["matrices"])]
        for number, (part, facts) in enumerate(parts):
            for wrong in ({**facts, "another": 1}, *({k: v for k, v in facts.items() if k != key} for key in facts)):
                changed = copy.deepcopy(manifest)
                if part == "facts":
                    changed["facts"] = wrong
                else:
                    changed["matrices"][number - 1]["facts"] = wrong
                with pytest.raises(CheckpointError, match=message):
                    PackedTable.restore(method, changed, tensors)
        with pytest.raises(CheckpointError, match="what it says of its parts has the keys"):
            PackedTable.restore(method, {**manifest, "another": 1}, tensors)

    def test_a_bundle_names_the_table(self, method: str, tmp_path: Path) -> None:
        save_bundle(tmp_path / "b", finished(TableCollection([spec(method)], backend="torch")))
        (entry,) = json.loads((tmp_path / "b" / "manifest.json").read_text())["tables"]
        served = {**entry["served"], "facts": {**entry["served"]["facts"], "another": 1}}
        rewrite(tmp_path / "b", tables=[{**entry, "served": served}])
        with pytest.raises(
            CheckpointError,
            match=r"table 't' of bundle '.*b': a saved \w+ has the facts .*'another'.*; this embank expects",
        ):
            load_bundle(tmp_path / "b")

    def test_bundles_of_another_hash(self, method: str, tmp_path: Path) -> None:
        save_bundle(tmp_path / "b", finished(TableCollection([spec(method)], backend="torch")))
        for changes, message in (
            (
                {"hash_version": 2},
                r"was addressed by hash version 2; embank \S+ has version 1, which gives ids other rows\. Load it with",
            ),
            (
                {"format_version": 9},
                r"has format version 9; embank \S+ reads versions 1 and 2\. Load it with the embank that wrote it",
            ),
        ):
            rewrite(tmp_path / "b", **changes)
            with pytest.raises(CheckpointError, match=message):
                load_bundle(tmp_path / "b")
            rewrite(tmp_path / "b", hash_version=1, format_version=2)

    def test_checkpoints_of_another_hash(self, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save_checkpoint(tmp_path / "c", tables=TableCollection([spec(method)], backend="torch"), dense={}, meta={})
        assert verify_checkpoint(tmp_path / "c")["identity"]["hash_version"] == 1
        monkeypatch.setattr("embank.tables.collections.identity.HASH_VERSION", 2)
        with pytest.raises(
            CheckpointError, match=r"addressed by hash version 1; this embank has version 2, which gives ids other rows"
        ):
            verify_checkpoint(tmp_path / "c")


def test_one_table_takes_ids_one_after_the_other() -> None:
    table = build_table(method="full", num_embeddings=5, embedding_dim=4)
    for looked_up in (table, table.pack()):
        with pytest.raises(DataError, match=r"the ids have shape \(1, 2\); give a tensor \[N\] of integers"):
            looked_up.lookup(torch.tensor([[1, 2]]))
        with pytest.raises(DataError, match=r"the ids are a list; give a tensor \[N\] of integers"):
            looked_up.lookup([1, 2])
