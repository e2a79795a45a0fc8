"""The disk tier: files, prefetch, and what may go wrong with them."""

import ctypes
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from embank.tables import (
    ConfigError,
    PhysicalTable,
    RowInit,
    RowOptimizer,
    RowTier,
    TableCollection,
    TableSpec,
    WorkError,
    register_method,
)
from embank.tables.rows import StoreSpec, build_rows
from embank.tables.rows.disk import mapped, pages, prefetch
from embank.tables.rows.disk.mapped import MappedFile
from embank.tables.rows.disk.pages import PAGE_BYTES, Pages, Region
from embank.tables.rows.shards import TableShard
from tests.processes import run_code
from tests.tables.batches import random_kjt
from tests.tables.products import Product

register_method("test_product", Product)

SIZES = {"user": 3000, "item": 23, "wide": 40}


def specs() -> list[TableSpec]:
    """Rows that divide a page, rows that straddle pages, rows of several pages; linear and not; shared features."""
    return [
        TableSpec(name="a/b", num_embeddings=3000, embedding_dim=16, feature_names=["user"]),
        TableSpec(name="a-b", num_embeddings=3000, embedding_dim=6, feature_names=["user"]),
        TableSpec(name="I", num_embeddings=23, embedding_dim=12, feature_names=["item"], pooling="mean"),
        TableSpec(name="W", num_embeddings=40, embedding_dim=2048, feature_names=["wide"]),
        TableSpec(name="P", num_embeddings=3000, embedding_dim=4, feature_names=["user"], method="test_product"),
    ]


def files_of(tables: TableCollection) -> list[MappedFile]:
    return [file for rows in tables.row_stores() for file in rows.space.files]


def chunks_of(values: Tensor, size: int) -> Iterator[Tensor]:
    yield from values.split(size)


def make(folder: Path, values: Tensor, *, name: str = "t", size: int = 1000) -> MappedFile:
    return MappedFile(folder, name, numel=values.numel(), chunks=chunks_of(values, size))


def resident(file: MappedFile) -> np.ndarray:
    """Which pages of a file are in memory, by the system's own account."""
    held = ctypes.create_string_buffer(-(-file.nbytes // PAGE_BYTES))
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(file.address), ctypes.c_size_t(file.nbytes), held) == 0
    return np.frombuffer(held.raw, np.uint8) & 1 == 1


def prefetchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "embank-prefetcher"]


@pytest.mark.parametrize(
    ("backend", "optimizer"),
    [
        ("fbgemm", "rowwise_adagrad"),
        ("fbgemm", "adagrad"),
        ("fbgemm", "sgd"),
        ("torch", "rowwise_adagrad"),
        ("torch", "adam"),
    ],
)
def test_prefetch_changes_nothing(backend: str, optimizer: str, tmp_path: Path) -> None:
    """Memory, disk without and disk with prefetch: outputs, rows and optimizer state to the bit, cold pages
    included."""
    tiers = [RowTier(), *(RowTier(name="disk", directory=tmp_path, prefetch=on) for on in (False, True))]
    collections = [
        TableCollection(specs(), backend=backend, optimizer=RowOptimizer(name=optimizer), tier=t) for t in tiers
    ]
    for step in range(0, 12, 3):
        kjts = [random_kjt(SIZES, batch_size=16, seed=s) for s in range(step, step + 3)]
        outputs = []
        for tables in collections:
            for file in files_of(tables):
                file.evict()
            outputs.append([])
            for addressed in [tables.address_ahead(kjt) for kjt in kjts]:
                values = tables(addressed).values()
                outputs[-1].append(values.detach().clone())
                (values - 1).square().sum().backward()
                tables.update_rows()
        for other in outputs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(outputs[0], other, strict=True))
    memory, *others = collections
    for other in others:
        assert all(torch.equal(memory.weights()[n], w) for n, w in other.weights().items())
        for name, state in other.optimizer_state().items():
            assert all(torch.equal(memory.optimizer_state()[name][k], v) for k, v in state.items())


def test_prefetch_of_other_tiers_does_nothing(tmp_path: Path) -> None:
    for tier in (RowTier(), RowTier(name="disk", directory=tmp_path, prefetch=False)):
        tables = TableCollection(specs(), tier=tier)
        tables.address_ahead(random_kjt(SIZES, batch_size=4, seed=0))
        assert not prefetchers()


@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
def test_a_prefetch_brings_in_the_pages_of_its_rows_and_no_others(backend: str, tmp_path: Path) -> None:
    """Against the definition: every byte of every row and of its state, page by page."""
    tables = TableCollection(specs()[:4], backend=backend, tier=RowTier(name="disk", directory=tmp_path))
    store, files = tables.row_stores()[0], files_of(tables)
    kjt = random_kjt(SIZES, batch_size=3, seed=1, max_bag=2)
    ids = tables.address(kjt).paths["pooled"]
    for file in files:
        file.evict()
    assert not any(resident(file).any() for file in files)
    reader = Pages(files, store.prefetcher.lookups)
    bounds = ids.offsets[:: kjt.stride()].numpy()
    num_asked = reader.fetch(ids.row_ids.numpy(), np.diff(bounds))
    expected = [np.zeros(-(-file.nbytes // PAGE_BYTES), bool) for file in files]
    for lookup, (low, high) in enumerate(zip(bounds, bounds[1:], strict=False)):
        name = store.shards[store.lookups[lookup]].table.name
        for view in (store.weights()[name], *store.optimizer_state()[name].values()):
            (number,) = [i for i, f in enumerate(files) if f.address <= view.data_ptr() < f.address + f.nbytes]
            for row in ids.row_ids[low:high].tolist():
                first = view[row].data_ptr() - files[number].address
                for byte in range(first, first + max(1, view[row].numel()) * 4):
                    expected[number][byte // PAGE_BYTES] = True
    assert [resident(file).tolist() for file in files] == [e.tolist() for e in expected]
    assert num_asked == sum(int(e.sum()) for e in expected)


def test_known_pages_are_passed_over_until_they_are_lost(tmp_path: Path) -> None:
    file = make(tmp_path, torch.zeros(256 * 1024), size=100_000)
    file.evict()
    reader = Pages([file], [[Region.of(file.tensor.view(-1, 1024), [file])]])
    generator = np.random.default_rng(0)
    every, one = np.arange(256), np.array([256])
    assert reader.fetch(every, one) == 256
    asked = [reader.fetch(generator.permutation(256), one) for _ in range(80)]
    assert not any(asked)
    assert reader.patience == pages.MAX_SAMPLED
    file.evict()
    assert reader.fetch(every, one) == 256  # seen by the sample of a batch that would have been passed over
    assert resident(file).all()
    reader.fetch(every[:128], one // 2)
    reader.fetch(every[:128], one // 2)
    reader.patience = 0
    file.evict()
    assert reader.fetch(every[:128], one // 2) == 128  # seen by the check of the known pages


def test_a_shard_without_rows(tmp_path: Path) -> None:
    """What a rank holds of a table with fewer rows than ranks."""
    tables = [PhysicalTable(name=n, num_embeddings=5, embedding_dim=8, init=RowInit(scale=1.0)) for n in "ab"]
    shards = [replace(TableShard.whole(tables[0]), num_rows=0), TableShard.whole(tables[1])]
    tier = RowTier(name="disk", directory=tmp_path)
    store = build_rows(StoreSpec(shards=shards, lookups=(0, 1), backend="torch", tier=tier))
    indices, offsets = torch.tensor([4, 1]), torch.tensor([0, 0, 2])
    store.prefetch(indices, offsets)
    assert torch.equal(store(indices, offsets)[0, 8:], store.weights()["b"][indices].sum(0))


def test_lookups_wait_for_their_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def slow(self: Pages, indices_N: np.ndarray, counts_K: np.ndarray) -> int:
        time.sleep(0.2)
        done.append(int(indices_N[0]))
        return 0

    monkeypatch.setattr(Pages, "fetch", slow)
    store = TableCollection(specs()[:1], tier=RowTier(name="disk", directory=tmp_path)).row_stores()[0]
    batches = [(torch.tensor([i]), torch.tensor([0, 1])) for i in range(3)]
    for batch in batches:
        store.prefetch(*batch)
    store(torch.tensor([7]), torch.tensor([0, 1]))  # was not prefetched: does not wait
    assert not done
    for i, batch in enumerate(batches):
        store(*batch)
        assert done == list(range(i + 1))


def test_prefetches_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    monkeypatch.setattr(Pages, "fetch", lambda *_: go.wait(30))
    store = TableCollection(specs()[:1], tier=RowTier(name="disk", directory=tmp_path)).row_stores()[0]
    given = []

    def give() -> None:
        for i in range(prefetch.MAX_WAITING + 10):
            store.prefetch(torch.tensor([i]), torch.tensor([0, 1]))
            given.append(i)

    giver = threading.Thread(target=give)
    giver.start()
    deadline = time.monotonic() + 10
    while len(given) < prefetch.MAX_WAITING + 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(given) == prefetch.MAX_WAITING + 1  # one is being followed
    go.set()
    giver.join(10)
    assert len(given) == prefetch.MAX_WAITING + 10


def test_errors_of_the_thread_surface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError("the disk is on fire")

    monkeypatch.setattr(Pages, "fetch", broken)
    tables = TableCollection(specs()[:1], tier=RowTier(name="disk", directory=tmp_path))
    addressed = tables.address_ahead(random_kjt(SIZES, batch_size=4, seed=0))
    with pytest.raises(OSError, match="the disk is on fire"):
        tables(addressed)
    with pytest.raises(OSError, match="the disk is on fire"):
        tables.prefetch(addressed)


@pytest.mark.slow
def test_the_thread_and_the_files_end_with_the_store(tmp_path: Path) -> None:
    tables = TableCollection(specs(), tier=RowTier(name="disk", directory=tmp_path))
    tables.address_ahead(random_kjt(SIZES, batch_size=4, seed=0))
    assert len(prefetchers()) == 2  # two stores: methods that are linear, and those that are not
    kept = tables.weights()["I"]
    expected = kept.clone()
    del tables
    gc.collect()
    assert not prefetchers()
    assert len(list(tmp_path.iterdir())) == 1  # that of the rows which are still looked at
    assert torch.equal(kept, expected)
    del kept
    gc.collect()
    assert not list(tmp_path.iterdir())


EXIT = """
import sys, torch
from pathlib import Path
from embank.tables import RowTier, TableCollection, TableSpec
spec = TableSpec(name="t", num_embeddings=200_000, embedding_dim=16, feature_names=["f"])
store = TableCollection([spec], tier=RowTier(name="disk", directory=Path(sys.argv[1]))).row_stores()[0]
store.space.files[0].evict()
for _ in range(20):
    store.prefetch(torch.randint(0, 200_000, (50_000,)), torch.tensor([0, 50_000]))
print(len(list(Path(sys.argv[1]).iterdir())))
if sys.argv[2] == "die":
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_the_end_of_the_process(tmp_path: Path) -> None:
    """With prefetches under way it neither hangs nor crashes, and no file is left; what a killed one leaves is taken
    over."""
    done = subprocess.run(
        [sys.executable, "-c", EXIT, str(tmp_path), "end"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
    assert not list(tmp_path.iterdir())
    done = run_code(EXIT, tmp_path, "die", cwd=tmp_path.parent)
    assert done.returncode == -9
    left = sorted(tmp_path.iterdir())
    assert len(left) == 2
    spec = TableSpec(name="t", num_embeddings=5, embedding_dim=4, feature_names=["f"])
    tables = TableCollection([spec], tier=RowTier(name="disk", directory=tmp_path))
    assert sorted(tmp_path.iterdir()) == left
    assert torch.equal(tables.weights()["t"], TableCollection([spec]).weights()["t"])
    assert not tables.optimizer_state()["t"]["sum"].any()


def test_stores_share_a_folder(tmp_path: Path) -> None:
    """Another store of the same tables, here or in another process, gets files of its own."""
    tier = RowTier(name="disk", directory=tmp_path)
    first, second = TableCollection(specs(), tier=tier), TableCollection(specs(), tier=tier)
    before = {name: rows.clone() for name, rows in second.weights().items()}
    for rows in first.weights().values():
        rows.fill_(1.0)
    assert all(torch.equal(before[name], rows) for name, rows in second.weights().items())
    paths = [file.path for tables in (first, second) for file in files_of(tables)]
    assert len(set(paths)) == len(paths) == len(list(tmp_path.iterdir()))
    code = (
        "import sys; from embank.tables.rows.disk.mapped import _claim; from pathlib import Path; "
        "print(_claim(Path(sys.argv[1]), 'x', suffix='f32')[1].name)"
    )
    make(tmp_path, torch.ones(3), name="x")  # let go of at once
    kept = make(tmp_path, torch.ones(3), name="x")
    done = run_code(code, tmp_path, cwd=tmp_path)
    assert (kept.path.name, done.stdout) == ("x.0.f32", "x.1.f32\n"), done.stderr


@pytest.mark.parametrize("numel", [1, 1023, 1024, 1025, 2048, 5000])
@pytest.mark.parametrize("direct", [True, False])
def test_files_hold_their_chunks(numel: int, direct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the sizes of chunks and buffer, and on file systems without direct writes."""
    monkeypatch.setattr(mapped, "BUFFER_BYTES", 4096)
    opened = os.open

    def without_direct(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return opened(path, flags, mode)

    if not direct:
        monkeypatch.setattr(os, "open", without_direct)
    values = torch.randn(numel)
    for size in (1, 700, 5000):
        file = make(tmp_path, values, size=size)
        assert torch.equal(file.tensor, values)
        assert file.path.stat().st_size == 4 * numel
        file.tensor.add_(1)
        file.flush()
        assert torch.equal(torch.from_file(str(file.path), size=numel), values + 1)
        file.evict()
        assert torch.equal(file.tensor, values + 1)


def test_a_file_that_was_cut(tmp_path: Path) -> None:
    tables = TableCollection(specs()[:1], tier=RowTier(name="disk", directory=tmp_path))
    kjt = random_kjt(SIZES, batch_size=4, seed=0)
    addressed = tables.address(kjt)
    (path,) = tmp_path.glob("*weights*")
    os.truncate(path, 1000)
    message = r"weights.0.f32' has 1,000 bytes of the 192,000 that the disk tier gave it; something has cut it"
    for act in (lambda: tables(kjt), lambda: tables.prefetch(addressed), tables.row_stores()[0].flush):
        with pytest.raises(WorkError, match=message):
            act()


def test_a_file_that_was_removed_does_no_harm(tmp_path: Path) -> None:
    tables = TableCollection(specs()[:1], tier=RowTier(name="disk", directory=tmp_path))
    for path in tmp_path.iterdir():
        path.unlink()
    tables(random_kjt(SIZES, batch_size=4, seed=0)).values().sum().backward()
    tables.row_stores()[0].flush()


FULL = """
import resource, sys
from pathlib import Path
from embank.tables import RowTier, TableCollection, TableSpec, WorkError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
spec = TableSpec(name="t", num_embeddings=50_000, embedding_dim=16, feature_names=["f"])
try:
    TableCollection([spec], tier=RowTier(name="disk", directory=Path(sys.argv[1])))
except WorkError as error:
    print(error)
"""


@pytest.mark.slow
def test_no_room(tmp_path: Path) -> None:
    done = run_code(FULL, tmp_path, cwd=tmp_path.parent)
    assert (
        "weights.0.f32' needs 3,200,000 bytes: File too large. Make room, or choose another folder for the disk tier"
        in done.stdout
    ), done
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"can't use the folder '.*file': File exists. Choose another"):
        TableCollection(specs(), tier=RowTier(name="disk", directory=tmp_path / "file"))


MEMORY = """
import sys
from pathlib import Path
from embank.tables import RowTier, TableCollection, TableSpec
from embank.tables.rows import fbgemm
def now(kind):
    return next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith(kind))
small = TableCollection([TableSpec(name="s", num_embeddings=100_000, embedding_dim=16, feature_names=["f"])])
before = now("RssAnon"), now("RssFile")
spec = TableSpec(name="t", num_embeddings=5_000_000, embedding_dim=16, feature_names=["f"])
tables = TableCollection([spec], tier=RowTier(name="disk", directory=Path(sys.argv[1])))
print(now("RssAnon") - before[0], now("RssFile") - before[1])
"""


@pytest.mark.slow
def test_creation_takes_little_memory(tmp_path: Path) -> None:
    """A table of 320 MB: neither anonymous memory nor a mapped page for it (FBGEMM's constructor touches nothing)."""
    done = run_code(MEMORY, tmp_path, cwd=tmp_path)
    anonymous, from_files = (int(word) for word in done.stdout.split())
    assert anonymous < 60, f"{anonymous} MiB"
    assert from_files < 30, f"{from_files} MiB"
