"""The disk tier: a table that exceeds memory, prefetch against none, disk against memory.

Run: python benchmarks/tiers.py [--rows 200000000] [--small-rows 20000000] [--folder runs/tiers]
Three parts, all through `TableCollection` on FBGEMM with row-wise Adagrad and a small network, bags of 26 Zipf ids,
batches made by a thread four ahead, as the trainer does it:

scale     a table of --rows rows on the disk: time to create, samples/s from a cold page cache on, peak anonymous memory
          (asserted)
prefetch  on against off on the same table: cold (the files' pages are dropped before each repeat) and warm (the same
          batches again), alternating; and a check that losses and rows are equal to the bit
memory    disk against memory with --small-rows rows, warm, alternating

Writes benchmarks/results/tiers.json. The files are removed at the end, however it ends.
"""

import argparse
import mmap
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import floors
import numpy as np
import records
import torch
import torch.nn.functional as F
from torch import nn
from torchrec import KeyedJaggedTensor

from embank.pipelines.data.loading.ahead import Clock, run_ahead
from embank.pipelines.data.synth.zipf import Zipf
from embank.tables import PhysicalTable, RowInit, RowTier, TableCollection, TableSpec
from embank.tables.rows.disk.mapped import MappedFile
from embank.tables.rows.disk.pages import Pages, Region
from embank.tables.rows.shards import TableShard

DIM, LOOKUPS, AHEAD = 16, 26, 4
PAGE = os.sysconf("SC_PAGE_SIZE")


class AnonymousMemory:
    """Peak of this process's anonymous memory (RssAnon), looked at every few milliseconds."""

    def __enter__(self) -> "AnonymousMemory":
        self.peak, self.ended = 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.ended.wait(0.02):
            self.peak = max(self.peak, self.now())

    @staticmethod
    def now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.thread.join()


class Training:
    """A table and a small network."""

    def __init__(self, rows: int, tier: RowTier) -> None:
        spec = TableSpec(name="items", num_embeddings=rows, embedding_dim=DIM, feature_names=["items"])
        self.tables = TableCollection([spec], tier=tier)
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(DIM, 64), nn.ReLU(), nn.Linear(64, 1))
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01)

    @property
    def files(self) -> list[MappedFile]:
        return [file for store in self.tables.row_stores() for file in store.space.files]

    def flush(self) -> None:
        for file in self.files:
            file.flush()

    def evict(self) -> None:
        for file in self.files:
            file.evict()

    def run(self, batches: Sequence[KeyedJaggedTensor], *, prefetch: bool) -> tuple[list[float], list[float]]:
        """Trains on batches; seconds and loss of each step."""

        def made() -> Iterator[Any]:
            for batch in batches:
                yield (self.tables.address_ahead if prefetch else self.tables.address)(batch)

        seconds, losses = [], []
        last = time.perf_counter()
        for addressed in run_ahead(made(), depth=AHEAD, clock=Clock()):
            values = self.tables(addressed).values()
            logits = self.network(values).squeeze(1)
            loss = F.binary_cross_entropy_with_logits(logits, (torch.arange(logits.numel()) % 4 == 0).float())
            self.optimizer.zero_grad()
            loss.backward()
            self.tables.update_rows()
            self.optimizer.step()
            losses.append(loss.item())
            now = time.perf_counter()
            seconds.append(now - last)
            last = now
        return seconds, losses


def zipf_batches(rows: int, count: int, *, args: argparse.Namespace, seed: int) -> list[KeyedJaggedTensor]:
    """Bags of 26 ids; id 0 is the most frequent, as after `embank prepare`."""
    zipf, generator = Zipf(rows, args.alpha), np.random.default_rng(seed)
    lengths = torch.full((args.batch_size,), LOOKUPS, dtype=torch.int32)
    return [
        KeyedJaggedTensor(
            keys=["items"],
            values=torch.from_numpy(zipf.ranks(generator.random(args.batch_size * LOOKUPS)).astype(np.int64)),
            lengths=lengths,
        )
        for _ in range(count)
    ]


def touched(batches: Sequence[KeyedJaggedTensor]) -> dict[str, float]:
    """What a step must touch, on average: distinct rows, and pages (of rows and of state) that no step before has
    touched."""
    rows, pages, seen_rows, seen_state = 0, 0, np.empty(0, np.int64), np.empty(0, np.int64)
    for batch in batches:
        ids = np.unique(batch.values().numpy())
        rows += ids.size
        own = np.unique(ids * DIM * 4 // PAGE)
        state = np.unique(ids * 4 // PAGE)
        pages += own.size - np.isin(own, seen_rows).sum() + state.size - np.isin(state, seen_state).sum()
        seen_rows, seen_state = np.union1d(seen_rows, own), np.union1d(seen_state, state)
    num = len(batches)
    return {
        "distinct_rows": rows / num,
        "row_and_state_bytes": rows * (DIM + 1) * 4 / num,
        "new_pages": int(pages) / num,
        "new_page_bytes": int(pages) * PAGE / num,
    }


def plain_speeds(folder: Path, *, nbytes: int) -> dict[str, float]:
    """What creating a table is made of: writing (zeros, past the page cache) and drawing initial values."""
    begun = time.perf_counter()
    zeros = torch.zeros(2**21)
    chunks = (zeros[: min(zeros.numel(), nbytes // 4 - start)] for start in range(0, nbytes // 4, zeros.numel()))
    MappedFile(folder, "zeros", numel=nbytes // 4, chunks=chunks)
    written = time.perf_counter() - begun
    begun = time.perf_counter()
    table = PhysicalTable(name="t", num_embeddings=nbytes // (4 * DIM), embedding_dim=DIM, init=RowInit(scale=0.01))
    for _ in TableShard.whole(table).initial_chunks(seed=0):
        pass
    return {
        "disk_writes_bytes_per_s": nbytes / written,
        "initial_values_bytes_per_s": nbytes / (time.perf_counter() - begun),
    }


def reads_at_once_per_s(file: MappedFile, *, seconds: float) -> float:
    """Random pages of a file that is not in memory, tens of thousands asked for at once: a full queue."""
    generator, pages, rates, end = np.random.default_rng(3), -(-file.nbytes // PAGE), [], time.perf_counter() + seconds
    while not rates or time.perf_counter() < end:
        file.evict()
        reader = Pages([file], [[Region(file=0, start=0, stride=PAGE, nbytes=1)]])
        ids = generator.integers(0, pages, min(30_000, pages // 4))
        begun = time.perf_counter()
        num_read = reader.fetch(ids, np.array([ids.size]))
        rates.append(num_read / (time.perf_counter() - begun))
    return statistics.median(rates)


def reads_in_turn_per_s(file: MappedFile, *, seconds: float) -> float:
    """Random pages past the page cache, one after the other."""
    descriptor = os.open(file.path, os.O_RDONLY | os.O_DIRECT)
    buffer, pages, done, end = mmap.mmap(-1, PAGE), file.nbytes // PAGE, 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        os.preadv(descriptor, [buffer], random.randrange(pages) * PAGE)
        done += 1
    os.close(descriptor)
    return done / seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "repeats": len(values)}


def equality(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Prefetch on, prefetch off and memory on the same batches: losses and rows to the bit."""
    rows = min(args.rows, 2_000_000)
    batches = zipf_batches(rows, 10, args=args, seed=7)
    tiers = {
        "on": RowTier(name="disk", directory=folder),
        "off": RowTier(name="disk", directory=folder),
        "memory": RowTier(),
    }
    losses, weights = {}, {}
    for name, tier in tiers.items():
        training = Training(rows, tier)
        training.evict()
        losses[name] = training.run(batches, prefetch=name == "on")[1]
        weights[name] = training.tables.weights()["items"]
    equal = all(losses[n] == losses["on"] and torch.equal(weights[n], weights["on"]) for n in tiers)
    if not equal:
        raise SystemExit("prefetch on, prefetch off and memory differ")
    return {"rows": rows, "steps": len(batches), "equal_to_the_bit": equal}


def scale_and_prefetch(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The large table, then prefetch on and off in turn."""
    with AnonymousMemory() as memory:
        plain = plain_speeds(folder, nbytes=min(2**31, args.rows * DIM * 4))
        begun = time.perf_counter()
        training = Training(args.rows, RowTier(name="disk", directory=folder))
        created = time.perf_counter() - begun
        created_peak = memory.peak
        nbytes = training.tables.nbytes("training")
        disk = plain | {
            "reads_at_once_per_s": reads_at_once_per_s(training.files[0], seconds=args.disk_seconds),
            "reads_in_turn_per_s": reads_in_turn_per_s(training.files[0], seconds=args.disk_seconds),
        }
        training.evict()
        long = zipf_batches(args.rows, args.scale_steps, args=args, seed=1)
        seconds, _ = training.run(long, prefetch=True)
        tail = seconds[len(seconds) // 2 :]
        scale = {
            "rows": args.rows,
            "held_bytes": nbytes,
            "create_s": created,
            "create_bytes_per_s": nbytes / created,
            "create_floor_s": nbytes / plain["disk_writes_bytes_per_s"]
            + args.rows * DIM * 4 / plain["initial_values_bytes_per_s"],
            "create_peak_anonymous_bytes": created_peak,
            "steps": len(long),
            "samples_per_s": args.batch_size * len(long) / sum(seconds),
            "samples_per_s_second_half": args.batch_size * len(tail) / sum(tail),
        }
        cold, warm = {True: [], False: []}, {True: [], False: []}
        bytes_of_step = []
        for repeat in range(args.repeats):
            batches = zipf_batches(args.rows, args.steps, args=args, seed=100 + repeat)
            bytes_of_step.append(touched(batches))
            for prefetch in (True, False) if repeat % 2 else (False, True):
                training.evict()
                cold[prefetch].append(sum(training.run(batches, prefetch=prefetch)[0]) / len(batches))
                training.flush()
                training.run(batches, prefetch=prefetch)  # a clean page takes a fault before it can be written again
                warm[prefetch].append(sum(training.run(batches, prefetch=prefetch)[0]) / len(batches))
            print(
                f"repeat {repeat}: "
                + ", ".join(
                    f"{name} {1e3 * times[True][-1]:.0f} ms with, {1e3 * times[False][-1]:.0f} ms without prefetch"
                    for name, times in (("cold", cold), ("warm", warm))
                ),
                flush=True,
            )
    scale["peak_anonymous_bytes"] = memory.peak
    mean = {key: statistics.mean(entry[key] for entry in bytes_of_step) for key in bytes_of_step[0]}
    result = {
        "scale": scale,
        "disk": disk,
        "touched_by_a_step": mean,
        "cold": compare(cold),
        "warm": compare(warm),
    }
    if memory.peak > args.limit_gib * 2**30:
        raise SystemExit(f"anonymous memory reached {memory.peak:,} bytes, more than {args.limit_gib} GiB")
    return result


def compare(times: dict[bool, list[float]]) -> dict[str, Any]:
    return {
        "step_s_with_prefetch": spread(times[True]),
        "step_s_without": spread(times[False]),
        "speedup": spread([off / on for on, off in zip(times[True], times[False], strict=True)]),
    }


def against_memory(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Warm: every page that is timed has been touched in a pass before."""
    kinds = {"memory": RowTier(), "disk": RowTier(name="disk", directory=folder)}
    trainings = {name: Training(args.small_rows, tier) for name, tier in kinds.items()}
    batches = zipf_batches(args.small_rows, args.warm_steps, args=args, seed=5)
    times: dict[str, list[float]] = {"memory": [], "disk": [], "disk_without_prefetch": []}
    for training in trainings.values():
        training.run(batches, prefetch=True)
    for repeat in range(args.repeats):
        order = list(times)
        for name in order[repeat % 3 :] + order[: repeat % 3]:
            training = trainings["memory" if name == "memory" else "disk"]
            seconds, _ = training.run(batches, prefetch=name != "disk_without_prefetch")
            times[name].append(statistics.median(seconds))
    moved = 2 * touched(batches)["row_and_state_bytes"]
    return {
        "rows": args.small_rows,
        "held_bytes": trainings["disk"].tables.nbytes("training"),
        "steps": args.warm_steps,
        "touched_by_a_step": touched(batches),
        "median_step_s": {name: spread(values) for name, values in times.items()},
        "disk_of_memory": spread([m / d for m, d in zip(times["memory"], times["disk"], strict=True)]),
        "disk_without_prefetch_of_memory": spread(
            [m / d for m, d in zip(times["memory"], times["disk_without_prefetch"], strict=True)]
        ),
        "moved_bytes": moved,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000_000)
    parser.add_argument("--small-rows", type=int, default=20_000_000)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--alpha", type=float, default=1.05, help="Zipf exponent of the ids")
    parser.add_argument("--scale-steps", type=int, default=200)
    parser.add_argument("--steps", type=int, default=25, help="of each cold and each warm run")
    parser.add_argument("--warm-steps", type=int, default=60, help="of each run against memory")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--disk-seconds", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit-gib", type=float, default=4.0, help="of anonymous memory")
    parser.add_argument("--folder", type=Path, default=Path("runs/tiers"), help="on the disk that is measured")
    records.argument(parser)
    return parser.parse_args()


def main() -> None:
    """Measure and write."""
    args = arguments()
    torch.set_num_threads(args.threads)
    args.folder.mkdir(parents=True, exist_ok=True)
    run = records.begin(settings=records.settings_of(args) | {"system": system_settings()})
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result["prefetch_changes_nothing"] = equality(Path(folder), args)
        result |= scale_and_prefetch(Path(folder), args)
        result["against_memory"] = against_memory(Path(folder), args)
    run.records = recorded(result, rates=floors.rates(args.threads))
    run.detail = {"prefetch changes nothing": result["prefetch_changes_nothing"]}
    print(f"written: {records.save('tiers', run, title=TITLE, about=ABOUT, out=args.out)}")


def system_settings() -> dict[str, str]:
    names = ["vm/dirty_ratio", "vm/dirty_background_ratio", "vm/dirty_expire_centisecs"]
    return {name: Path("/proc/sys", name).read_text().strip() for name in names}


def recorded(result: dict[str, Any], *, rates: floors.Rates | None) -> list[records.Record]:
    """The large table, cold and warm with prefetch and without, then disk against memory."""
    scale, disk, small = (result[key] for key in ("scale", "disk", "against_memory"))
    large: records.Case = {"table rows": scale["rows"]}
    once: dict[str, Any] = {"case": large, "statistic": "once"}
    apart = records.peer("writing and drawing apart", scale["create_s"] / scale["create_floor_s"])
    found = [
        records.record("table with state", "bytes", case=large, statistic="exact", value=scale["held_bytes"]),
        records.record("creating it", "s", better="lower", value=scale["create_s"], peers=[apart], **once),
        records.record("peak anonymous memory", "bytes", better="lower", value=scale["peak_anonymous_bytes"], **once),
        records.record(
            "training from a cold cache", "samples/s", better="higher", value=scale["samples_per_s"], **once
        ),
        records.record(
            "its second half", "samples/s", better="higher", value=scale["samples_per_s_second_half"], **once
        ),
        *(
            records.record(f"random pages read {name}", "/s", better="higher", value=disk[f"reads_{key}_per_s"], **once)
            for name, key in (("all at once", "at_once"), ("in turn", "in_turn"))
        ),
    ]
    pages = records.Work(
        counts="pages of rows and state that no step before has touched",
        amount=result["touched_by_a_step"]["new_pages"],
        unit="reads",
        rate=disk["reads_at_once_per_s"],
        rate_of="random pages of the file, tens of thousands asked for at once",
    )
    for kind in ("cold", "warm"):
        part = result[kind]
        quicker = {
            key: 1 / part["speedup"][other] for key, other in (("median", "median"), ("min", "max"), ("max", "min"))
        }
        with_it, without = part["step_s_with_prefetch"], part["step_s_without"]
        own = {"case": large | {"pages": kind}, "better": "lower"}
        peers, works = [records.peer("no prefetch", quicker)], [pages] if kind == "cold" else []
        figures = records.ranged(with_it, rounds=with_it["repeats"], scale=1e3)
        found.append(records.record("step with prefetch", "ms", peers=peers, works=works, **own, **figures))
        figures = records.ranged(without, rounds=without["repeats"], scale=1e3)
        found.append(records.record("step without", "ms", **own, **figures))
    return found + _against_memory(small, rates)


def _against_memory(small: dict[str, Any], rates: floors.Rates | None) -> list[records.Record]:
    """Warm steps; the ratios are of speeds, turned into ratios of times."""
    found = []
    counts = "rows and state that a warm step touches, each distinct one read and written once"
    work = None if rates is None else rates.work("copy", small["moved_bytes"], counts)
    ratios = {"disk": "disk_of_memory", "disk_without_prefetch": "disk_without_prefetch_of_memory"}
    for name, spread_s in small["median_step_s"].items():
        case = {"table rows": small["rows"], "pages": "warm", "tier": name.replace("_", " ")}
        peers = []
        if name in ratios:
            of = small[ratios[name]]
            slower = {"median": 1 / of["median"], "min": 1 / of["max"], "max": 1 / of["min"]}
            peers.append(records.peer("memory", slower))
        figures = records.ranged(spread_s, rounds=spread_s["repeats"], scale=1e3)
        fields = {"case": case, "better": "lower", "peers": peers, "works": [work]}
        found.append(records.record("step", "ms", **fields, **figures))
    return found


TITLE = "The disk tier"
ABOUT = (
    "Steps of a small network on bags of 26 Zipf ids from one table of dim 16, row-wise Adagrad, batches made four "
    "ahead: a table that exceeds memory, prefetch against none with its pages dropped (cold) and all in memory (warm), "
    "and disk against memory on a smaller table."
)

if __name__ == "__main__":
    main()
