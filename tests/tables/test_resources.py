"""Running out of memory or threads is said as such."""

import errno
import resource
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import SafetensorError

from embank.pipelines.data.loading.ahead import Clock, _stop_all, run_ahead
from embank.pipelines.data.loading.loader import Loader
from embank.tables import CheckpointError, WorkError, load_bundle
from embank.tables.ids.vocabulary import Vocabulary
from embank.tables.storage.resources import exhausted, out_of, refuse_exhausted
from tests.data.prepared import write_prepared


def caused(error: BaseException, *, by: BaseException) -> BaseException:
    error.__cause__ = by
    return error


OUT = [
    (MemoryError(), "memory"),
    (pa.ArrowMemoryError("malloc of size 64 failed"), "memory"),
    (OSError(errno.ENOMEM, "Cannot allocate memory", "rows.bin"), "memory"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "memory"),
    (
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        "memory",
    ),
    (ImportError("libarrow.so.2600: failed to map segment from shared object"), "memory"),
    (SafetensorError("Error while mapping: Cannot allocate memory (os error 12)"), "memory"),
    (RuntimeError("can't start new thread"), "threads"),
    (OSError(errno.EAGAIN, "Resource temporarily unavailable"), "threads"),
    (pl.exceptions.PanicException("could not spawn threads: ThreadPoolBuildError, thread pool"), "threads"),
    (caused(ValueError("damaged"), by=MemoryError()), "memory"),
    (ValueError("out of memory of ours"), None),
    (OSError(errno.ENOSPC, "No space left on device"), None),
    (pa.ArrowInvalid("Parquet magic bytes not found"), None),
]


@pytest.mark.parametrize(("error", "what"), OUT, ids=[f"{type(error).__name__}-{what}" for error, what in OUT])
def test_what_has_run_out(error: BaseException, what: str | None) -> None:
    assert exhausted(error) == what
    if what is None:
        refuse_exhausted(error, doing="nothing")
        return
    with pytest.raises(WorkError, match=rf"out of {what}: .* The process was reading 'a'\.") as caught:
        refuse_exhausted(error, doing="reading 'a'")
    assert caught.value.exit_code == 1


def test_a_limit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2**30, 2**31))
    assert out_of("threads") == (
        "out of threads: this process may use 1,024 MiB of address space (`ulimit -v`), which threads and mapped "
        "files take too. Raise the limit."
    )


def fail(*_: object, **__: object) -> None:
    raise pa.ArrowMemoryError("realloc of size 268435456 failed")


def test_data_is_not_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_prepared(tmp_path / "data", rows={"train": 40, "valid": 10, "test": 10})
    loader = Loader(tmp_path / "data", "train", batch_size=8, shuffle=False)
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", fail)
    with pytest.raises(WorkError, match=r"out of memory: .* The process was reading .*train/part-0000\d\.parquet"):
        next(loader.epoch(0))
    monkeypatch.setattr(pq, "ParquetFile", fail)
    with pytest.raises(WorkError, match="out of memory"):
        Loader(tmp_path / "data", "train", batch_size=8, shuffle=False)
    monkeypatch.setattr(pl, "read_parquet", lambda *_, **__: np.empty(2**58))
    with pytest.raises(MemoryError):
        Vocabulary.load(tmp_path / "data/vocab/user.parquet")


def test_a_bundle_is_not_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from embank.tables import TableCollection, TableSpec, save_bundle
    from embank.tables.serving import bundle

    tables = TableCollection([TableSpec(name="t", num_embeddings=9, embedding_dim=4, feature_names=["f"])])
    save_bundle(tmp_path / "bundle", tables)

    def refuse(*_: object, **__: object) -> None:
        raise SafetensorError("Cannot allocate memory (os error 12)")

    monkeypatch.setattr(bundle, "safe_open", refuse)
    with pytest.raises(WorkError, match=r"out of memory: .* The process was reading '.*tables\.safetensors'"):
        load_bundle(tmp_path / "bundle")
    monkeypatch.setattr(bundle, "safe_open", lambda *_, **__: (tmp_path / "none").open())
    with pytest.raises(CheckpointError, match="can't be read: No such file or directory"):
        load_bundle(tmp_path / "bundle")


def test_a_thread_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        next(run_ahead((number for number in range(3)), depth=1, clock=Clock()))
    _stop_all()  # as at the interpreter's end
