"""A training step of DLRM by method: the part of benchmarks/methods.py that trains.

A method's stages are timed one after the other against the same `full`, which stays in memory; between two stages the
method advances on its own. Steps are those of `embank train` (its `Stepper` and `SearchStepper`), on batches that lie
addressed in memory.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchrec import KeyedJaggedTensor

from embank.compression import share
from embank.ctr_models import CTRModel, Inputs, build_network
from embank.pipelines import TrainConfig
from embank.pipelines.data.loading.batch import Batch, Position
from embank.pipelines.data.synth.fields import table_sizes
from embank.pipelines.data.synth.zipf import Zipf
from embank.pipelines.train.step import SearchStepper, Stepper
from embank.tables import (
    Addressed,
    BudgetError,
    RowOptimizer,
    TableCollection,
    TableSpec,
    advance,
    current_stage,
    method_class,
    num_stages,
)
from embank.tables.collections.stages import after_step

NUM_DENSE, DIM = 13, 16
BOTTOM, TOP = [512, 256, 64], [512, 256]
ALPHA = 1.1
PLAIN_BELOW = 100  # ids; as `embank train` has it
CONFIG = TrainConfig(lr=1e-3, table_lr=0.02)
WINDOWS = 20  # work that comes every so many steps is measured over a schedule's 20th part
LEAST_ROUNDS = 2
OPTIONS = {"dedup": method_class("dedup").Config(similarity=1.0, num_candidates=1)}
"""Untrained blocks are all alike; merging them as the budget forces, without comparing clusters, takes seconds instead
of minutes."""


def zipf_counts(size: int, num_samples: int) -> Tensor:
    """Expected occurrences of each id, int64 [size], ranked."""
    weights = torch.arange(1, size + 1, dtype=torch.float64) ** -ALPHA
    return (weights * (num_samples / weights.sum())).long()


@dataclass(frozen=True, kw_only=True)
class Inputs26:
    """Criteo-shaped tables and batches.

    Args:
        specs: the plain tables.
        batches: ids, numeric inputs and labels; `sparse` is not addressed yet.
    """

    specs: list[TableSpec]
    batches: list[Batch]

    @classmethod
    def draw(cls, args: argparse.Namespace) -> "Inputs26":
        """Zipf ids over `args.rows` rows in all, the same for every method."""
        sizes = table_sizes(args.rows)
        names = [f"C{field + 1}" for field in range(len(sizes))]
        specs = [
            TableSpec(
                name=name,
                num_embeddings=size,
                embedding_dim=DIM,
                feature_names=[name],
                counts=zipf_counts(size, args.batch_size * args.schedule_steps),
            )
            for name, size in zip(names, sizes, strict=True)
        ]
        generator = torch.Generator().manual_seed(0)
        draws = [Zipf(size, ALPHA) for size in sizes]
        batches = [cls._batch(args, names, draws, generator, number) for number in range(args.batches)]
        return cls(specs=specs, batches=batches)

    @staticmethod
    def _batch(
        args: argparse.Namespace, names: list[str], draws: list[Zipf], generator: torch.Generator, number: int
    ) -> Batch:
        size = args.batch_size
        uniform_FB = torch.rand(len(names), size, generator=generator, dtype=torch.float64).numpy()
        ids = [torch.from_numpy(zipf.ranks(row)).long() for zipf, row in zip(draws, uniform_FB, strict=True)]
        lengths = torch.ones(len(names) * size, dtype=torch.int32)
        return Batch(
            dense=torch.rand(size, NUM_DENSE, generator=generator),
            sparse=KeyedJaggedTensor(keys=names, values=torch.cat(ids), lengths=lengths),
            labels=(torch.rand(size, generator=generator) < 0.25).float(),
            groups=None,
            position=Position(epoch=0, batch=number + 1, order="drawn"),
            num_global_rows=size,
        )


def specs_of(method: str, plain: Sequence[TableSpec], *, budget: float) -> tuple[list[TableSpec], float | None]:
    """Tables of a method within a budget over all of them, and that budget: None where the method takes none or can't
    keep it."""
    asked = [replace(spec, method=method, options=OPTIONS.get(method)) for spec in plain]
    if method_class(method).traits.allocation.takes_budget:
        try:
            return share(asked, budget=budget, plain_below=PLAIN_BELOW), budget
        except BudgetError:
            pass
    large = [spec.num_embeddings >= PLAIN_BELOW for spec in plain]
    return [own if is_large else spec for own, spec, is_large in zip(asked, plain, large, strict=True)], None


class InMemory:
    """Batches over and over, as `SearchStepper` takes a loader."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def epoch(self, number: int, *, start: Position | None) -> Iterator[Batch]:
        yield from self.batches


class Trained:
    """A model on tables in some stage of their method, with its batches addressed."""

    def __init__(self, tables: TableCollection, drawn: Inputs26, args: argparse.Namespace) -> None:
        self.tables, self.schedule_steps = tables, args.schedule_steps
        self.sparse = [batch.sparse for batch in drawn.batches]
        torch.manual_seed(0)
        inputs = Inputs(names=tuple(s.name for s in drawn.specs), dims=(DIM,) * len(drawn.specs), num_dense=NUM_DENSE)
        model = CTRModel(tables, build_network("dlrm", inputs=inputs, bottom=BOTTOM, top=TOP))
        addressed = [tables.address(sparse) for sparse in self.sparse]
        self.batches = [
            Batch(**{**vars(batch), "sparse": ready}) for batch, ready in zip(drawn.batches, addressed, strict=True)
        ]
        self.stepper = Stepper(
            model,
            config=CONFIG,
            batch_size=args.batch_size,
            num_rows=args.batch_size * args.schedule_steps,
            num_steps=args.schedule_steps,
        )
        self.search: SearchStepper | None = None
        if current_stage(tables).alternates:
            self.search = SearchStepper(model, config=CONFIG, loader=InMemory(self.batches), start=None)  # type: ignore[arg-type]
        self.steps_done = 0

    def step(self) -> None:
        """On the next training batch, early in the schedule, where no work of its own is due."""
        self.stepper(self.batches[self.steps_done % len(self.batches)], step=0)
        self.steps_done += 1

    def search_step(self) -> None:
        """On a validation batch."""
        assert self.search is not None
        self.search()

    def address(self) -> None:
        """What the loader's thread does for a batch."""
        self.tables.address(self.sparse[self.steps_done % len(self.batches)])
        self.steps_done += 1

    def scheduled_work(self) -> int:
        """Work after steps (pruning, restarts) over a part of the schedule's middle, of so many steps."""
        window = max(1, self.schedule_steps // WINDOWS)
        first = int(0.4 * self.schedule_steps)
        for step in range(first + 1, first + window + 1):
            after_step(self.tables, step=step, num_steps=self.schedule_steps)
        return window

    def flops(self) -> int:
        """Of the matrix products of a step."""
        with FlopCounterMode(display=False) as counter:
            self.step()
        return counter.get_total_flops()


def touched_bytes(tables: TableCollection, addressed: Addressed) -> int:
    """Bytes of rows that a step can't avoid: each lookup's row and gradient once; each distinct row read and written
    once more for its update, and its word of optimizer state."""
    total = 0
    for kind, path in tables.paths.items():
        store, ids = path.store, addressed.paths[kind]
        if store is None:
            continue
        num_bags = (ids.offsets.numel() - 1) // len(store.lookups)
        bounds = ids.offsets[::num_bags].tolist()
        ids_by_table: dict[int, list[Tensor]] = {}
        for lookup, table in enumerate(store.lookups):
            ids_by_table.setdefault(table, []).append(ids.row_ids[bounds[lookup] : bounds[lookup + 1]])
        for table, ids in ids_by_table.items():
            row_nbytes = 4 * store.shards[table].num_columns
            all_ids = torch.cat(ids)
            total += 2 * row_nbytes * all_ids.numel() + (2 * row_nbytes + 8) * all_ids.unique().numel()
    return total


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def timed(work: Callable[[], object], times: int, args: argparse.Namespace) -> float:
    """Seconds of one call, the mean of a few."""
    clock = CLOCKS[args.clock]
    begun = clock()
    for _ in range(times):
        work()
    return (clock() - begun) / times


def in_turn(
    ours: Callable[[], None], theirs: Callable[[], None], args: argparse.Namespace
) -> list[tuple[float, float]]:
    """Seconds of both, round by round, each first in every other round; few steps and rounds of what takes long."""
    warm = timed(ours, 1, args)
    theirs()
    warm = min(warm, timed(ours, 1, args))
    steps = max(1, min(args.steps, round(args.seconds / (args.rounds * warm))))
    begun, rounds = time.perf_counter(), []
    for number in range(args.rounds):
        if number >= LEAST_ROUNDS and time.perf_counter() - begun > args.seconds * 2:
            break
        order = [("ours", ours), ("theirs", theirs)]
        seconds = {name: timed(work, steps, args) for name, work in (order if number % 2 else order[::-1])}
        rounds.append((seconds["ours"], seconds["theirs"]))
    return rounds


def on_one_thread(work: Callable[[], list[tuple[float, float]]]) -> list[tuple[float, float]]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work()
    finally:
        torch.set_num_threads(num_threads)


def measure(method: str, full: Trained, drawn: Inputs26, args: argparse.Namespace) -> list[dict]:
    """One entry per stage of a method."""
    specs, budget = specs_of(method, drawn.specs, budget=args.budget)
    tables = TableCollection(specs, optimizer=RowOptimizer(lr=CONFIG.table_lr))
    entries, advance_s = [], 0.0
    for stage in range(num_stages(tables)):
        if stage:
            begun = time.perf_counter()
            tables = advance(tables)
            advance_s = time.perf_counter() - begun
        trained = Trained(tables, drawn, args)
        entry = measure_stage(trained, full, args)
        entries.append({"method": method, "stage": current_stage(tables).name, "budget": budget} | entry)
        entries[-1]["advance_s"] = advance_s
        del trained
    return entries


def measure_stage(trained: Trained, full: Trained, args: argparse.Namespace) -> dict:
    """Ratios to `full`, round by round, and what a step does."""
    flops = trained.flops()
    rounds = in_turn(trained.step, full.step, args)
    begun = CLOCKS[args.clock]()
    window = trained.scheduled_work()
    scheduled = (CLOCKS[args.clock]() - begun) / window
    step_s = statistics.median(ours for ours, _ in rounds)
    entry = {
        "ratio": spread([(ours + scheduled) / theirs for ours, theirs in rounds]),
        "step_ms": 1e3 * step_s,
        "full_step_ms": 1e3 * statistics.median(theirs for _, theirs in rounds),
        "scheduled_ms": 1e3 * scheduled,
        "gflop": flops / 1e9,
        "touched_mb": touched_bytes(trained.tables, trained.batches[0].sparse) / 1e6,
        "training_bytes": trained.tables.nbytes("training"),
        "search_ratio": None,
    }
    if trained.search is not None:
        searched = in_turn(trained.search_step, full.step, args)
        entry["search_ratio"] = spread([ours / theirs for ours, theirs in searched])
    addressed = on_one_thread(lambda: in_turn(trained.address, full.address, args))
    entry["address_ms"] = spread([1e3 * ours for ours, _ in addressed])
    entry["full_address_ms"] = spread([1e3 * theirs for _, theirs in addressed])
    return entry


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
