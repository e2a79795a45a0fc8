"""Rows looked up and updated in host memory: embank's compiled passes against FBGEMM's module, nothing around them.

    python benchmarks/rows.py [--rounds 9] [--threads 2] [--batches 4] [--cases 17]

A step is one lookup of a batch and the update of its rows from a gradient of ones. The peer is
`SplitTableBatchedEmbeddingBagsCodegen` with the same tables, ids, optimizer and threads, as TorchRec's collections call
it; both get their ids as FBGEMM takes them, and freed memory stays with the process (as `embank train` has it). They
take turns within a round. Ids are drawn by `uniform ** 3`, so that low ones come often.

The floor counts random reads of memory: each lookup's row once, each distinct row and the memory line of its optimizer
state once more for the update. Caches hold some of them, so a figure may come below it.

Writes benchmarks/results/rows.json.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import floors
import records
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor

from embank.pipelines.runs.memory import keep_freed_memory
from embank.tables import RowOptimizer
from embank.tables.rows import StoreSpec, build_rows
from embank.tables.rows.physical import PhysicalTable, RowInit
from embank.tables.rows.shards import TableShard

LINE_BYTES = 64
LR = 0.02
OPTIMIZERS = {
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "sgd": EmbOptimType.EXACT_SGD,
}


class Case(NamedTuple):
    """Tables alike, and a batch."""

    tables: int
    rows: int
    dim: int
    bags: int = 4096
    ids: int = 1
    optimizer: str = "rowwise_adagrad"

    def told(self) -> dict[str, Any]:
        """As a record has it."""
        names = {"bags": "bags of each", "ids": "ids of a bag", "rows": "rows of each"}
        return {names.get(name, name): value for name, value in self._asdict().items()}


CASES = [
    Case(26, 100_000, 16),
    Case(26, 400_000, 16),
    Case(26, 400_000, 16, optimizer="adagrad"),
    Case(26, 400_000, 16, optimizer="sgd"),
    Case(26, 400_000, 4),
    Case(26, 100_000, 64),
    Case(26, 100_000, 128),
    Case(26, 100_000, 16, bags=1),
    Case(26, 100_000, 16, bags=64),
    Case(26, 100_000, 16, bags=512),
    Case(26, 100_000, 16, bags=65_536),
    Case(1, 10_000_000, 16, bags=106_496),
    Case(1, 1_000_000, 64, ids=50),
    Case(8, 100_000, 16, bags=1024, ids=20),
    Case(500, 1000, 16, bags=1024),
    Case(26, 20, 16),
    Case(8, 5000, 512, bags=1024),
]


class Batch(NamedTuple):
    """Ids as FBGEMM takes them."""

    indices: Tensor
    offsets: Tensor

    @classmethod
    def draw(cls, case: Case, *, seed: int) -> "Batch":
        """Of all tables of a case."""
        count = case.tables * case.bags * case.ids
        drawn = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return cls((drawn**3 * case.rows).long(), torch.arange(0, count + 1, case.ids))


def compiled(case: Case) -> Callable[[Tensor, Tensor], Tensor]:
    """embank's store."""
    shards = [
        TableShard.whole(
            PhysicalTable(name=f"t{number}", num_embeddings=case.rows, embedding_dim=case.dim, init=RowInit(scale=0.01))
        )
        for number in range(case.tables)
    ]
    optimizer = RowOptimizer(name=case.optimizer, lr=LR)
    return build_rows(StoreSpec(shards=shards, lookups=list(range(case.tables)), optimizer=optimizer))


def fbgemm(case: Case) -> Callable[[Tensor, Tensor], Tensor]:
    """FBGEMM's module."""
    module = SplitTableBatchedEmbeddingBagsCodegen(
        [(case.rows, case.dim, EmbeddingLocation.HOST, ComputeDevice.CPU)] * case.tables,
        optimizer=OPTIMIZERS[case.optimizer],
        learning_rate=LR,
        pooling_mode=PoolingMode.SUM,
        bounds_check_mode=BoundsCheckMode.NONE,
    )
    module.init_embedding_weights_uniform(-0.01, 0.01)
    return module


def seconds(look_up: Callable[[Tensor, Tensor], Tensor], batches: list[Batch], *, repeats: int) -> tuple[float, float]:
    """Time of a lookup, and of an update."""
    forward = backward = 0.0
    for _ in range(repeats):
        for batch in batches:
            begun = time.perf_counter()
            rows = look_up(batch.indices, batch.offsets)
            there = time.perf_counter()
            gradient = torch.ones_like(rows)
            asked = time.perf_counter()
            rows.backward(gradient)
            backward += time.perf_counter() - asked
            forward += there - begun
    count = repeats * len(batches)
    return forward / count, backward / count


@keep_freed_memory()
def measure(case: Case, *, rounds: int, num_batches: int) -> dict[str, Any]:
    """Times of both, in rounds."""
    batches = [Batch.draw(case, seed=seed) for seed in range(num_batches)]
    rivals = {"embank": compiled(case), "fbgemm": fbgemm(case)}
    repeats = max(1, min(200, 1_000_000 // (batches[0].indices.numel() * case.dim // 16)))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in rivals}
    for number in range(rounds + 1):
        for name in sorted(rivals, reverse=bool(number % 2)):
            times[name].append(seconds(rivals[name], batches, repeats=repeats))
    starts = torch.arange(case.tables).repeat_interleave(case.bags * case.ids) * case.rows
    distinct = statistics.mean(torch.unique(batch.indices + starts).numel() for batch in batches)
    row_bytes = 4 * case.dim
    state = {"rowwise_adagrad": LINE_BYTES, "adagrad": row_bytes, "sgd": 0}[case.optimizer]
    return {
        "case": case.told(),
        "seconds": {name: values[1:] for name, values in times.items()},  # the first round warms up
        "random_bytes": [batches[0].indices.numel() * row_bytes, distinct * (row_bytes + state)],
    }


def recorded(entries: list[dict[str, Any]], rates: floors.Rates) -> list[records.Record]:
    """Lookup, update and both, against FBGEMM's."""
    found = []
    for entry in entries:
        own, theirs = entry["seconds"]["embank"], entry["seconds"]["fbgemm"]
        parts = {"lookup": (0,), "update": (1,), "step": (0, 1)}
        for metric, which in parts.items():
            mine = [sum(one[i] for i in which) for one in own]
            other = [sum(one[i] for i in which) for one in theirs]
            peer = records.peer("FBGEMM's module", [a / b for a, b in zip(mine, other, strict=True)])
            amount = sum(entry["random_bytes"][i] for i in which)
            works = [rates.work("gather", amount, "random reads of rows and optimizer state")]
            figures = records.figures(mine, scale=1e3)
            found.append(
                records.record(metric, "ms", case=entry["case"], better="lower", peers=[peer], works=works, **figures)
            )
    return found


TITLE = "Rows looked up and updated"
ABOUT = (
    "One batch looked up and its rows updated from a gradient of ones, no model around it: the compiled passes of "
    "embank's row store in turn with FBGEMM's training module, same tables, ids, optimizer and threads."
)


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--cases", type=int, default=len(CASES), help="the first so many")
    records.argument(parser)
    args = parser.parse_args()
    run = records.begin(settings=records.settings_of(args))
    torch.set_num_threads(args.threads)
    entries = []
    for case in CASES[: args.cases]:
        entries.append(measure(case, rounds=args.rounds, num_batches=args.batches))
        ratios = [
            statistics.median(a[i] / b[i] for a, b in zip(*entries[-1]["seconds"].values(), strict=True))
            for i in (0, 1)
        ]
        print(f"{entries[-1]['case']}: lookup {ratios[0]:.2f} and update {ratios[1]:.2f} of FBGEMM's time", flush=True)
    run.records, run.detail = recorded(entries, floors.rates(args.threads)), entries
    print(f"written: {records.save('rows', run, title=TITLE, about=ABOUT, out=args.out)}")


if __name__ == "__main__":
    main()
