"""Training of SequenceCollection against optimizers on plain tables; tiers, checkpoints, stages."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from embank.tables import (
    CheckpointError,
    RowOptimizer,
    RowTier,
    SequenceCollection,
    TableCollection,
)
from embank.tables.collections.stages import advance, finished
from embank.tables.storage.checkpoint import load_checkpoint, save_checkpoint
from tests.tables.held import constants
from tests.tables.sequences import GROUPS, Naive, assert_same_rows, mixed_specs, plain_specs, random_ids, towards_one

BACKENDS = ["fbgemm", "torch"]


@pytest.mark.parametrize("dedupe", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
class TestBothBackendsWithAndWithoutDedupe:
    @pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad"])
    def test_ten_steps_equal_published_optimizers(self, backend: str, dedupe: bool, name: str) -> None:
        """Rows, outputs and what flows on into the layer above, against torch's and TorchRec's optimizers on dense
        gradients."""
        tables = SequenceCollection(
            plain_specs(), backend=backend, optimizer=RowOptimizer(name=name, lr=0.05, eps=1e-3), dedupe=dedupe
        )
        naive = Naive(tables)
        start = {n: w.clone() for n, w in tables.weights().items()}
        oracle = {
            "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
            "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, eps=1e-3),
            "rowwise_adagrad": lambda p: RowWiseAdagrad(p, lr=0.05, eps=1e-3),
        }[name](naive.parameters())
        layer = nn.Linear(19, 4)
        for step in range(10):
            ids = random_ids(step)
            gradients = []
            for module in (tables, naive):
                layer.zero_grad()
                out = module(ids)
                (layer(out["first"]).square().sum() + towards_one({"second": out["second"]})).backward()
                gradients.append(layer.weight.grad.clone())
            torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
            tables.update_rows()
            oracle.step()
            oracle.zero_grad()
        assert not any(torch.equal(w, start[n]) for n, w in tables.weights().items())
        assert_same_rows(tables, naive)

    def test_repeated_ids_sum_their_gradients(self, backend: str, dedupe: bool) -> None:
        """One row at every token and in both groups moves by the sum of all that reaches it, with one update."""
        tables = SequenceCollection(
            plain_specs(), backend=backend, optimizer=RowOptimizer(name="rowwise_adagrad", lr=0.1), dedupe=dedupe
        )
        before = {n: w.clone() for n, w in tables.weights().items()}
        out = tables({group: torch.full((2, 6, len(sizes)), 4) for group, sizes in GROUPS.items()})
        factor = torch.randn(8, generator=torch.Generator().manual_seed(0))
        ((out["first"][..., :8] * factor).sum() + out["second"][..., :8].sum()).backward()
        tables.update_rows()
        summed = 12 * factor + 12
        expected = before["both"].clone()
        expected[4] -= 0.1 * summed / (summed.square().mean().sqrt() + 1e-8)
        torch.testing.assert_close(tables.weights()["both"], expected)
        torch.testing.assert_close(tables.optimizer_state()["both"]["sum"][4], summed.square().mean())

    def test_disk_equals_memory_bit_for_bit(self, backend: str, dedupe: bool, tmp_path: Path) -> None:
        tiers = [RowTier(), RowTier(name="disk", directory=tmp_path / "rows")]
        memory, disk = (SequenceCollection(plain_specs(), backend=backend, tier=t, dedupe=dedupe) for t in tiers)
        for step in range(10):
            for tables in (memory, disk):
                towards_one(tables(random_ids(step))).backward()
                tables.update_rows()
        assert all(torch.equal(w, disk.weights()[n]) for n, w in memory.weights().items())
        (store,) = disk.row_stores()
        store.flush()
        files = sum(p.stat().st_size for p in (tmp_path / "rows").iterdir())
        assert files + constants(disk) == disk.nbytes("training") == memory.nbytes("training")

    def test_groups_of_different_sizes(self, backend: str, dedupe: bool) -> None:
        """Groups share a call, not a shape: each gets its own rows, and rows that pad a lookup get no gradient."""
        tables = SequenceCollection(plain_specs(), backend=backend, optimizer=RowOptimizer(name="sgd", lr=0.1))
        naive = Naive(tables)
        ids = {"first": random_ids(6)["first"], "second": random_ids(6, batch_size=1, num_tokens=2)["second"]}
        for module in (tables, naive):
            towards_one(module(ids)).backward()
        tables.update_rows()
        torch.optim.SGD(naive.parameters(), lr=0.1).step()
        assert_same_rows(tables, naive)

    def test_checkpoints_restore_rows_and_state(self, backend: str, dedupe: bool, tmp_path: Path) -> None:
        """Saved by one collection, read by another one, with or without de-duplication, and by a pooled one of the same
        tables."""
        optimizer = RowOptimizer(name="adagrad", lr=0.1)
        tables = SequenceCollection(plain_specs(), seed=1, backend=backend, optimizer=optimizer, dedupe=dedupe)
        for step in range(3):
            towards_one(tables(random_ids(step))).backward()
            tables.update_rows()
        save_checkpoint(tmp_path / "c", tables=tables, dense={}, meta={"step": 3})
        others = [
            SequenceCollection(plain_specs(), seed=2, backend=backend, optimizer=optimizer, dedupe=True),
            TableCollection(plain_specs(), seed=2, backend=backend, optimizer=optimizer),
        ]
        for other in others:
            _, meta = load_checkpoint(tmp_path / "c", tables=other)
            assert meta["step"] == 3
            assert all(torch.equal(w, other.weights()[n]) for n, w in tables.weights().items())
            for name, state in tables.optimizer_state().items():
                assert torch.equal(state["sum"], other.optimizer_state()[name]["sum"])
        with pytest.raises(CheckpointError, match="belongs to other tables"):
            load_checkpoint(tmp_path / "c", tables=SequenceCollection(plain_specs()[:2], backend=backend))


def lazy_adam(
    weight: Tensor, grad: Tensor, touched: Tensor, mean: Tensor, square: Tensor, *, step: int, lr: float
) -> None:
    """Adam as its paper has it (Kingma and Ba, algorithm 1), on all rows, then only touched ones are kept."""
    new_mean, new_square = 0.9 * mean + 0.1 * grad, 0.999 * square + 0.001 * grad**2
    moved = weight - lr * (new_mean / (1 - 0.9**step)) / ((new_square / (1 - 0.999**step)).sqrt() + 1e-8)
    keep = touched[:, None]
    weight.copy_(torch.where(keep, moved, weight))
    mean.copy_(torch.where(keep, new_mean, mean))
    square.copy_(torch.where(keep, new_square, square))


@pytest.mark.parametrize("dedupe", [False, True])
def test_lazy_adam_moves_touched_rows_alone(dedupe: bool) -> None:
    optimizer = RowOptimizer(name="adam", lr=0.01)
    tables = SequenceCollection(plain_specs(), backend="torch", optimizer=optimizer, dedupe=dedupe)
    naive = Naive(tables)
    state = {n: (torch.zeros_like(t.weight), torch.zeros_like(t.weight)) for n, t in naive.tables.items()}
    for step in range(1, 11):
        ids = random_ids(step, batch_size=1, num_tokens=4)
        for module in (tables, naive):
            towards_one(module(ids)).backward()
        tables.update_rows()
        for name, table in naive.tables.items():
            touched = table.weight.grad.abs().sum(1) > 0
            assert 0 < touched.sum() < len(touched)
            with torch.no_grad():
                lazy_adam(table.weight, table.weight.grad, touched, *state[name], step=step, lr=0.01)
            table.weight.grad = None
    assert_same_rows(tables, naive)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dedupe_gives_the_same_bits_and_trains_alike(backend: str) -> None:
    pair = [SequenceCollection(mixed_specs(), backend=backend, dedupe=dedupe) for dedupe in (False, True)]
    for step in range(10):
        ids = random_ids(step)
        outs = [tables(ids) for tables in pair]
        if step == 0:
            assert all(torch.equal(outs[0][group], outs[1][group]) for group in GROUPS)
        for tables, out in zip(pair, outs, strict=True):
            towards_one(out).backward()
            tables.update_rows()
    for name, weight in pair[0].weights().items():
        torch.testing.assert_close(weight, pair[1].weights()[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["advance", "finished"])
@pytest.mark.parametrize("dedupe", [False, True])
def test_stages_carry_rows_over(kind: str, dedupe: bool) -> None:
    specs = [replace(plain_specs()[0], method="test_doubled"), *plain_specs()[1:]]
    tables = SequenceCollection(specs, dedupe=dedupe)
    towards_one(tables(random_ids(0))).backward()
    tables.update_rows()
    after = {"advance": advance, "finished": finished}[kind](tables)
    assert isinstance(after, SequenceCollection)
    assert after.dedupe == dedupe
    assert set(after.weights()) == {"both/1", "a", "b", "c"}
    assert all(torch.equal(rows, tables(random_ids(1))[group]) for group, rows in after(random_ids(1)).items())


@pytest.mark.parametrize("backend", BACKENDS)
def test_learning_rates_are_per_collection(backend: str) -> None:
    optimizer = RowOptimizer(name="sgd", lr=1.0)
    slow, fast = (SequenceCollection(plain_specs()[1:2], backend=backend, optimizer=optimizer) for _ in range(2))
    fast.set_lr(5.0)
    moved = []
    for tables in (slow, fast):
        before = tables.weights()["a"].clone()
        tables({"first": torch.tensor([[[2]]])})["first"].sum().backward()
        tables.update_rows()
        moved.append(before - tables.weights()["a"])
    torch.testing.assert_close(5 * moved[0], moved[1])
    assert moved[0][2].eq(1).all()
