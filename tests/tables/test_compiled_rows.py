"""Rows looked up and updated by compiled code: the same as by torch's twin and by FBGEMM, whatever the tables and bags,
and however many threads share the work."""

import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from embank.tables import RowOptimizer, RowTier
from embank.tables.native import build
from embank.tables.rows import Backend, RowStore, StoreSpec, build_rows
from embank.tables.rows.base import padded_dim
from embank.tables.rows.fbgemm import FbgemmRows
from embank.tables.rows.native import passes
from embank.tables.rows.physical import PhysicalTable, RowInit
from embank.tables.rows.shards import TableShard

OPTIMIZERS = ("sgd", "adagrad", "rowwise_adagrad")


def spec_of(
    sizes: Sequence[tuple[int, int]], lookups: Sequence[int], *, backend: Backend = "fbgemm", optimizer: str = "adagrad"
) -> StoreSpec:
    """Tables of so many rows and columns."""
    tables = [
        PhysicalTable(name=f"t{number}", num_embeddings=rows, embedding_dim=columns, init=RowInit(scale=0.5))
        for number, (rows, columns) in enumerate(sizes)
    ]
    return StoreSpec(
        shards=[TableShard.whole(table) for table in tables],
        lookups=lookups,
        backend=backend,
        optimizer=RowOptimizer(name=optimizer, lr=0.1),
    )


def stores(sizes: Sequence[tuple[int, int]], lookups: Sequence[int], optimizer: str) -> dict[str, RowStore]:
    """The same rows by compiled code, by FBGEMM and by torch."""
    compiled = build_rows(spec_of(sizes, lookups, optimizer=optimizer))
    by_fbgemm = build_rows(spec_of(sizes, lookups, optimizer=optimizer))
    assert isinstance(compiled, FbgemmRows)
    assert isinstance(by_fbgemm, FbgemmRows)
    assert compiled.passes is not None, "there is a compiler where these tests run"
    by_fbgemm.passes = None
    return {
        "compiled": compiled,
        "fbgemm": by_fbgemm,
        "torch": build_rows(spec_of(sizes, lookups, backend="torch", optimizer=optimizer)),
    }


def batch_of(
    sizes: Sequence[tuple[int, int]], lookups: Sequence[int], *, num_bags: int, most: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Random bags; a few rows of each table come often."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, most + 1, (len(lookups) * num_bags,), generator=generator)
    indices = []
    for k, table in enumerate(lookups):
        count = int(lengths[k * num_bags : (k + 1) * num_bags].sum())
        spread = torch.rand(count, generator=generator) ** 4
        indices.append((spread * sizes[table][0]).long())
    return torch.cat(indices), torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])


def states(store: RowStore) -> dict[str, Tensor]:
    held = {name: rows.clone() for name, rows in store.weights().items()}
    return held | {
        f"{name}.{kind}": value.clone() for name, own in store.optimizer_state().items() for kind, value in own.items()
    }


def step(store: RowStore, batch: tuple[Tensor, Tensor], *, is_joined: bool) -> Tensor:
    """One step by a loss that is not linear; what was looked up."""
    if is_joined:
        rows = store(*batch)
        (rows.square().sum() / 2 + rows.sum()).backward()
        return rows.detach()
    parts = store.parts(*batch)
    torch.autograd.backward(parts, [part.detach() + 1 for part in parts])
    return torch.cat([part.detach() for part in parts], dim=1)


CASE = st.fixed_dictionaries(
    {
        "sizes": st.lists(st.tuples(st.integers(1, 300), st.integers(1, 70)), min_size=1, max_size=4),
        "more": st.lists(st.integers(0, 3), max_size=5),
        "num_bags": st.integers(0, 40),
        "most": st.sampled_from([1, 3, 30]),
        "optimizer": st.sampled_from(OPTIMIZERS),
        "is_joined": st.booleans(),
    }
)


@settings(max_examples=30, deadline=None)
@given(case=CASE, seed=st.integers(0, 2**31))
def test_ten_steps_agree(case: dict, seed: int) -> None:
    sizes = case["sizes"]
    lookups = [*range(len(sizes)), *(table % len(sizes) for table in case["more"])]
    rivals = stores(sizes, lookups, case["optimizer"])
    for number in range(10):
        batch = batch_of(sizes, lookups, num_bags=case["num_bags"], most=case["most"], seed=seed + number)
        found = {name: step(store, batch, is_joined=case["is_joined"]) for name, store in rivals.items()}
        for name in ("fbgemm", "torch"):
            torch.testing.assert_close(found["compiled"], found[name], rtol=2e-4, atol=2e-4)
    held = {name: states(store) for name, store in rivals.items()}
    for name in ("fbgemm", "torch"):
        assert held["compiled"].keys() == held[name].keys()
        for key, value in held["compiled"].items():
            torch.testing.assert_close(
                value, held[name][key], rtol=2e-4, atol=2e-4, msg=lambda text, key=key: f"{key}: {text}"
            )


LARGE = [(200_000, 4), (50_000, 16), (3, 8), (70_000, 6)]
"""Tables of which one batch looks up more ids than one task takes, some of them with hardly a row."""


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_tables_that_many_tasks_share(optimizer: str) -> None:
    lookups = [0, 1, 0, 2, 3, 0, 2]
    rivals = stores(LARGE, lookups, optimizer)
    for store in rivals.values() if optimizer == "sgd" else ():
        store.set_lr(1e-5)  # the three rows of t2 would grow without bounds
    for number in range(3):
        batch = batch_of(LARGE, lookups, num_bags=9000, most=4, seed=number)
        found = {name: step(store, batch, is_joined=bool(number % 2)) for name, store in rivals.items()}
        for name in ("fbgemm", "torch"):
            torch.testing.assert_close(found["compiled"], found[name], rtol=1e-3, atol=1e-3)
    held = {name: states(store) for name, store in rivals.items()}
    for name in ("fbgemm", "torch"):
        for key, value in held["compiled"].items():
            torch.testing.assert_close(value, held[name][key], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad"])
def test_threads_change_nothing(optimizer: str) -> None:
    """Not even the order of sums: a run is the same on any number of cores."""
    lookups, found, count = [0, 1, 0, 2, 3, 0], [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            store = stores(LARGE, lookups, optimizer)["compiled"]
            for number in range(2):
                step(store, batch_of(LARGE, lookups, num_bags=8000, most=3, seed=number), is_joined=True)
            found.append(states(store))
    finally:
        torch.set_num_threads(count)
    for other in found[1:]:
        assert all(torch.equal(value, other[key]) for key, value in found[0].items())


def test_one_row_that_nearly_all_ids_are() -> None:
    """The sums of a task hold its distinct rows, not its ids; and of more rows than were expected they grow."""
    store = stores([(1_000_000, 8)], [0], "rowwise_adagrad")["compiled"]
    twin = stores([(1_000_000, 8)], [0], "rowwise_adagrad")["torch"]
    hot, others = torch.full((300_000,), 7), torch.arange(40_000) * 25
    indices = torch.cat([hot, others])
    offsets = torch.arange(0, indices.numel() + 1, 1000)
    for each in (store, twin):
        each(indices, offsets).sum().backward()
    for key, value in states(store).items():
        torch.testing.assert_close(value, states(twin)[key], rtol=1e-4, atol=1e-4)


def test_ids_of_all_parts_in_one() -> None:
    """Rows that one task gets many more of than its share: those whose hash begins alike."""
    numbers = torch.arange(2**21)
    part = ((numbers * 0x85EBCA6B) & 0xFFFFFFFF) >> 26
    indices = numbers[part == 5][:30_000]
    assert indices.numel() == 30_000
    pair = stores([(2**21, 8)], [0], "sgd")
    offsets = torch.arange(indices.numel() + 1)
    for each in (pair["compiled"], pair["torch"]):
        each(indices, offsets).sum().backward()
    assert torch.equal(pair["compiled"].weight("t0"), pair["torch"].weight("t0"))


GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "a sign that is still to be taken": lambda rows: torch.complex(rows[:1, 0], rows[:1, 1]).conj().imag.sum(),
    "one number for all": lambda rows: rows.sum(),
    "one row for all": lambda rows: (rows * torch.arange(float(rows.shape[1]))).sum(),
    "columns first": lambda rows: (rows.t().contiguous() * torch.arange(float(rows.shape[0]))).sum(),
    "a part of the columns": lambda rows: rows[:, 3:9].sum(),
    "some bags": lambda rows: rows[::2].square().sum(),
}


@pytest.mark.parametrize("kind", list(GRADIENTS))
def test_gradients_however_they_lie(kind: str) -> None:
    sizes, lookups = [(30, 4), (20, 7)], [0, 1, 0]
    rivals = stores(sizes, lookups, "sgd")
    batch = batch_of(sizes, lookups, num_bags=11, most=2, seed=3)
    for store in rivals.values():
        GRADIENTS[kind](store(*batch)).backward()
    for name in ("fbgemm", "torch"):
        for key, value in states(rivals["compiled"]).items():
            torch.testing.assert_close(value, states(rivals[name])[key])


def test_some_parts_are_not_used() -> None:
    sizes, lookups = [(30, 4), (20, 7)], [0, 1, 0]
    rivals = stores(sizes, lookups, "rowwise_adagrad")
    batch = batch_of(sizes, lookups, num_bags=11, most=2, seed=3)
    for store in rivals.values():
        store.parts(*batch)[1].square().sum().backward()
    before = states(build_rows(spec_of(sizes, lookups)))
    assert torch.equal(states(rivals["compiled"])["t0"], before["t0"])
    for key, value in states(rivals["compiled"]).items():
        torch.testing.assert_close(value, states(rivals["torch"])[key])


def test_a_graph_is_kept_and_used_twice() -> None:
    """Each backward pass is an update."""
    pair = stores([(30, 4)], [0], "sgd")
    batch = batch_of([(30, 4)], [0], num_bags=5, most=2, seed=0)
    for store in pair.values():
        loss = store(*batch).sum()
        loss.backward(retain_graph=True)
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()
    assert torch.allclose(pair["compiled"].weight("t0"), pair["torch"].weight("t0"))


def test_ids_that_change_before_the_update_are_noticed() -> None:
    store = stores([(30, 4)], [0], "sgd")["compiled"]
    indices, offsets = batch_of([(30, 4)], [0], num_bags=5, most=2, seed=0)
    loss = store(indices, offsets).sum()
    indices.add_(1000)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("num_bags", [5, 9000])
def test_ids_that_change_behind_the_back_of_torch(num_bags: int) -> None:
    """NumPy's writes are not counted. What is no row is left out, and said; nothing else is written to."""
    store = stores([(30, 4)], [0, 0], "sgd")["compiled"]
    indices, offsets = torch.arange(2 * num_bags) % 30, torch.arange(2 * num_bags + 1)
    loss, before = store(indices, offsets).sum(), states(store)["t0"]
    indices.numpy()[:] = 29
    indices.numpy()[num_bags:] = 2**33
    with pytest.raises(IndexError, match=r"table 't0' has 30 rows, and none of number 8,589,934,592$"):
        loss.backward()
    changed = (states(store)["t0"] != before).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [29]


@pytest.mark.parametrize("bad", [-1, 30, 2**40])
def test_an_id_that_is_no_row(bad: int) -> None:
    store = stores([(20, 4), (30, 4)], [0, 1], "sgd")["compiled"]
    before = states(store)
    with pytest.raises(IndexError, match=rf"table 't1' has 30 rows, and none of number {bad:,}$"):
        store(torch.tensor([3, 4, 5, bad]), torch.tensor([0, 1, 2, 3, 4]))
    assert all(torch.equal(value, before[key]) for key, value in states(store).items())


@pytest.mark.parametrize("offsets", [[0, 1, 2, 3, 5], [0, 1, 2, 3]])
def test_offsets_that_are_not_those_of_the_lookups(offsets: list[int]) -> None:
    store = stores([(20, 4), (30, 4)], [0, 1], "sgd")["compiled"]
    with pytest.raises(ValueError, match=r"offsets up to \d are not those of 2 lookups of 4 indices"):
        store(torch.tensor([3, 4, 5, 6]), torch.tensor(offsets))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_ids_that_are_no_numbers_of_rows(dtype: torch.dtype) -> None:
    store = stores([(20, 4)], [0], "sgd")["compiled"]
    with pytest.raises(TypeError, match=f"whole numbers, and these are {dtype}"):
        store(torch.tensor([1, 0]).to(dtype), torch.arange(3))


def test_two_threads_use_a_store_for_the_first_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may have to write down where the tables lie; neither sees what the other has half written."""
    store = stores([(20, 4)] * 8, range(8), "sgd")["compiled"]
    batch = torch.arange(8), torch.arange(9)
    expected = stores([(20, 4)] * 8, range(8), "sgd")["torch"](*batch)
    begun, done, asked = threading.Event(), threading.Event(), dict[str, int]()

    def slow(columns: int) -> int:
        own = threading.current_thread().name
        asked[own] = asked.get(own, 0) + 1
        if own == "first" and asked[own] == 6:
            begun.wait(5)
        if own == "second" and asked[own] == 1:
            begun.set()
            done.wait(5)
        return padded_dim(columns)

    monkeypatch.setattr(passes, "padded_dim", slow)
    found: list[Tensor] = []

    def look_up() -> None:
        found.append(store(*batch))
        done.set()

    threads = [threading.Thread(target=look_up, name=name) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert all(torch.equal(rows, expected) for rows in found)


FORKED = """
import os, torch
from embank.tables.rows import StoreSpec, build_rows
from embank.tables.rows.physical import PhysicalTable, RowInit
table = PhysicalTable(name="t", num_embeddings=1000, embedding_dim=16, init=RowInit(scale=1.0))
torch.set_num_threads(2)
store = build_rows(StoreSpec.of_tables([table], lookups=[0]))
batch = torch.arange(20_000) % 1000, torch.arange(20_001)
store(*batch).sum().backward()
child = os.fork()
if not child:
    found = store(*batch)
    torch.set_num_threads(1)  # torch's own operations would wait for threads
    os._exit(0 if torch.equal(found, store.weight("t")[batch[0]]) else 1)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.slow
def test_a_fork_looks_rows_up() -> None:
    """OpenMP's threads are not in it."""
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60)
    assert done.stdout == "0\n", done.stderr


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_a_gradient(context: Callable) -> None:
    pair = stores([(30, 4)], [0], "sgd")
    batch = batch_of([(30, 4)], [0], num_bags=5, most=2, seed=0)
    with context():
        found = pair["compiled"](*batch)
        assert not found.requires_grad
        assert torch.equal(found, pair["torch"](*batch))


@pytest.mark.slow
def test_graphs_that_torch_follows_know_fbgemm(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = stores([(30, 4), (20, 8)], [0, 1], "sgd")
    batch = batch_of([(30, 4), (20, 8)], [0, 1], num_bags=6, most=2, seed=0)
    monkeypatch.setattr(passes.Passes, "look_up", lambda *_, **__: pytest.fail("torch can't follow it"))
    compiled = torch.compile(lambda *given: pair["compiled"](*given) * 2, backend="eager")
    compiled(*batch).sum().backward()
    (pair["torch"](*batch) * 2).sum().backward()
    assert torch.allclose(pair["compiled"].weight("t0"), pair["torch"].weight("t0"))
    graph = make_fx(lambda *given: pair["compiled"](*given) * 2)(*batch)
    monkeypatch.undo()
    assert torch.equal(graph(*batch), pair["compiled"](*batch) * 2)


def test_tensors_that_are_imagined_are_refused_as_by_fbgemm() -> None:
    store = stores([(30, 4)], [0], "sgd")["compiled"]
    with FakeTensorMode() as mode, pytest.raises(Exception, match="FakeTensor"):
        store(mode.from_tensor(torch.arange(5)), mode.from_tensor(torch.arange(6)))


def test_on_the_disk(tmp_path: Path) -> None:
    sizes, lookups = [(3000, 16), (20, 7)], [0, 1, 0]
    tier = RowTier(name="disk", directory=tmp_path / "rows")
    store = build_rows(replace(spec_of(sizes, lookups), tier=tier))
    twin = stores(sizes, lookups, "adagrad")["torch"]
    for number in range(3):
        batch = batch_of(sizes, lookups, num_bags=50, most=2, seed=number)
        store.prefetch(*batch)
        torch.testing.assert_close(step(store, batch, is_joined=True), step(twin, batch, is_joined=True))
    store.flush()
    for key, value in states(store).items():
        torch.testing.assert_close(value, states(twin)[key])


@pytest.fixture
def without() -> Iterator[None]:
    """What was compiled is looked for anew, in the test and after it."""
    passes._compiled.cache_clear()
    yield
    passes._compiled.cache_clear()
    build.library.cache_clear()


def test_without_a_compiler_fbgemm_does_it(
    without: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build.library.cache_clear()
    monkeypatch.setenv(build.SWITCH, "0")
    caplog.set_level(logging.INFO, logger=build.__name__)
    store = build_rows(spec_of([(30, 4)], [0]))
    assert isinstance(store, FbgemmRows)
    assert store.passes is None
    assert "rows are looked up without compiled code: EMBANK_NATIVE=0 switches it off" in caplog.text
    batch = batch_of([(30, 4)], [0], num_bags=5, most=2, seed=0)
    twin = build_rows(spec_of([(30, 4)], [0], backend="torch"))
    torch.testing.assert_close(step(store, batch, is_joined=True), step(twin, batch, is_joined=True))


def test_without_the_threads_of_torch_fbgemm_does_it(
    without: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where torch was built with another library of threads."""
    caplog.set_level(logging.INFO, logger=build.__name__)
    monkeypatch.setattr(passes, "_parallel", lambda: None)
    store = build_rows(spec_of([(30, 4)], [0]))
    assert isinstance(store, FbgemmRows)
    assert store.passes is None
    assert "without compiled code: torch's threads have no GOMP_parallel" in caplog.text
