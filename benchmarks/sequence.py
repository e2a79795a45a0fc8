"""Memory tables of a language model (the shape of Engram, arXiv 2601.07372): lookups and updates of
`SequenceCollection`, in tokens/s.

    python benchmarks/sequence.py
    python benchmarks/sequence.py --rows 20000 --small-rows 5000 --repeats 3

16 heads of dim 80, 2 M rows each, row-wise Adagrad, on the disk tier (about 10.4 GB of files in a temporary folder
under --work, removed at the end), and at --small-rows, which fits into memory several times: the disk and the memory
tier, de-duplication, the torch backend with lazy Adam, and two plain loops over nn.Embedding(sparse=True), one table
per head: torch.optim.SparseAdam, and row-wise Adagrad written by hand.

Ids are those of Zipf-distributed n-grams, the first half of the heads of a frequent kind (as bigrams), the second of a
rarer one (as trigrams), each n-gram hashed once per head; contestants of one size get the same ids. Every contestant
lives in a process of its own for the whole run and they are measured in turn, in an order that turns with the round, on
pages that earlier passes have touched. A lookup is `tables(ids)` without gradients, a step adds the backward pass from
a given gradient and the update; both include addressing. Ratios are taken within a round.

The floor of a step is what must move: ids, rows, gradients of rows, and one word of optimizer state per distinct row,
each once, at the speed of a memory copy measured in the same rounds. Times are on the wall clock and, for machines that
others use as well, in CPU time. RssAnon is what a process holds besides mapped files; its peak is sampled by the
parent. Writes benchmarks/results/sequence.json.
"""

import argparse
import os
import statistics
import tempfile
import threading
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import records
import torch

NUM_GRAMS = 2**24
EXPONENTS = (1.15, 1.05)  # of the two kinds of n-grams
NUM_BATCHES = 4
LR, EPS = 0.02, 1e-8
CONTESTANTS = {
    "disk": "SequenceCollection, fbgemm, row-wise Adagrad, disk tier, all rows",
    "disk-small": "the same at the small size",
    "memory": "the same in memory",
    "memory-huge-pages": "the same in memory, process started with THP_MEM_ALLOC_ENABLE=1",
    "memory-dedupe": "the same in memory, dedupe=True",
    "memory-adam": "SequenceCollection, torch backend, lazy Adam, in memory",
    "loop-rowwise-adagrad": "nn.Embedding(sparse=True) per head, row-wise Adagrad by hand",
    "loop-sparse-adam": "nn.Embedding(sparse=True) per head, torch.optim.SparseAdam",
}


def zipf(num: int, exponent: float, generator: torch.Generator) -> torch.Tensor:
    """Ranks 1 .. NUM_GRAMS with density rank ** -exponent, by the inverse of its distribution function."""
    uniform = torch.rand(num, generator=generator, dtype=torch.double)
    power = 1 - exponent
    return ((uniform * (NUM_GRAMS**power - 1) + 1) ** (1 / power)).long()


def batches(args: argparse.Namespace, tokens: int, rows: int) -> list[torch.Tensor]:
    """Ids [B, T, H] of a few batches: the same n-grams for every number of rows."""
    from embank.tables import hash_rows

    generator = torch.Generator().manual_seed(tokens)
    result = []
    for _ in range(NUM_BATCHES):
        grams = [zipf(tokens, exponent, generator) for exponent in EXPONENTS]
        kinds = [grams[2 * head // args.heads] for head in range(args.heads)]
        ids_NH = torch.stack([hash_rows(kind, num_rows=rows, salt=head) for head, kind in enumerate(kinds)], dim=1)
        result.append(ids_NH.view(-1, args.context, args.heads))
    return result


class Collection:
    """Ours."""

    def __init__(self, args: argparse.Namespace, rows: int, name: str, folder: Path) -> None:
        from embank.tables import RowOptimizer, RowTier, SequenceCollection, TableSpec

        specs = [
            TableSpec(name=f"head{h}", num_embeddings=rows, embedding_dim=args.dim, feature_names=["layer"])
            for h in range(args.heads)
        ]
        adam = name == "memory-adam"
        self.tables = SequenceCollection(
            specs,
            backend="torch" if adam else "fbgemm",
            optimizer=RowOptimizer(name="adam" if adam else "rowwise_adagrad", lr=LR, eps=EPS),
            tier=RowTier(name="disk", directory=folder) if name.startswith("disk") else RowTier(),
            dedupe=name == "memory-dedupe",
        )
        for store in self.tables.row_stores():
            store.flush()
        self.nbytes = self.tables.nbytes("training")

    def address(self, ids: torch.Tensor) -> None:
        self.tables.address({"layer": ids})

    def lookup(self, ids: torch.Tensor) -> torch.Tensor:
        return self.tables({"layer": ids})["layer"]

    def update(self) -> None:
        self.tables.update_rows()


class Loop:
    """A plain loop: one nn.Embedding with sparse gradients per head."""

    def __init__(self, args: argparse.Namespace, rows: int, name: str) -> None:
        self.tables = [torch.nn.Embedding(rows, args.dim, sparse=True) for _ in range(args.heads)]
        weights = [table.weight for table in self.tables]
        self.adam = torch.optim.SparseAdam(weights, lr=LR, eps=EPS) if name == "loop-sparse-adam" else None
        self.sums = [torch.zeros(rows) for _ in weights] if self.adam is None else []
        state = sum(s.nbytes for s in self.sums) if self.adam is None else 2 * sum(w.nbytes for w in weights)
        self.nbytes = sum(w.nbytes for w in weights) + state

    def lookup(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.cat([table(ids[:, :, h]) for h, table in enumerate(self.tables)], dim=2)

    @torch.no_grad()
    def update(self) -> None:
        if self.adam is not None:
            self.adam.step()
            self.adam.zero_grad()
            return
        for table, sums in zip(self.tables, self.sums, strict=True):
            grad = table.weight.grad.coalesce()
            rows, values = grad.indices()[0], grad.values()
            sums[rows] += values.square().mean(1)
            table.weight.index_add_(0, rows, values / (sums[rows].sqrt() + EPS)[:, None], alpha=-LR)
            table.weight.grad = None


def work(pipe: Connection, args: argparse.Namespace, name: str, folder: Path) -> None:
    """A contestant's process: builds, then measures whenever it is asked to."""
    torch.set_num_threads(args.threads)
    if name == "memcpy":
        serve_copies(pipe)
        return
    rows = args.rows if name == "disk" else args.small_rows
    begun = time.perf_counter()
    made = Loop(args, rows, name) if name.startswith("loop") else Collection(args, rows, name, folder)
    pipe.send({"nbytes": made.nbytes, "build_s": time.perf_counter() - begun})
    ids = {tokens: batches(args, tokens, rows) for tokens in args.tokens}
    while (tokens := pipe.recv()) is not None:
        gradient = torch.full((tokens // args.context, args.context, args.heads * args.dim), 1e-3)
        clocks = []
        for step in range(args.steps):
            batch = ids[tokens][step % NUM_BATCHES]
            clocks.append(now())
            if isinstance(made, Collection):
                made.address(batch)
            clocks.append(now())
            with torch.no_grad():
                made.lookup(batch)
            clocks.append(now())
            made.lookup(batch).backward(gradient)
            made.update()
            clocks.append(now())
        pipe.send({kind: mean_between(clocks, start) for start, kind in enumerate(("address", "lookup", "step"))})


def now() -> tuple[float, float]:
    """Wall clock and CPU time of this process."""
    return time.perf_counter(), time.process_time()


def mean_between(clocks: list[tuple[float, float]], start: int) -> dict:
    """Mean seconds between readings start and start + 1 of every step, which takes four."""
    pairs = list(zip(clocks[start::4], clocks[start + 1 :: 4], strict=True))
    return {kind: statistics.mean(b[i] - a[i] for a, b in pairs) for i, kind in enumerate(("wall_s", "cpu_s"))}


def serve_copies(pipe: Connection) -> None:
    """Seconds per byte of a copy between two warm buffers, counting each byte once."""
    source, target = torch.ones(2**26), torch.zeros(2**26)
    pipe.send({"nbytes": 2 * source.nbytes, "build_s": 0.0})
    while pipe.recv() is not None:
        clock = now()
        for _ in range(4):
            target.copy_(source)
        seconds = mean_between([clock, now()] * 2, 0)
        pipe.send({"copy": {kind: value / 4 / source.nbytes for kind, value in seconds.items()}})


class Memory(threading.Thread):
    """Samples RssAnon of the contestants, and keeps their peaks."""

    def __init__(self, pids: dict[str, int]) -> None:
        super().__init__(daemon=True)
        self.pids, self.peaks = pids, dict.fromkeys(pids, 0)

    def run(self) -> None:
        while True:
            for name, pid in list(self.pids.items()):
                try:
                    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                except OSError:
                    continue
                held = [int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")]
                self.peaks[name] = max(self.peaks[name], *held, 0)
            time.sleep(0.02)


def measure(args: argparse.Namespace, folder: Path) -> tuple[list[dict], dict]:
    """Rounds of every contestant once, after one that does not count; and what each one holds."""
    context = get_context("spawn")
    names = ["memcpy", *args.contestants]
    pipes, processes, held = {}, {}, {}
    memory = Memory({})
    memory.start()
    for name in names:
        ours, theirs = context.Pipe()
        processes[name] = context.Process(target=work, args=(theirs, args, name, folder / name), daemon=True)
        os.environ["THP_MEM_ALLOC_ENABLE"] = "1" if name == "memory-huge-pages" else "0"
        processes[name].start()
        theirs.close()
        memory.peaks[name] = 0
        memory.pids[name] = processes[name].pid
        pipes[name] = ours
        held[name] = ours.recv()
        print(f"{name}: built in {held[name]['build_s']:.0f} s, {held[name]['nbytes'] / 2**30:.2f} GiB", flush=True)
    rounds = []
    for tokens in args.tokens:
        for repeat in range(-1, args.repeats):
            shift = repeat % len(names)
            for name in names[shift:] + names[:shift]:
                pipes[name].send(tokens)
                seconds = pipes[name].recv()
                if repeat >= 0:
                    rounds.append({"tokens": tokens, "repeat": repeat, "name": name, **seconds})
            print(f"{tokens:,} tokens, round {repeat}", flush=True)
    for name, pipe in pipes.items():
        pipe.send(None)
        processes[name].join()
        held[name]["peak_rss_anon_bytes"] = memory.peaks[name]
    return rounds, held


def must_move(args: argparse.Namespace, tokens: int, rows: int) -> dict:
    """Bytes of a step, and the share of distinct rows among its ids (mean over the batches)."""
    distinct = [sum(ids[:, :, h].unique().numel() for h in range(args.heads)) for ids in batches(args, tokens, rows)]
    num_ids, num_distinct = tokens * args.heads, statistics.mean(distinct)
    row_bytes = 4 * args.dim * num_ids
    return {
        "lookup": 8 * num_ids + row_bytes,
        "step": 8 * num_ids + 2 * row_bytes + 4 * num_distinct,
        "distinct_share": num_distinct / num_ids,
    }


def summarize(args: argparse.Namespace, rounds: list[dict]) -> list[dict]:
    """Per batch size and contestant: tokens/s, and time as a multiple of the memory tier's, round by round."""
    out = []
    for tokens in args.tokens:
        here = [r for r in rounds if r["tokens"] == tokens]
        times = {name: [r for r in here if r["name"] == name] for name in ["memcpy", *args.contestants]}
        for name in args.contestants:
            rows = args.rows if name == "disk" else args.small_rows
            floor = must_move(args, tokens, rows)
            entry = {"tokens": tokens, "name": name, "rows": rows, "bytes": floor}
            for kind in ("lookup", "step"):
                entry |= spread(f"{kind}_tokens_per_s", [tokens / r[kind]["wall_s"] for r in times[name]])
                for clock in ("wall_s", "cpu_s") if "memory" in times else ():
                    mine, base = ([r[kind][clock] for r in times[one]] for one in (name, "memory"))
                    entry |= spread(f"{kind}_over_memory_{clock}", quotients(mine, base))
            entry |= spread("address_share_cpu_s", [r["address"]["cpu_s"] / r["step"]["cpu_s"] for r in times[name]])
            out.append(entry)
    return out


def quotients(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(name: str, values: list[float]) -> dict:
    return {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def recorded(report: dict[str, Any]) -> list[records.Record]:
    """Lookups and steps of each contestant and batch size, then what each one holds."""
    rounds, found = report["repeats"], []
    works = {"lookup": "ids and rows", "step": "ids, rows, gradients of rows, a word of state for each distinct row"}
    for entry in report["summary"]:
        case = {"tokens": entry["tokens"], "contestant": entry["name"], "rows per head": entry["rows"]}
        for kind, counts in works.items():
            name = f"{kind}_tokens_per_s"
            peers = [
                records.peer(f"memory, {clock}", _inverse(entry, f"{kind}_over_memory_{clock}_s"))
                for clock in ("wall", "cpu")
                if f"{kind}_over_memory_{clock}_s" in entry
            ]
            work = records.Work(
                counts=f"{counts}, each once",
                amount=entry["bytes"][kind] / entry["tokens"],
                unit="bytes",
                rate=report["copy_bytes_per_s"],
                rate_of="a copy in memory in the same rounds, one thread, each byte counted once",
            )
            figures = records.ranged(_spread(entry, name), rounds=rounds)
            fields = {"case": case, "better": "higher", "peers": peers, "works": [work]}
            found.append(records.record(kind, "tokens/s", **fields, **figures))
        share = records.ranged(_spread(entry, "address_share_cpu_s"), rounds=rounds)
        found.append(records.record("addressing, share of a step's CPU", "", case=case, better="lower", **share))
    for name, what in CONTESTANTS.items():
        if name in report["held"]:
            held, case = report["held"][name], {"contestant": name, "is": what}
            peak = {"value": held["peak_rss_anon_bytes"] / 2**30, "statistic": "once"}
            size = {"value": held["nbytes"] / 2**30, "statistic": "exact"}
            found.append(records.record("rows and state", "GiB", case=case, **size))
            found.append(records.record("peak anonymous memory", "GiB", case=case, better="lower", **peak))
    return found


def _spread(entry: dict[str, Any], name: str) -> dict[str, float]:
    return {"median": entry[name], "min": entry[f"{name}_min"], "max": entry[f"{name}_max"]}


def _inverse(entry: dict[str, Any], name: str) -> dict[str, float]:
    """A ratio of times as one of speeds."""
    spread = _spread(entry, name)
    return {"median": 1 / spread["median"], "min": 1 / spread["max"], "max": 1 / spread["min"]}


TITLE = "Memory tables of a language model"
ABOUT = (
    "Lookups (without gradients) and steps (with backward pass and update) of SequenceCollection on ids of "
    "Zipf-distributed n-grams, and of plain loops over nn.Embedding; each contestant in a process of its own, warm. Of "
    "memory: speed over that of the memory tier in the same round, on the wall clock and in CPU time."
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000, help="per head, on the disk tier")
    parser.add_argument("--small-rows", type=int, default=100_000, help="per head, where contestants are compared")
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--dim", type=int, default=80)
    parser.add_argument("--context", type=int, default=256, help="T")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192], help="B * T")
    parser.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=8, help="per contestant and round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/sequence"), help="where the temporary folder goes")
    parser.add_argument("--name", default="sequence", help="of the result file")
    records.argument(parser)
    args = parser.parse_args()
    for tokens in args.tokens:
        if tokens % args.context:
            parser.error(f"--tokens {tokens} is not a multiple of --context {args.context}")
    return args


def main() -> None:
    """Build, measure, write; the tables' files go in any case."""
    args = arguments()
    run = records.begin(settings=records.settings_of(args))
    args.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        rounds, held = measure(args, Path(folder))
    copies = [r["copy"]["wall_s"] for r in rounds if r["name"] == "memcpy"]
    report = {"repeats": args.repeats, "held": held, "summary": summarize(args, rounds)}
    report["copy_bytes_per_s"] = 1 / statistics.median(copies)
    run.records, run.detail = recorded(report), {"distinct share": _distinct(report), "rounds": rounds}
    records.save(args.name, run, title=TITLE, about=ABOUT, out=args.out)
    for record in run.records:
        print(record.case, record.metric, f"{record.value:,.2f} {record.unit}")


def _distinct(report: dict[str, Any]) -> dict[str, float]:
    """Distinct rows / ids by contestant and batch size."""
    return {f"{e['name']}, {e['tokens']} tokens": e["bytes"]["distinct_share"] for e in report["summary"]}


if __name__ == "__main__":
    main()
