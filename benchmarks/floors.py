"""What this machine does at most: bytes and operations per second, the floor under the figures of the benchmarks.

    python benchmarks/floors.py [--threads 1 2]

copy      `target.copy_(source)` of 256 MiB: n bytes are read and n written, 2 n are counted
triad     `torch.add(a, b, alpha=s, out=c)` of the same: n bytes are read twice and written once, 3 n are counted
gather    `torch.index_select` of random rows of 64 bytes from a table of 1 GiB (a row of 16 numbers in fp32): the rows'
          bytes are counted once, those of ids and of the result are not; so the rate says what random access costs
matmul    `torch.mm` of two square matrices: a product of m x k and k x n has 2 m k n operations; in fp32, and in bf16
          where the cores have instructions for it

A rate is that of the quickest of some rounds, since a floor is what can be done. `make bench` measures once, before all
else, and hands the rates to its parts; a benchmark that runs alone measures them itself, which takes some seconds.
Writes benchmarks/results/floors.json.

What a benchmark counts is a `records.Work`: an amount, in words what it holds, and the rate it is divided by. A floor
leaves out what caches may hold (weights of a network, rows of hot ids that come again in a batch), so it is never above
what an ideal program takes, and is often well below it.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import machine
import records
import torch
from torch import Tensor

GIVEN = "EMBANK_BENCH_FLOORS"
"""Environment variable: a floors.json whose rates are taken in place of new ones."""
ROW_BYTES = 64
MATRIX = 1536
KINDS = {
    "copy": ("GB/s", "a copy in memory"),
    "triad": ("GB/s", "a + s b in memory"),
    "gather": ("GB/s", "a gather of random rows of 64 bytes"),
    "matmul fp32": ("GFLOP/s", "a square product in fp32"),
    "matmul bf16": ("GFLOP/s", "a square product in bf16"),
}
"""Of each rate its unit, which counts in 10**9, and in words what was measured."""


class Rates:
    """What was measured with some threads.

    Args:
        threads: of torch.
        per_second: bytes or operations by kind; bf16 is missing where the cores can't multiply it.
    """

    def __init__(self, threads: int, per_second: dict[str, float]) -> None:
        self.threads, self.per_second = threads, per_second

    def work(self, kind: str, amount: float, counts: str) -> records.Work | None:
        """Work at one of the rates; None if this machine has no such rate."""
        if kind not in self.per_second:
            return None
        told = f"{KINDS[kind][1]}, {self.threads} thread{'s' * (self.threads > 1)}"
        unit = "FLOP" if kind.startswith("matmul") else "bytes"
        return records.Work(counts=counts, amount=amount, unit=unit, rate=self.per_second[kind], rate_of=told)


@cache
def rates(threads: int) -> Rates:
    """The rates with so many threads: given ones, or measured now."""
    given = os.environ.get(GIVEN)
    if given:
        found = {
            str(r.case["kind"]): r.value * 1e9
            for run in records.load(Path(given)).runs
            for r in run.records
            if r.case["threads"] == threads
        }
        if found:
            return Rates(threads, found)
    return Rates(threads, {kind: max(rounds) for kind, rounds in measured(threads).items()})


def measured(threads: int, *, mib: int = 256, rounds: int = 7) -> dict[str, list[float]]:
    """Bytes or operations per second of each kind, round by round."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        works = {**memory_works(mib), **matrix_works()}
        found: dict[str, list[float]] = {kind: [] for kind in works}
        for number in range(rounds + 1):  # the first touches every page
            for kind, (amount, work) in works.items():
                begun = time.perf_counter()
                work()
                if number:
                    found[kind].append(amount / (time.perf_counter() - begun))
        return found
    finally:
        torch.set_num_threads(before)


def memory_works(mib: int) -> dict[str, tuple[int, Callable[[], object]]]:
    """By kind the bytes that count, and what moves them."""
    numel = mib * 2**20 // 4
    a, b, c = torch.ones(numel), torch.ones(numel), torch.zeros(numel)
    rows_RD = torch.ones(4 * mib * 2**20 // ROW_BYTES, ROW_BYTES // 4)
    ids_N = torch.randint(len(rows_RD), (len(rows_RD) // 8,), generator=torch.Generator().manual_seed(0))
    taken_ND = torch.empty(len(ids_N), ROW_BYTES // 4)
    return {
        "copy": (2 * a.nbytes, lambda: c.copy_(a)),
        "triad": (3 * a.nbytes, lambda: torch.add(a, b, alpha=0.5, out=c)),
        "gather": (taken_ND.nbytes, lambda: torch.index_select(rows_RD, 0, ids_N, out=taken_ND)),
    }


def matrix_works(size: int = MATRIX) -> dict[str, tuple[int, Callable[[], object]]]:
    """By kind the operations, and what does them."""

    def product(dtype: torch.dtype) -> Callable[[], Tensor]:
        x, y, out = (torch.ones(size, size, dtype=dtype) for _ in range(3))
        return lambda: torch.mm(x, y, out=out)

    kinds = {"matmul fp32": torch.float32}
    if machine.multiplies_bf16():
        kinds["matmul bf16"] = torch.bfloat16
    return {kind: (2 * size**3, product(dtype)) for kind, dtype in kinds.items()}


# What is counted


def mlp_flops(sizes: Sequence[int], *, rows: int) -> int:
    """Of the products of a chain of linear layers, forward: 2 m n each for every row."""
    return sum(2 * rows * m * n for m, n in zip(sizes, sizes[1:], strict=False))


def dlrm_flops(*, rows: int, dense: int, fields: int, dim: int, bottom: Sequence[int], top: Sequence[int]) -> int:
    """Of the matrix products of DLRM's forward pass; `bottom` and `top` without their last layers.

    The interaction is the product of the fields + 1 vectors with themselves, of which the triangle is kept.
    """
    vectors = fields + 1
    crossed = dim + vectors * (vectors - 1) // 2
    interaction = 2 * rows * vectors * vectors * dim
    return mlp_flops([dense, *bottom, dim], rows=rows) + interaction + mlp_flops([crossed, *top, 1], rows=rows)


def dlrm_step_flops(*, rows: int, dense: int, fields: int, dim: int, bottom: Sequence[int], top: Sequence[int]) -> int:
    """Of a training step: forward; backward as much for the gradients of weights and as much for those of inputs, but
    for the batch's numbers, whose gradient nobody needs, and for the interaction, a product with a symmetric gradient,
    for which one product does."""
    forward = dlrm_flops(rows=rows, dense=dense, fields=fields, dim=dim, bottom=bottom, top=top)
    return 3 * forward - mlp_flops([dense, bottom[0]], rows=rows) - 2 * rows * (fields + 1) ** 2 * dim


def step_row_bytes(*, distinct: float, dim: int) -> float:
    """Of a training step's rows in row-wise Adagrad: each distinct row read once and written once, and its word of
    optimizer state too."""
    return distinct * 2 * (4 * dim + 4)


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--mib", type=int, default=256, help="of a copied array; smaller ones lie in caches")
    parser.add_argument("--rounds", type=int, default=7)
    records.argument(parser)
    args = parser.parse_args()
    run = records.begin(settings=records.settings_of(args))
    for threads in args.threads:
        for kind, values in measured(threads, mib=args.mib, rounds=args.rounds).items():
            run.records.append(rate_record(kind, threads, values))
    path = records.save("floors", run, title=TITLE, about=ABOUT, out=args.out)
    print(json.dumps({f"{r.case['kind']}, {r.case['threads']}": f"{r.value:.1f} {r.unit}" for r in run.records}))
    print(path)


def rate_record(kind: str, threads: int, values: list[float]) -> records.Record:
    """The quickest round."""
    scaled = [value / 1e9 for value in values]
    spread: dict[str, Any] = {"low": min(scaled), "high": max(scaled), "spread": "range", "rounds": len(scaled)}
    return records.record(
        "rate",
        KINDS[kind][0],
        case={"kind": kind, "threads": threads},
        better="higher",
        value=max(scaled),
        statistic="best",
        **spread,
    )


TITLE = "What the machine does at most"
ABOUT = (
    "Bytes moved and operations done per second by nothing but that, the quickest round; floors below are amounts "
    "divided by such rates, measured in the same run of the benchmarks."
)

if __name__ == "__main__":
    main()
