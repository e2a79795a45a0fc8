"""Ways to bring scattered pages of a mapped file into memory, and what each does to the disk: why the disk tier is
built as it is.

Run: python benchmarks/page_warming.py [--gib 4] [--pages 20000] [--folder runs/pages]
Cold: the file has been dropped from memory. Mapped after: what touching the pages costs a lookup afterwards. Warm: the
same call when all pages are in memory. Beside: with another Python thread at work. Then: bytes written back after one
float in each of 2,000 pages has changed, by how the file was made. Writes benchmarks/results/page_warming.json; the
files are removed.
"""

import argparse
import mmap
import os
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import records
import torch

from embank.tables.rows.disk.mapped import MappedFile
from embank.tables.rows.disk.pages import PAGE_BYTES, Pages, Region

NUM_CHANGED = 2000


class Trial:
    """A file and random pages of it."""

    def __init__(self, folder: Path, *, gib: float, num_pages: int) -> None:
        numel = int(gib * 2**28)
        zeros = torch.zeros(2**21)
        chunks = (zeros[: numel - start] for start in range(0, numel, zeros.numel()))
        self.file = MappedFile(folder, "pages", numel=numel, chunks=chunks)
        self.samples = self.file.tensor[:: PAGE_BYTES // 4]
        self.num_pages = num_pages
        self.draw(0)

    def draw(self, seed: int) -> None:
        self.pages = np.unique(np.random.default_rng(seed).integers(0, len(self.samples), self.num_pages))

    def touch(self, pages: np.ndarray | None = None) -> None:
        self.samples[torch.from_numpy(self.pages if pages is None else pages)]

    def ask(self) -> None:
        for page in self.pages.tolist():
            self.file.will_need(page * PAGE_BYTES, PAGE_BYTES)

    def as_prefetch_does(self) -> None:
        reader = Pages([self.file], [[Region(file=0, start=0, stride=PAGE_BYTES, nbytes=1)]])
        reader.fetch(self.pages, np.array([len(self.pages)]))

    def in_threads(self, num_threads: int) -> None:
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(self.touch, np.array_split(self.pages, 4 * num_threads)))

    def ways(self) -> dict[str, Callable[[], object]]:
        return {
            "touch, one after the other": self.touch,
            "touch from 32 threads": lambda: self.in_threads(32),
            "posix_fadvise (WILLNEED) each": self.ask,
            "posix_fadvise each, then touch (prefetch does it)": self.as_prefetch_does,
        }


def clocked(act: Callable[[], object]) -> dict[str, float]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    begun = time.perf_counter()
    act()
    wall = time.perf_counter() - begun
    now = resource.getrusage(resource.RUSAGE_SELF)
    return {"wall_ms": 1e3 * wall, "cpu_ms": 1e3 * (now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime)}


class Neighbour:
    """A thread of small torch calls, as the training loop is one: how often it gets through them."""

    def __enter__(self) -> "Neighbour":
        self.num_calls, self.ended, self.begun = 0, False, time.perf_counter()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()
        return self

    def _work(self) -> None:
        matrix = torch.eye(32)
        while not self.ended:
            matrix @ matrix
            self.num_calls += 1

    def __exit__(self, *error: object) -> None:
        self.calls_per_ms = self.num_calls / (1e3 * (time.perf_counter() - self.begun))
        self.ended = True
        self.thread.join()


def beside(trial: Trial, repeats: int) -> dict[str, Any]:
    """The cold call and another thread at once: what each takes from the other."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ["nothing", *trial.ways()]}
    for _ in range(repeats):
        for name in found:
            trial.file.evict()
            act = (lambda: time.sleep(0.3)) if name == "nothing" else trial.ways()[name]
            with Neighbour() as neighbour:
                took = clocked(act)["wall_ms"]
            found[name].append((took, neighbour.calls_per_ms))
    return {
        name: {"cold_ms": statistics.median(t for t, _ in v), "calls_per_ms": statistics.median(c for _, c in v)}
        for name, v in found.items()
    }


def compare_ways(trial: Trial, repeats: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in trial.ways()}
    for repeat in range(repeats):
        trial.draw(repeat)
        for name, act in trial.ways().items():
            trial.file.evict()
            cold, after, warm = clocked(act), clocked(trial.touch), clocked(act)
            found[name].append(
                {
                    "cold_ms": cold["wall_ms"],
                    "cold_cpu_ms": cold["cpu_ms"],
                    "touch_ms": after["wall_ms"],
                    "warm_ms": warm["wall_ms"],
                }
            )
    return {
        name: {key: [f(entry[key] for entry in entries) for f in (statistics.median, min, max)] for key in entries[0]}
        for name, entries in found.items()
    }


def read_ahead(trial: Trial) -> dict[str, float]:
    """What a page fault costs with the system's read-ahead, and without it (MADV_RANDOM); milliseconds for 500
    pages."""
    result = {}
    for name, advice in {"MADV_NORMAL": mmap.MADV_NORMAL, "MADV_RANDOM": mmap.MADV_RANDOM}.items():
        trial.file.evict()
        trial.file._mapping.madvise(advice)
        result[name] = clocked(lambda: trial.touch(trial.pages[:: max(1, len(trial.pages) // 500)]))["wall_ms"]
    return result


def written_bytes() -> int:
    """Bytes that the machine's disks have been asked to write: run it on a quiet machine."""
    stats = [line.split() for line in Path("/proc/diskstats").read_text().splitlines()]
    disks = [
        path.name for path in Path("/sys/block").iterdir() if not path.name.startswith(("loop", "ram", "zram", "dm-"))
    ]
    return 512 * sum(int(fields[9]) for fields in stats if fields[2] in disks)


def amplification(folder: Path, nbytes: int) -> dict[str, Any]:
    """Bytes written back for 2,000 changed pages of a file that was written through the page cache, and of one written
    past it."""
    changed = np.unique(np.random.default_rng(1).integers(0, nbytes // PAGE_BYTES, NUM_CHANGED))
    result = {"changed_bytes": len(changed) * PAGE_BYTES}
    for name, flag in {"through_the_page_cache": 0, "past_it": os.O_DIRECT}.items():
        path = folder / name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flag)
        os.posix_fallocate(descriptor, 0, nbytes)
        buffer = mmap.mmap(-1, 2**22)
        for start in range(0, nbytes, len(buffer)):
            os.pwrite(descriptor, buffer, start)
        os.fsync(descriptor)
        mapping = mmap.mmap(descriptor, nbytes)
        mapping.madvise(mmap.MADV_RANDOM)
        floats = torch.frombuffer(mapping, dtype=torch.float32)
        before = written_bytes()
        floats[torch.from_numpy(changed) * (PAGE_BYTES // 4)] += 1
        os.fsync(descriptor)
        result[f"{name}_bytes"] = written_bytes() - before
        os.close(descriptor)
        path.unlink()
    return result


def recorded(result: dict[str, Any]) -> list[records.Record]:
    """Ways to warm pages, read-ahead, and what changed pages write back."""
    found = []
    heads = {"cold_ms": "cold", "cold_cpu_ms": "of it CPU", "touch_ms": "a lookup's touch after", "warm_ms": "warm"}
    for way, entry in result["ways"].items():
        for key, (median, low, high) in entry.items():
            spread = records.ranged({"median": median, "min": low, "max": high}, rounds=result["repeats"])
            found.append(records.record(heads[key], "ms", case={"way": way}, better="lower", **spread))
    for way, entry in result["beside_another_thread"].items():
        case, rounds = {"beside a thread of small torch calls": way}, result["repeats"]
        found.append(records.record("cold", "ms", case=case, better="lower", value=entry["cold_ms"], rounds=rounds))
        calls = records.record("calls of that thread", "/ms", case=case, better="higher", value=entry["calls_per_ms"])
        found.append(calls)
    for advice, value in result["read_ahead_500_pages_ms"].items():
        case = {"read-ahead": advice}
        faults = {"value": value, "statistic": "once"}
        found.append(records.record("faults on 500 scattered pages", "ms", case=case, better="lower", **faults))
    written = result["written_back"]
    for name, key in (("through the page cache", "through_the_page_cache_bytes"), ("past it", "past_it_bytes")):
        work = records.Work(counts="pages that changed", amount=written["changed_bytes"], unit="bytes")
        found.append(
            records.record(
                "written back",
                "bytes",
                case={"file made": name},
                better="lower",
                value=written[key],
                statistic="once",
                works=[work],
            )
        )
    return found


TITLE = "Ways to bring pages of a mapped file into memory"
ABOUT = (
    "Scattered pages of a file that has been dropped from memory, the same when all are in memory, and the bytes that "
    "a changed number in each of 2,000 pages writes back: why the disk tier is built as it is."
)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--pages", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runs/pages"))
    records.argument(parser)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    run = records.begin(settings=records.settings_of(args))
    result: dict[str, Any] = {"num_pages": args.pages, "repeats": args.repeats}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        trial = Trial(Path(folder), gib=args.gib, num_pages=args.pages)
        result["ways"] = compare_ways(trial, args.repeats)
        result["beside_another_thread"] = beside(trial, args.repeats)
        result["read_ahead_500_pages_ms"] = read_ahead(trial)
        del trial
        result["written_back"] = amplification(Path(folder), int(args.gib * 2**28) // 2**22 * 2**22)
    run.records = recorded(result)
    print(f"written: {records.save('page_warming', run, title=TITLE, about=ABOUT, out=args.out)}")


if __name__ == "__main__":
    main()
