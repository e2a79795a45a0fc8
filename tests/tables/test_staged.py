"""Staged rows against rows that never move: values, gradients, ten optimizer steps; prefetch on and off to the bit.

On a CPU nothing is copied, but everything else happens: the thread, distinct rows, stale batches and what replaces
them.
"""

import gc
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from embank.tables import ConfigError, TableCollection, TableSpec, WorkError
from embank.tables.ids.hashing import mix64
from embank.tables.rows import ROW_OPTIMIZERS, RowOptimizer, RowTier, StoreSpec, build_rows
from embank.tables.rows.physical import PhysicalTable, RowInit
from embank.tables.rows.shards import TableShard
from embank.tables.rows.staged import MAX_AGE, StagedRows
from embank.tables.rows.torch_rows import TorchRows

SIZES, DIMS, LOOKUPS = (11, 40, 7), (8, 6, 8), (1, 0, 1, 2)
BAGS = 6
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """A projection whose result depends on the row and on the update."""

    def __call__(self, rows_UD: Tensor, rows_U: Tensor, *, seed: int) -> Tensor:
        up_U = mix64(rows_U, salt=seed) & 1
        return ((rows_UD * 64).floor() + up_U[:, None]) / 64


def shards(projection: Rounded | None = None) -> list[TableShard]:
    return [
        TableShard.whole(
            PhysicalTable(
                name=f"t{i}", num_embeddings=n, embedding_dim=d, init=RowInit(scale=1.0), projection=projection
            )
        )
        for i, (n, d) in enumerate(zip(SIZES, DIMS, strict=True))
    ]


def pair(
    name: str, *, tier: RowTier | None = None, projection: Rounded | None = None, seed: int = 3
) -> tuple[StagedRows, TorchRows]:
    """Staged rows and their twin in memory."""
    optimizer = RowOptimizer(name=name, lr=0.1)
    made = shards(projection)
    plain = StoreSpec(shards=made, lookups=LOOKUPS, seed=seed, backend="torch", optimizer=optimizer)
    return StagedRows(replace(plain, tier=tier or RowTier(name="host", prefetch=True))), TorchRows(plain)


def batch(seed: int, *, max_bag: int) -> Batch:
    """Bags of up to `max_bag` ids, or of one id each; half of the ids are among three, so that batches share rows."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(LOOKUPS) * BAGS,)
    lengths = torch.ones(shape, dtype=torch.int64)
    if max_bag > 1:
        lengths = torch.randint(0, max_bag + 1, shape, generator=generator)
    parts = []
    for k, table in enumerate(LOOKUPS):
        num = int(lengths[k * BAGS : (k + 1) * BAGS].sum())
        ids = torch.randint(0, SIZES[table], (num,), generator=generator)
        parts.append(torch.where(torch.rand(num, generator=generator) < 0.5, ids % 3, ids))
    return torch.cat(parts), torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])


def step(rows: StagedRows | TorchRows, indices: Tensor, offsets: Tensor) -> Tensor:
    out: Tensor = rows(indices, offsets)
    (out - 1).square().sum().backward()
    rows.update()
    return out.detach()


def train(rows: StagedRows, batches: Sequence[Batch], *, ahead: int) -> list[Tensor]:
    """Trains with each batch prefetched `ahead` steps before its lookup; outputs of all steps."""
    outputs = []
    for number, current in enumerate(batches):
        upcoming = batches[:ahead] if number == 0 else batches[number + ahead - 1 : number + ahead]
        for prefetched in upcoming if ahead else ():
            rows.prefetch(*prefetched)
        outputs.append(step(rows, *current))
    return outputs


def assert_same_tables(left: StagedRows | TorchRows, right: StagedRows | TorchRows, *, exact: bool) -> None:
    tolerance = 0.0 if exact else 1e-5
    for name, weight in left.weights().items():
        torch.testing.assert_close(weight, right.weights()[name], rtol=tolerance, atol=tolerance)
        states = (left.optimizer_state()[name], right.optimizer_state()[name])
        assert states[0].keys() == states[1].keys()
        for kind, state in states[0].items():
            torch.testing.assert_close(state, states[1][kind], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("max_bag", [1, 4])
@pytest.mark.parametrize("name", ROW_OPTIMIZERS)
class TestTwins:
    def test_values_and_ten_steps_equal_those_of_rows_in_memory(self, name: str, max_bag: int) -> None:
        staged, plain = pair(name)
        first = {table: weight.clone() for table, weight in plain.weights().items()}
        for number in range(10):
            current = batch(number, max_bag=max_bag)
            torch.testing.assert_close(step(staged, *current), step(plain, *current), rtol=1e-5, atol=1e-5)
        assert_same_tables(staged, plain, exact=False)
        assert not any(torch.equal(first[table], weight) for table, weight in staged.weights().items())

    @pytest.mark.parametrize("ahead", [1, 3, 10])
    def test_prefetch_changes_no_bit(self, name: str, max_bag: int, ahead: int) -> None:
        batches = [batch(number, max_bag=max_bag) for number in range(10)]
        with_it, without = pair(name)[0], pair(name, tier=RowTier(name="host", prefetch=False))[0]
        outputs = [train(rows, batches, ahead=ahead) for rows in (with_it, without)]
        assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
        assert_same_tables(with_it, without, exact=True)


def test_gradients_equal_those_of_rows_in_memory() -> None:
    """One SGD step of rate 1 is the gradient."""
    optimizer = RowOptimizer(name="sgd", lr=1.0)
    spec = StoreSpec(shards=shards(), lookups=LOOKUPS, backend="torch", optimizer=optimizer)
    staged, plain = StagedRows(replace(spec, tier=RowTier(name="host"))), TorchRows(spec)
    before = {table: weight.clone() for table, weight in staged.weights().items()}
    indices, offsets = batch(0, max_bag=4)
    factor = torch.randn(BAGS, sum(plain.dims), generator=torch.Generator().manual_seed(1))
    for rows in (staged, plain):
        (rows(indices, offsets).sin() * factor).sum().backward()
    staged.update()
    for (table, weight), other in zip(staged.weights().items(), plain.weights().values(), strict=True):
        assert not torch.equal(before[table], other)
        torch.testing.assert_close(before[table] - weight, before[table] - other, rtol=1e-5, atol=1e-5)


def test_a_batch_that_was_gathered_before_an_update_is_looked_up_after_it() -> None:
    """Stale rows are really there, and really replaced."""
    staged, plain = pair("sgd")
    current = batch(0, max_bag=4)
    staged.prefetch(*current)
    staged.prefetch(*current)
    early = staged.prefetched[1]
    early.gathered.result()
    gathered = early.values["weights"].clone()
    for rows in (staged, plain):
        step(rows, *current)
    assert torch.equal(early.values["weights"], gathered)  # the update has not reached it
    out = staged(*current)
    assert not torch.equal(early.values["weights"], gathered)
    torch.testing.assert_close(out, plain(*current), rtol=1e-5, atol=1e-5)


def test_order_holds_when_the_thread_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates are applied while their write-back still waits: what was prefetched before and after them sees them."""
    batches = [batch(number, max_bag=4) for number in range(6)]
    staged, plain = pair("adam")
    gate = threading.Event()
    step(staged, *batches[0])
    step(plain, *batches[0])
    for number in (1, 2):
        staged.prefetch(*batches[number])
    for early in staged.prefetched:
        early.gathered.result()
    staged.thread.submit(gate.wait, 20)
    for number in (1, 2):
        torch.testing.assert_close(step(staged, *batches[number]), step(plain, *batches[number]), rtol=1e-5, atol=1e-5)
    staged.prefetch(*batches[3])
    assert not staged.prefetched[0].gathered.done()
    gate.set()
    for number in (3, 4, 5):
        torch.testing.assert_close(step(staged, *batches[number]), step(plain, *batches[number]), rtol=1e-5, atol=1e-5)
    assert_same_tables(staged, plain, exact=False)


def test_prefetches_of_another_thread_that_are_skipped_or_never_come() -> None:
    staged, plain = pair("adagrad")
    batches = [batch(number, max_bag=4) for number in range(12)]
    loader = threading.Thread(target=lambda: [staged.prefetch(*b) for b in batches])
    loader.start()
    for number in (2, 3, 1, 8):  # 1 was passed over by then; 9 to 11 never come
        step(staged, *batches[number])
        step(plain, *batches[number])
    loader.join()
    assert_same_tables(staged, plain, exact=False)
    assert not staged.prefetched


def test_the_device_keeps_no_more_than_is_needed() -> None:
    staged, _ = pair("sgd")
    never = batch(99, max_bag=4)
    staged.prefetch(*never)
    for number in range(5):
        step(staged, *batch(number, max_bag=4))
    assert len(staged.written) == 5  # the prefetched batch has seen none of them
    for number in range(MAX_AGE):
        step(staged, *batch(number, max_bag=4))
    gc.collect()
    step(staged, *batch(0, max_bag=4))
    assert not staged.prefetched
    assert len(staged.written) <= 1


def test_lookups_between_forward_and_backward() -> None:
    """An evaluation in between changes nothing; a lookup whose backward pass comes after another's update loses
    neither."""
    staged, plain = pair("rowwise_adagrad")
    first, second = batch(0, max_bag=4), batch(1, max_bag=4)
    for rows in (staged, plain):
        outputs = [rows(*first), rows(*second)]
        with torch.no_grad():
            rows(*first)
        for out in outputs:
            out.square().sum().backward()
            rows.update()
    assert_same_tables(staged, plain, exact=False)


def test_projection() -> None:
    staged, plain = pair("sgd", projection=Rounded())
    for number in range(3):
        current = batch(number, max_bag=1)
        step(staged, *current)
        step(plain, *current)
    assert_same_tables(staged, plain, exact=False)
    assert all(torch.equal(w * 64, (w * 64).round()) for w in staged.weights().values())


def test_writing_to_tables_reaches_announced_batches() -> None:
    staged, plain = pair("sgd")
    current = batch(0, max_bag=4)
    staged.prefetch(*current)
    for rows in (staged, plain):
        for weight in rows.weights().values():
            weight.fill_(0.5)
        rows.load_step(7)
    torch.testing.assert_close(step(staged, *current), step(plain, *current), rtol=1e-6, atol=1e-6)
    assert staged.num_updates == 8


@pytest.mark.parametrize("kind", ["weights", "optimizer state"])
def test_writing_to_tables_after_a_prefetch(kind: str) -> None:
    """Views that were taken before it, and written to after it: the rows that it gathered are stale, and gathered
    again."""
    staged, plain = pair("adagrad")
    current = batch(0, max_bag=4)
    step(staged, *current)
    step(plain, *current)
    for rows in (staged, plain):
        views = rows.weights().values() if kind == "weights" else [s["sum"] for s in rows.optimizer_state().values()]
        rows.prefetch(*current)
        if rows is staged:
            staged.prefetched[0].gathered.result()
        for view in views:
            view.fill_(0.5)
    torch.testing.assert_close(step(staged, *current), step(plain, *current), rtol=1e-6, atol=1e-6)
    assert_same_tables(staged, plain, exact=False)


def test_writing_to_tables_between_forward_and_backward() -> None:
    """The update starts from what was written, as where rows are in memory."""
    staged, plain = pair("adagrad")
    current = batch(0, max_bag=4)
    for rows in (staged, plain):
        loss = rows(*current).square().sum()
        for weight in rows.weights().values():
            weight.mul_(0.5)
        loss.backward()
        rows.update()
    assert_same_tables(staged, plain, exact=False)


def test_updates_are_no_writing_by_others() -> None:
    """Announced batches are not gathered again after each update."""
    staged, _ = pair("adagrad")
    versions = staged._versions()
    for number in range(3):
        step(staged, *batch(number, max_bag=4))
    staged.flush()
    assert staged._versions() == versions


def test_files(tmp_path: Path) -> None:
    """Mapped files give memory's bits, and a cut one is refused."""
    disk, _ = pair("adam", tier=RowTier(name="disk", directory=tmp_path))
    memory, _ = pair("adam")
    batches = [batch(number, max_bag=4) for number in range(4)]
    outputs = [train(rows, batches, ahead=2) for rows in (disk, memory)]
    disk.flush()
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    assert_same_tables(disk, memory, exact=True)
    assert disk.nbytes() == memory.nbytes() == 3 * 4 * sum(n * d for n, d in zip(SIZES, DIMS, strict=True))
    path = disk.held.space.files[0].path
    with path.open("r+b") as file:
        file.truncate(8)
    with pytest.raises(WorkError, match=path.name):
        disk(*batches[0])


@pytest.mark.parametrize("num_bags", [0, 2])
def test_nothing_to_look_up(num_bags: int) -> None:
    staged, plain = pair("sgd")
    empty = torch.zeros(0, dtype=torch.int64), torch.zeros(len(LOOKUPS) * num_bags + 1, dtype=torch.int64)
    for rows in (staged, plain):
        out = rows(*empty)
        assert out.shape == (num_bags, sum(rows.dims))
        out.sum().backward()
        rows.update()
    assert_same_tables(staged, plain, exact=True)


def test_moving_a_model_leaves_its_rows() -> None:
    staged, _ = pair("sgd")
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), staged)
    model.double()
    assert model[0].weight.dtype == torch.float64
    assert staged(*batch(0, max_bag=1)).dtype == torch.float32


@pytest.mark.parametrize("is_joint", [False, True])
def test_several_lookups_before_an_update(is_joint: bool) -> None:
    """Two backward passes, or one over two lookups: each lookup is an update, as where rows are in memory."""
    staged, plain = pair("adagrad")
    for rows in (staged, plain):
        losses = [rows(*batch(number, max_bag=4)).square().sum() for number in range(2)]
        for loss in [losses[0] + losses[1]] if is_joint else losses:
            loss.backward()
        rows.update()
        assert rows.num_updates == 1
    assert_same_tables(staged, plain, exact=False)


def test_a_backward_pass_after_its_update_is_refused() -> None:
    staged, _ = pair("sgd")
    loss = staged(*batch(0, max_bag=4)).sum()
    loss.backward(retain_graph=True)
    staged.update()
    with pytest.raises(WorkError, match="whose update is done; look the ids up again"):
        loss.backward()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("backend", ["torch", "fbgemm"])
@pytest.mark.parametrize("name", ["device", "host", "disk"])
def test_a_gpu_that_is_not_there_is_refused(backend: str, name: str, tmp_path: Path) -> None:
    tier = RowTier(name=name, device="cuda:1", directory=tmp_path if name == "disk" else None)
    with pytest.raises(ConfigError, match="rows are to be on 'cuda:1', but this machine has no GPU that torch can use"):
        build_rows(
            StoreSpec(shards=shards(), lookups=LOOKUPS, backend=backend, optimizer=RowOptimizer(name="sgd"), tier=tier)
        )
    assert not list(tmp_path.iterdir())


def test_tiers_that_do_not_exist() -> None:
    with pytest.raises(ConfigError, match="there is no tier 'ssd' for rows; use device, host, disk"):
        RowTier(name="ssd")
    spec = TableSpec(name="t", num_embeddings=3, embedding_dim=2, feature_names=["f"])
    with pytest.raises(ConfigError, match="tier is 'disk'; give a RowTier"):
        TableCollection([spec], tier="disk")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="optimizer is 'adam'; give a RowOptimizer"):
        TableCollection([spec], optimizer="adam")  # type: ignore[arg-type]
    for name in ("device", "host"):
        with pytest.raises(ConfigError, match=f"directory is 'rows', but tier is '{name}', which has no files; set"):
            RowTier(name=name, directory="rows")
    with pytest.raises(ConfigError, match="tier is 'disk'; give a RowTier, such as"):
        StoreSpec(shards=shards(), lookups=LOOKUPS, tier="disk")
    with pytest.raises(ConfigError, match="optimizer is 'adagrad'; give a RowOptimizer, such as"):
        StoreSpec(shards=shards(), lookups=LOOKUPS, optimizer="adagrad")
    with pytest.raises(ConfigError, match="there is no device 'gpu' for rows; use 'cpu', 'cuda' or 'cuda:N'"):
        RowTier(device="gpu")
    with pytest.raises(ConfigError, match="cache_load_factor is 2; it is a share of the rows, from 0 to 1"):
        RowTier(name="host", cache_load_factor=2)
