"""The loader's threads: they run ahead within a bound, and end."""

import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embank.pipelines.data.loading.loader import Loader


def test_address_runs_on_the_loader_thread(mixed: Path) -> None:
    threads = []

    def address(kjt: KeyedJaggedTensor) -> list[int]:
        threads.append(threading.current_thread().name)
        return kjt.length_per_key()

    loader = Loader(mixed, "train", batch_size=100, shuffle=False, address=address)
    plain = Loader(mixed, "train", batch_size=100, shuffle=False)
    for ours, theirs in zip(loader.epoch(0), plain.epoch(0), strict=True):
        assert ours.sparse == theirs.sparse.length_per_key()
    assert set(threads) == {"embank-loader"}


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_an_error_on_the_thread_reaches_the_consumer_after_the_good_batches(plain: Path, prefetch: int) -> None:
    calls = []

    def address(kjt: KeyedJaggedTensor) -> KeyedJaggedTensor:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("hash table is full at batch 3")
        return kjt

    loader = Loader(plain, "train", batch_size=10, shuffle=False, address=address, prefetch=prefetch)
    batches = loader.epoch(0)
    assert [next(batches).labels.numel() for _ in range(2)] == [10, 10]
    with pytest.raises(RuntimeError, match="hash table is full at batch 3"):
        next(batches)
    assert len(calls) == 3


@pytest.mark.parametrize("how", ["break", "close", "raise", "let go"])
def test_leaving_early_stops_the_threads(plain: Path, how: str) -> None:
    loader = Loader(plain, "train", batch_size=2, shuffle=True, buffer_rows=10)
    batches = loader.epoch(0)
    began = time.perf_counter()
    if how == "raise":
        with pytest.raises(KeyboardInterrupt):
            _interrupted(loader)
    else:
        for _ in batches:
            break
        if how == "close":
            batches.close()  # type: ignore[attr-defined]
    del batches
    assert time.perf_counter() - began < 2.0
    assert len(list(loader.epoch(0))) == 50  # and the loader still works


def _interrupted(loader: Loader) -> None:
    for batch in loader.epoch(0):
        assert len(batch.labels) == 2
        raise KeyboardInterrupt


def test_ctrl_c_while_waiting_for_a_batch(plain: Path) -> None:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals reach the main thread only")

    def slow(kjt: KeyedJaggedTensor) -> KeyedJaggedTensor:
        time.sleep(0.5)
        return kjt

    loader = Loader(plain, "train", batch_size=2, shuffle=True, address=slow)
    main = threading.get_ident()
    timer = threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGINT))
    began = time.perf_counter()
    timer.start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            list(loader.epoch(0))
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.perf_counter() - began < 2.0  # not the 25 seconds of the whole epoch


def test_an_epoch_that_is_never_started_starts_no_thread(plain: Path) -> None:
    iterator = Loader(plain, "train", batch_size=2, shuffle=True).epoch(0)
    assert "embank-loader" not in [thread.name for thread in threading.enumerate()]
    del iterator


def test_the_thread_stays_within_its_bound(plain: Path) -> None:
    made = []

    def address(kjt: KeyedJaggedTensor) -> KeyedJaggedTensor:
        made.append(1)
        return kjt

    batches = Loader(plain, "train", batch_size=2, shuffle=False, address=address, prefetch=2).epoch(0)
    next(batches)
    time.sleep(0.2)
    assert len(made) <= 1 + 2 + 1  # taken, waiting, in the making
    batches.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_seconds_are_counted(plain: Path, prefetch: int) -> None:
    def slow(kjt: KeyedJaggedTensor) -> KeyedJaggedTensor:
        time.sleep(0.01)
        return kjt

    loader = Loader(plain, "train", batch_size=10, shuffle=True, address=slow, prefetch=prefetch)
    list(loader.epoch(0))
    assert loader.seconds_waited > 0.05
    assert 0 < loader.seconds_busy < 5


def test_batches_are_made_on_one_thread_and_nothing_else_is(mixed: Path) -> None:
    """A second team of OpenMP's threads would keep those of the step from waiting awake."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        seen: list[int] = []

        def address(features: KeyedJaggedTensor) -> KeyedJaggedTensor:
            seen.append(torch.get_num_threads())
            return features

        batches = list(Loader(mixed, "train", batch_size=32, shuffle=True, address=address).epoch(0))
        assert seen == [1] * len(batches)
        assert torch.get_num_threads() == 3
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [3]
    finally:
        torch.set_num_threads(before)
