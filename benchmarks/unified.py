"""What one table for all features costs: a training step of `unified` against plain tables.

Run: python benchmarks/unified.py [--rows 10000000] [--lookups 1 2 4] [--rounds 9] [--threads 2]
26 Criteo-shaped features of dim 16 in all, batch 4,096, Zipf ids, row-wise Adagrad on FBGEMM; a step is the lookup and
the update of the rows from a gradient of ones, nothing else, so that no network hides the difference. For each number
of lookups c there are four rivals:

plain     one table of dim 16 for each feature: the same total dim
split     c tables of dim 16 / c for each feature: the same number of lookups besides
hashed    the same with hashed ids, whose frequent rows lie far apart as those of unified do, not side by side as
          frequency-ranked ids
fbgemm    `split` by FBGEMM's kernels, as TorchRec looks rows up, not by embank's compiled passes

All have the same bytes of rows. They take turns within a round; ratios are taken within a round, of rows per second
(above 1: unified is faster). Addressing runs on the loader's thread in training and is timed by itself. Writes
benchmarks/results/unified.json.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import floors
import records
import torch
from method_steps import DIM, Inputs26, touched_bytes
from torchrec import KeyedJaggedTensor

from embank.compression import unified_specs
from embank.pipelines.runs.memory import keep_freed_memory
from embank.tables import RowOptimizer, TableCollection, TableSpec, method_class
from embank.tables.rows.fbgemm import FbgemmRows

RIVALS = {
    "plain": "plain tables",
    "split": "as many plain lookups",
    "hashed": "as many hashed lookups",
    "fbgemm": "as many plain lookups by FBGEMM",
}
OPTIMIZER = RowOptimizer(name="rowwise_adagrad", lr=0.02)


class Contestant:
    """A collection and the batches that it looks up."""

    def __init__(self, specs: list[TableSpec], batches: list[KeyedJaggedTensor], *, by_fbgemm: bool) -> None:
        self.tables = TableCollection(specs, optimizer=OPTIMIZER)
        for store in self.tables.row_stores() if by_fbgemm else ():
            assert isinstance(store, FbgemmRows)
            store.passes = None
        self.batches = batches
        self.addressed = [self.tables.address(batch) for batch in batches]

    @keep_freed_memory()
    def steps(self) -> None:
        """Every batch looked up and updated once."""
        for addressed in self.addressed:
            values = self.tables(addressed).values()
            values.backward(torch.ones_like(values))

    def addresses(self) -> None:
        """Every batch addressed once."""
        for batch in self.batches:
            self.tables.address(batch)


def contestants(drawn: Inputs26, lookups: int) -> dict[str, Contestant]:
    """Those of one number of lookups."""
    width = DIM // lookups
    rows = sum(spec.num_embeddings for spec in drawn.specs)
    plain = [
        TableSpec(name=s.name, num_embeddings=s.num_embeddings, embedding_dim=DIM, feature_names=[s.name])
        for s in drawn.specs
    ]
    split = [
        TableSpec(name=f"{s.name}/{part}", num_embeddings=s.num_embeddings, embedding_dim=width, feature_names=[s.name])
        for s in drawn.specs
        for part in range(lookups)
    ]
    hashed = [replace(s, method="hash", options=method_class("hash").Config(num_rows=s.num_embeddings)) for s in split]
    shared = unified_specs(
        rows=rows * lookups,
        width=width,
        lookups={s.name: lookups for s in drawn.specs},
        num_embeddings={s.name: s.num_embeddings for s in drawn.specs},
        exact_below=0,
    )
    batches = [batch.sparse for batch in drawn.batches]
    own = {"unified": shared, "plain": plain, "split": split, "hashed": hashed, "fbgemm": split}
    return {name: Contestant(specs, batches, by_fbgemm=name == "fbgemm") for name, specs in own.items()}


def seconds(work: Callable[[], None]) -> float:
    """Wall time."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def measure(drawn: Inputs26, lookups: int, args: argparse.Namespace) -> dict:
    """Ratios of one number of lookups."""
    found = contestants(drawn, lookups)
    times: dict[str, list[float]] = {name: [] for name in found}
    for number in range(args.rounds + 1):
        order = list(found)
        for name in order[number % len(order) :] + order[: number % len(order)]:
            times[name].append(seconds(found[name].steps) / len(drawn.batches))
    kept = {name: values[1:] for name, values in times.items()}  # the first round warms up
    torch.set_num_threads(1)
    address = {name: statistics.median(seconds(c.addresses) for _ in range(3)) for name, c in found.items()}
    torch.set_num_threads(args.threads)
    return {
        "lookups": lookups,
        "width": DIM // lookups,
        "touched_bytes": {name: touched_bytes(one.tables, one.addressed[0]) for name, one in found.items()},
        "milliseconds": {name: records.figures(values, scale=1e3) for name, values in kept.items()},
        "address_milliseconds": {name: 1e3 * value / len(drawn.batches) for name, value in address.items()},
        "ratios": {rival: [a / b for a, b in zip(kept[rival], kept["unified"], strict=True)] for rival in RIVALS},
    }


def recorded(entries: list[dict[str, Any]], *, rounds: int, rates: floors.Rates | None) -> list[records.Record]:
    """Steps and addresses of `unified`, against its rivals."""
    found = []
    counts = "rows: each lookup's row and gradient once, each distinct row and its state read and written once"
    for entry in entries:
        case = {"lookups": entry["lookups"], "width": entry["width"]}
        ratios = {rival: [1 / ratio for ratio in values] for rival, values in entry["ratios"].items()}
        peers = [records.peer(RIVALS[rival], values) for rival, values in ratios.items()]
        works = [] if rates is None else [rates.work("copy", entry["touched_bytes"]["unified"], counts)]
        step = entry["milliseconds"]["unified"]
        step = step if isinstance(step, dict) else {"value": step, "rounds": rounds}
        found.append(records.record("step", "ms", case=case, better="lower", peers=peers, works=works, **step))
        address = entry["address_milliseconds"]
        beside = [records.peer(RIVALS["plain"], address["unified"] / address["plain"])]
        figures = {"value": address["unified"], "rounds": 3, "peers": beside}
        found.append(records.record("addressing, one thread", "ms", case=case, better="lower", **figures))
    return found


TITLE = "Steps with one table for all features"
ABOUT = (
    "Lookup and update of rows of 26 Criteo-shaped features by unified, no network, in turn with plain tables of the "
    "same total dim, plain tables with as many lookups, and hashed tables with as many; the same bytes of rows in all."
)


def main() -> None:
    """Measures each number of lookups, then writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--lookups", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4096)
    records.argument(parser)
    args = parser.parse_args()
    run = records.begin(settings=records.settings_of(args))
    args.schedule_steps = 1
    torch.set_num_threads(args.threads)
    drawn = Inputs26.draw(args)
    entries = [measure(drawn, lookups, args) for lookups in args.lookups]
    run.records = recorded(entries, rounds=args.rounds, rates=floors.rates(args.threads))
    run.detail = entries
    records.save("unified", run, title=TITLE, about=ABOUT, out=args.out)
    for record in run.records:
        print(
            record.case, record.metric, f"{record.value:.1f} ms", *(f"{p.value:.2f} of {p.name}" for p in record.peers)
        )


if __name__ == "__main__":
    main()
