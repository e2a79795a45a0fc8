"""The contract of every registered method. A new method enters by being registered; one that is not here does not
exist."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec import KeyedJaggedTensor

from embank.compression import METHODS, build_table
from embank.tables import (
    BudgetError,
    ConfigError,
    DataError,
    PackedTable,
    RowOptimizer,
    RowTier,
    SequenceCollection,
    TableCollection,
    TableSpec,
    method_class,
)
from embank.tables.collections.stages import advance, after_step, finished, rows_held, search_parameters, settle
from embank.tables.storage.checkpoint import load_checkpoint, save_checkpoint
from tests.contracts.specs import BATCH_DEPENDENT, BUDGET, COUNTS, DIM, EXACT_FLOOR, NAMES, NUM, spec
from tests.tables.batches import random_kjt


def collection(table: TableSpec, **options: Any) -> TableCollection:
    """One table in the last stage of its method."""
    return finished(TableCollection([table], **options))


def logical_table(tables: TableCollection, feature: str = "a") -> torch.Tensor:
    """Every logical row [N, D], by looking each id up on its own, as an evaluation does."""
    ids = torch.arange(NUM)
    kjt = KeyedJaggedTensor(keys=[feature], values=ids, lengths=torch.ones(NUM, dtype=torch.int32))
    tables.eval()
    with torch.no_grad():
        values = tables(kjt).values()
    tables.train()
    return values


def snapshot(tables: TableCollection) -> dict[str, torch.Tensor]:
    """Everything that a collection holds: rows, row-optimizer state, dense parameters, buffers."""
    states = {f"{t}/{key}": value for t, state in tables.optimizer_state().items() for key, value in state.items()}
    held = {**tables.weights(), **states, **tables.methods.state_dict()}
    return {name: value.detach().clone() for name, value in held.items()}


def assert_same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert before.keys() == after.keys()
    assert not changed, f"these have changed: {changed}"


def held_nbytes(holder: object) -> int:
    """Bytes of the memory behind every tensor that an object holds, by whatever attribute, list or dict; each piece of
    memory once."""
    memory: dict[int, int] = {}
    seen: set[int] = set()
    waiting = [holder]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            memory[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple | set):
            waiting += value
        elif hasattr(value, "__dict__") and not isinstance(value, type):
            waiting += vars(value).values()
    return sum(memory.values())


def train(tables: TableCollection, *, steps: int = 10, seed: int = 0) -> None:
    """Steps on random bags towards a constant, dense parameters and extra losses included."""
    torch.manual_seed(seed)
    dense = torch.optim.SGD(tables.dense_parameters(), lr=0.05) if tables.dense_parameters() else None
    for step in range(steps):
        kjt = random_kjt({"a": NUM}, batch_size=16, seed=seed + step)
        if dense:
            dense.zero_grad()
        loss = (tables(kjt).values() - 1).square().sum(1).mean()
        extra = tables.extra_loss()
        (loss if extra is None else loss + extra).backward()
        tables.update_rows()
        if dense:
            torch.nn.utils.clip_grad_norm_(tables.dense_parameters(), 1.0)  # the loss is a sum over the batch
            dense.step()
        after_step(tables, step=step + 1, num_steps=steps)


@pytest.mark.parametrize("method", NAMES)
class TestMethod:
    def test_bags_are_sums_and_means_of_logical_rows(self, method: str) -> None:
        for pooling in ("sum", "mean"):
            tables = collection(spec(method, pooling=pooling))
            rows = logical_table(tables)
            kjt = random_kjt({"a": NUM}, batch_size=20, seed=1)
            offsets = kjt.offsets().tolist()
            bags = [rows[kjt.values()[a:b]] for a, b in zip(offsets, offsets[1:], strict=False)]
            expected = torch.stack([b.sum(0) / (max(1, len(b)) if pooling == "mean" else 1) for b in bags])
            torch.testing.assert_close(tables.eval()(kjt).values().detach(), expected, rtol=1e-5, atol=1e-6)

    def test_backends_agree_in_value_and_after_ten_steps(self, method: str) -> None:
        for optimizer in ("sgd", "adagrad", "rowwise_adagrad"):
            rows = RowOptimizer(name=optimizer, lr=0.05)
            pair = [collection(spec(method), backend=b, optimizer=rows) for b in ("fbgemm", "torch")]
            torch.testing.assert_close(logical_table(pair[0]), logical_table(pair[1]))
            for tables in pair:
                train(tables)
            fast, slow = (logical_table(tables) for tables in pair)
            flipped = torch.zeros_like(fast, dtype=torch.bool)
            if any(table.projection for built in pair[0].built_methods() for table in built.physical):
                # Rounding jumps: where updates differ in their last bit, an element may land on the next point of an
                # 8-bit grid.
                flipped = (fast - slow).abs() <= slow.abs().amax(dim=1, keepdim=True) / 60
                flipped &= ~torch.isclose(fast, slow, rtol=1e-4, atol=1e-5)
                assert flipped.double().mean() < 1e-3
            torch.testing.assert_close(fast[~flipped], slow[~flipped], rtol=1e-4, atol=1e-5)

    def test_disk_equals_memory(self, method: str, tmp_path: Path) -> None:
        pair = [collection(spec(method), tier=t) for t in (RowTier(), RowTier(name="disk", directory=tmp_path))]
        for tables in pair:
            train(tables)
        assert torch.equal(logical_table(pair[0]), logical_table(pair[1]))

    def test_gradients_of_duplicate_ids_add_up(self, method: str) -> None:
        """One SGD step on a bag with an id twice moves rows and dense parameters as one step on the doubled output."""
        ids, ones = torch.tensor([4, 4]), torch.tensor([2], dtype=torch.int32)
        moved = []
        for twice in (True, False):
            tables = collection(spec(method), backend="torch", optimizer=RowOptimizer(name="sgd", lr=0.1))
            tables.train(method not in BATCH_DEPENDENT)
            values = ids if twice else ids[:1]
            out = tables(KeyedJaggedTensor(keys=["a"], values=values, lengths=ones if twice else ones // 2)).values()
            (out if twice else 2 * out).sum().backward()
            tables.update_rows()
            gradients = {n: p.grad for n, p in tables.methods.named_parameters() if p.grad is not None}
            before = collection(spec(method), backend="torch").weights()
            assert gradients or any(not torch.equal(rows, before[name]) for name, rows in tables.weights().items())
            moved.append({**tables.weights(), **gradients})
        assert moved[0].keys() == moved[1].keys()
        for name in moved[0]:
            torch.testing.assert_close(moved[0][name], moved[1][name])

    def test_a_step_lowers_the_loss(self, method: str) -> None:
        """Ten steps towards a constant bring the rows of hot ids closer to it."""
        tables = collection(spec(method), optimizer=RowOptimizer(name="adagrad", lr=0.05))
        before = (logical_table(tables)[:3] - 1).square().mean()
        train(tables)
        assert (logical_table(tables)[:3] - 1).square().mean() < 0.95 * before

    def test_seed_and_name_decide_initial_values(self, method: str) -> None:
        """And nothing else: not what stands before the table."""
        first, again, other_seed = (logical_table(collection(spec(method), seed=s)) for s in (3, 3, 4))
        assert torch.equal(first, again)
        assert not torch.equal(first, other_seed)
        assert not torch.equal(first, logical_table(collection(spec(method, name="u"), seed=3)))
        pair = finished(TableCollection([spec("hash", name="u", features=("b",)), spec(method)], seed=3))
        ids = torch.arange(NUM)
        lengths = torch.ones(2, NUM, dtype=torch.int32)
        rows = pair.eval()(KeyedJaggedTensor(keys=["b", "a"], values=torch.cat([ids, ids]), lengths=lengths.view(-1)))
        torch.testing.assert_close(rows["a"].detach(), first)

    def test_initial_logical_rows_have_the_spread_of_the_plain_table(self, method: str) -> None:
        """Without a budget, and with one for all entries that it leaves."""
        for plain in (True, False):
            rows = logical_table(collection(spec(method, plain=plain)))
            kept = rows if plain else rows[rows != 0]
            assert 0.6 < kept.std() / (NUM**-0.5 / 3**0.5) < 1.8

    def test_every_stage_trains_and_the_last_one_keeps_the_budget(self, method: str) -> None:
        tables = TableCollection([spec(method)], optimizer=RowOptimizer(lr=0.05))
        for stage in range(len(method_class(method).traits.schedule.stages)):
            if stage:
                tables = advance(tables)
            before = logical_table(tables)
            train(tables, steps=3)
            assert not torch.equal(before, logical_table(tables)), f"stage {stage} trains nothing"
        settle(tables)
        settled = logical_table(tables)
        settle(tables)
        assert torch.equal(settled, logical_table(tables)), "settling twice must change nothing more"
        if method not in EXACT_FLOOR:
            assert tables.nbytes("serving") <= BUDGET * 4 * NUM * DIM

    def test_checkpoint_round_trip_is_exact(self, method: str, tmp_path: Path) -> None:
        tables = collection(spec(method), seed=1)
        train(tables)
        save_checkpoint(tmp_path / "c", tables=tables, dense={"methods": tables.methods.state_dict()}, meta={})
        other = TableCollection(tables.specs, seed=2)
        dense, _ = load_checkpoint(tmp_path / "c", tables=other)
        other.methods.load_state_dict(dense["methods"])
        for store in other.row_stores():
            store.load_step(10)
        assert torch.equal(logical_table(tables), logical_table(other))
        for kept in (tables, other):
            for store in kept.row_stores():
                store.seed = 0  # of projections
            train(kept, seed=50)
        assert torch.equal(logical_table(tables), logical_table(other))

    def test_packed_lookup_and_bytes(self, method: str) -> None:
        table = build_table(
            method=method,
            num_embeddings=NUM,
            embedding_dim=DIM,
            budget=spec(method).budget,
            counts=COUNTS,
            seed=2,
            name="a",
        )
        train_ids = torch.arange(NUM)
        for steps in (0, 3):
            train(table.collection, steps=steps, seed=steps)
            packed = table.pack()
            expected = logical_table(table.collection)
            slack = method_class(method).traits.tolerance * float(expected.abs().max())
            torch.testing.assert_close(packed.lookup(train_ids), expected, rtol=1e-5, atol=1e-6 + slack)
            torch.testing.assert_close(packed.lookup(torch.tensor([5]))[0], packed.lookup(train_ids)[5])
            assert packed.lookup(torch.empty(0, dtype=torch.int64)).shape == (0, DIM)
            assert packed.nbytes() == table.nbytes("serving") == held_nbytes(packed.table)
            assert 0 < table.nbytes("nominal") <= packed.nbytes()
        assert table.nbytes("training") > 0

    def test_a_pack_is_a_snapshot(self, method: str) -> None:
        table = build_table(method=method, num_embeddings=NUM, embedding_dim=DIM, counts=COUNTS, name="a")
        packed = table.pack()
        before = packed.lookup(torch.arange(NUM)).clone()
        train(table.collection, steps=2)
        assert torch.equal(before, packed.lookup(torch.arange(NUM)))

    def test_a_pack_is_saved_and_restored_exactly(self, method: str) -> None:
        table = build_table(method=method, num_embeddings=NUM, embedding_dim=DIM, counts=COUNTS, name="a")
        packed = table.pack().table
        facts = json.loads(json.dumps(packed.manifest()))
        buffer = io.BytesIO()
        torch.save(packed.state_dict(), buffer)
        buffer.seek(0)
        other = PackedTable.restore(method, facts, torch.load(buffer, weights_only=True))
        assert other.nbytes() == packed.nbytes()
        assert torch.equal(packed.lookup(torch.arange(NUM)), other.lookup(torch.arange(NUM)))

    def test_budget_is_kept_or_refused_with_its_floor(self, method: str) -> None:
        kept = 0
        for budget in (1.0, 0.5, 0.1, 0.02, 1e-4):
            try:
                table = build_table(method=method, num_embeddings=NUM, embedding_dim=DIM, budget=budget, counts=COUNTS)
            except BudgetError as error:
                assert "floor" in str(error)
                assert "'table'" in str(error)
            else:
                assert table.nbytes("serving") <= budget * 4 * NUM * DIM
                kept += 1
        assert kept >= (1 if method in EXACT_FLOOR else 2), "a budget of one half must be within reach"

    def test_ids_out_of_range(self, method: str) -> None:
        table = build_table(method=method, num_embeddings=NUM, embedding_dim=DIM, counts=COUNTS, name="C3")
        for holder in (table, table.pack()):
            for wrong in (NUM, -1, 2**40):
                with pytest.raises(IndexError, match=f"id {wrong}, outside table 'C3' of {NUM:,} ids"):
                    holder.lookup(torch.tensor([0, wrong]))

    def test_a_lookup_gives_what_is_served_and_leaves_no_trace(self, method: str) -> None:
        """Whatever else is asked for with an id; also before the last stage, and in parts that stand in another
        mode."""
        table = build_table(method=method, num_embeddings=NUM, embedding_dim=DIM, counts=COUNTS, name="a")
        train(table.collection, steps=2)
        before, packed = snapshot(table.collection), table.pack()
        next(iter(table.collection.methods.modules())).training = False
        modes = [part.training for part in table.collection.modules()]
        ids = torch.tensor([5, 700, 5, 0])
        alone, among = table.lookup(ids), table.lookup(torch.cat([torch.arange(NUM), ids]))[-4:]
        torch.testing.assert_close(alone, among)
        slack = method_class(method).traits.tolerance * float(packed.lookup(torch.arange(NUM)).abs().max())
        torch.testing.assert_close(alone, packed.lookup(ids), rtol=1e-5, atol=1e-6 + slack)
        assert not alone.requires_grad
        assert table.collection.extra_loss() is None or table.collection.extra_loss().grad_fn is None
        assert [part.training for part in table.collection.modules()] == modes
        assert_same(before, snapshot(table.collection))
        assert torch.equal(table.pack().lookup(ids), packed.lookup(ids))
        for holder in (table, packed):
            with pytest.raises(DataError, match=r"ids (of feature 'a' )?are torch.float32; they must be integers"):
                holder.lookup(torch.tensor([1.5]))

    def test_a_search_step_moves_nothing_but_search_parameters(self, method: str) -> None:
        """In every stage: statistics, counts of use, rows and their optimizer state stay; afterwards training moves
        them again."""
        for backend in ("fbgemm", "torch"):
            tables = TableCollection([spec(method)], backend=backend, optimizer=RowOptimizer(lr=0.05))
            for stage in range(len(method_class(method).traits.schedule.stages)):
                if stage:
                    tables = advance(tables)
                train(tables, steps=2)
                before = snapshot(tables)
                with rows_held(tables):
                    rows = tables(random_kjt({"a": NUM}, batch_size=16, seed=9)).values()
                extra, parameters = tables.extra_loss(), search_parameters(tables)
                loss = rows.square().sum() if extra is None else rows.square().sum() + extra
                if parameters:
                    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                    assert any(g is not None and bool(g.any()) for g in gradients)
                assert_same(before, snapshot(tables))
                train(tables, steps=1, seed=3)
                for name, buffer in tables.methods.named_buffers():
                    if name.endswith(("mean", "var", "variance", "usage")):
                        assert not torch.equal(buffer, before[name]), f"{name} has stopped moving"

    def test_losses_that_nobody_asks_for_are_dropped(self, method: str) -> None:
        """The loss of a training pass is its own, not that of all passes since it was last asked for; so their graphs
        are gone."""
        for make in (TableCollection, SequenceCollection):
            losses = []
            for seeds in ((0, 1, 2), (2,)):
                tables = make([spec(method)])
                for seed in seeds:
                    tables(random_kjt({"a": NUM}, batch_size=20, seed=seed))
                losses.append(tables.extra_loss())
            assert (losses[0] is None) == (losses[1] is None)
            if losses[0] is not None:
                torch.testing.assert_close(*losses)

    def test_address_is_pure(self, method: str) -> None:
        tables = collection(spec(method))
        (built,) = tables.built_methods()
        ids = torch.arange(NUM)
        train(tables, steps=2)
        permutation = torch.randperm(NUM, generator=torch.Generator().manual_seed(0))
        for a, b in zip(built.address(ids), built.address(ids[permutation]), strict=True):
            assert torch.equal(a[permutation], b)
        for rows, table in zip(built.address(ids), built.physical, strict=True):
            assert rows.min() >= 0
            assert rows.max() < table.num_embeddings

    @pytest.mark.slow
    def test_every_odd_size_works(self, method: str) -> None:
        @settings(max_examples=15, deadline=None)
        @given(num=st.integers(1, 40), dim=st.integers(1, 9), seed=st.integers(0, 5))
        def check(num: int, dim: int, seed: int) -> None:
            small = TableSpec(name="s", num_embeddings=num, embedding_dim=dim, feature_names=["a"], method=method)
            kjt = random_kjt({"a": num}, batch_size=3, seed=seed)
            fast, slow = (
                finished(TableCollection([small], backend=b)).eval()(kjt).values() for b in ("fbgemm", "torch")
            )
            assert fast.shape == (3, dim)
            torch.testing.assert_close(fast, slow)

        check()

    def test_options_of_another_method_are_refused(self, method: str) -> None:
        wrong = TableSpec(
            name="t", num_embeddings=5, embedding_dim=4, feature_names=["a"], method=method, options=object()
        )
        with pytest.raises(ConfigError, match=f"has method '{method}' but options of type object"):
            method_class(method)(wrong)


def test_misspelt_method() -> None:
    with pytest.raises(ConfigError, match="there is no method 'hsh'; did you mean 'hash'"):
        build_table(method="hsh", num_embeddings=5, embedding_dim=4)


def test_full_and_hash_are_there() -> None:
    assert {"full", "hash"} <= METHODS
