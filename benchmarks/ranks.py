"""Two ranks against one process: samples/s of DLRM on sharded tables, and bytes moved per step against what must move.

    python benchmarks/ranks.py
    python benchmarks/ranks.py --rows 20000 --steps 5 --repeats 2

DLRM (13 + 26 inputs, dim 16, bottom 512-256-64-16, top 512-256-1) on generated Zipf ids, row-wise Adagrad, one thread
per process. Contestants take turns within a round: one process with the whole batch, and ranks that share it, under our
plan, with every table whole on a rank, and with every table cut into rows. Ratios are taken within a round.

Bytes are those of the loopback device while the steps run, so they hold everything: ids, rows, their gradients, the
network's gradients, headers. The floor counts each id (8 bytes), row and gradient of a row (4 * dim bytes each) once
for every lookup whose row lies on another rank, and the network's gradient once per rank and direction.
Writes benchmarks/results/ranks.json.
"""

import argparse
import os
import socket
import statistics
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import records
import torch
import torch.distributed as dist

NUM_DENSE, NUM_FIELDS, DIM = 13, 26, 16
PLANS = ("embank", "table_wise", "row_wise")


def field_sizes(rows: int) -> list[int]:
    """Sizes of 26 tables, a few large and many small as in click logs, `rows` in all."""
    weights = [1 / (1 + field) ** 2 for field in range(NUM_FIELDS)]
    return [max(10, round(rows * weight / sum(weights))) for weight in weights]


class Worker:
    """A process with its part of the model and of the batches."""

    def __init__(self, args: argparse.Namespace, rank: int, world_size: int, kind: str) -> None:
        from embank.ctr_models import CTRModel, Inputs, build_network
        from embank.tables import (
            Placement,
            Plan,
            PlanRequest,
            RowOptimizer,
            Sharding,
            TableCollection,
            TableSpec,
            plan_tables,
        )
        from embank.tables.sharding.processes import Processes

        sizes = field_sizes(args.rows)
        names = [f"C{field + 1}" for field in range(NUM_FIELDS)]
        specs = [
            TableSpec(name=name, num_embeddings=size, embedding_dim=DIM, feature_names=[name])
            for name, size in zip(names, sizes, strict=True)
        ]
        optimizer, sharding = RowOptimizer(name="rowwise_adagrad", lr=0.02), None
        if world_size > 1:
            placements = {
                name: Placement(kind="row_wise")
                if kind == "row_wise"
                else Placement(kind="table_wise", ranks=(field % world_size,))
                for field, name in enumerate(names)
            }
            plan = Plan(world_size=world_size, tables=placements)
            if kind == "embank":
                plan, _ = plan_tables(specs, PlanRequest(world_size=world_size), optimizer=optimizer, num_samples=None)
            self.kinds = [plan.placement(name).kind for name in names]
            sharding = Sharding(plan=plan)
        self.tables = TableCollection(specs, optimizer=optimizer, sharding=sharding)
        self.processes = Processes(None if sharding is None else sharding.process_group)
        torch.manual_seed(0)
        inputs = Inputs(names=tuple(names), dims=(DIM,) * NUM_FIELDS, num_dense=NUM_DENSE)
        network = build_network("dlrm", inputs=inputs, bottom=[512, 256, 64], top=[512, 256])
        self.model = CTRModel(self.tables, network)
        self.parameters = list(network.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=1e-3, fused=True)
        self.batches = [self._batch(args, sizes, names, number, rank, world_size) for number in range(4)]

    @staticmethod
    def _batch(
        args: argparse.Namespace, sizes: list[int], names: list[str], number: int, rank: int, world_size: int
    ) -> tuple[torch.Tensor, object, torch.Tensor]:
        from torchrec import KeyedJaggedTensor

        generator = torch.Generator().manual_seed(number)
        uniform = torch.rand(NUM_FIELDS, args.batch_size, generator=generator, dtype=torch.double)
        ids = [(size**column - 1).long().clamp(max=size - 1) for size, column in zip(sizes, uniform, strict=True)]
        part = slice(args.batch_size * rank // world_size, args.batch_size * (rank + 1) // world_size)
        dense = torch.rand(args.batch_size, NUM_DENSE, generator=generator)[part]
        labels = (torch.rand(args.batch_size, generator=generator) < 0.25).float()[part]
        values = torch.cat([column[part] for column in ids])
        kjt = KeyedJaggedTensor(keys=names, values=values, lengths=torch.ones(values.numel(), dtype=torch.int32))
        return dense, kjt, labels

    def run(self, steps: int) -> dict[str, float]:
        """Trains some steps, the next batch's ids on their way as in `embank train`; wall time and bytes on the
        loopback device."""
        from embank.pipelines.train.step import average_gradients

        ready = [self.tables.address(self.batches[step % 4][1]) for step in range(steps)]
        if self.processes.group is not None:
            dist.barrier()
        begun, before = time.perf_counter(), loopback_bytes()
        for step in range(steps):
            dense, _, labels = self.batches[step % 4]
            if self.processes.count > 1 and step + 1 < steps:
                self.tables.prefetch(ready[step + 1])
            loss = torch.nn.functional.binary_cross_entropy_with_logits(self.model(dense, ready[step]), labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            average_gradients(self.parameters, self.processes)
            self.tables.update_rows()
            self.optimizer.step()
        if self.processes.group is not None:
            dist.barrier()
        return {"seconds": time.perf_counter() - begun, "bytes": loopback_bytes() - before}

    def floor_bytes(self, args: argparse.Namespace) -> float:
        """Bytes that a step must move over all ranks."""
        count = self.processes.count
        if count == 1:
            return 0.0
        elsewhere = sum(kind != "data_parallel" for kind in self.kinds) * args.batch_size * (count - 1) / count
        network = 4 * sum(p.numel() for p in self.parameters)
        return elsewhere * (8 + 2 * 4 * DIM) + 2 * network * (count - 1)


def loopback_bytes() -> int:
    """Bytes received on the loopback device since the machine started."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split(":")[1].split()[0])
    return 0


def serve(pipe: Connection, args: argparse.Namespace, rank: int, world_size: int, kind: str, port: int) -> None:
    torch.set_num_threads(1)
    if world_size > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world_size))
        os.environ.update(LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world_size))
        dist.init_process_group("gloo")
    worker = Worker(args, rank, world_size, kind)
    worker.run(args.warmup)
    pipe.send(worker.floor_bytes(args))
    while pipe.recv():
        pipe.send(worker.run(args.steps))
    if world_size > 1:
        dist.barrier()
        dist.destroy_process_group()


class Contestant:
    """One process, or the ranks that share its batch."""

    def __init__(self, args: argparse.Namespace, world_size: int, kind: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context, self.pipes, self.processes = get_context("spawn"), [], []
        for rank in range(world_size):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, args, rank, world_size, kind, port), daemon=True)
            process.start()
            self.pipes.append(here)
            self.processes.append(process)
        self.floor = self._answers()[0]

    def run(self) -> dict[str, float]:
        for pipe in self.pipes:
            pipe.send(True)
        return self._answers()[0]

    def _answers(self) -> list:
        return [pipe.recv() for pipe in self.pipes]

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(False)
        for process in self.processes:
            process.join(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=7)
    records.argument(parser)
    args = parser.parse_args()
    run = records.begin(settings=records.settings_of(args))
    contestants = {"one process": Contestant(args, 1, "")}
    contestants |= {f"{args.ranks} ranks, {kind}": Contestant(args, args.ranks, kind) for kind in PLANS}
    rounds = [{name: contestant.run() for name, contestant in contestants.items()} for _ in range(args.repeats)]
    rows = []
    for name, contestant in contestants.items():
        ratios = [one["one process"]["seconds"] / one[name]["seconds"] for one in rounds]
        moved = statistics.median(one[name]["bytes"] for one in rounds) / args.steps if contestant.floor else 0.0
        rows.append(
            {
                "contestant": name,
                "samples_per_s": args.batch_size
                * args.steps
                / statistics.median(one[name]["seconds"] for one in rounds),
                "ratio": statistics.median(ratios),
                "ratio_range": [min(ratios), max(ratios)],
                "bytes_per_step": moved,
                "floor_bytes_per_step": contestant.floor,
            }
        )
        contestant.close()
    run.records = recorded(rows, rounds=args.repeats)
    records.save("ranks", run, title=TITLE, about=ABOUT, out=args.out)
    for record in run.records:
        print(record.case["contestant"], record.metric, f"{record.value:,.0f}", record.peers)


def recorded(rows: list[dict[str, Any]], *, rounds: int) -> list[records.Record]:
    """Speed and moved bytes of each contestant."""
    found = []
    for row in rows:
        case, (low, high) = {"contestant": row["contestant"]}, row["ratio_range"]
        peers = [records.peer("one process", {"median": row["ratio"], "min": low, "max": high})]
        rate = {"value": row["samples_per_s"], "rounds": rounds}
        found.append(records.record("speed", "samples/s", case=case, better="higher", peers=peers, **rate))
        if row["floor_bytes_per_step"]:
            counts = "ids, rows and gradients of lookups of other ranks' rows, the network's gradient once a direction"
            work = records.Work(counts=counts, amount=row["floor_bytes_per_step"], unit="bytes")
            moved = {"value": row["bytes_per_step"], "rounds": rounds, "works": [work]}
            found.append(records.record("moved by a step", "bytes", case=case, better="lower", **moved))
    return found


TITLE = "Ranks against one process"
ABOUT = (
    "DLRM on sharded tables, one thread a process: the same batch in one process, and shared by gloo ranks under "
    "several plans; bytes are those of the loopback device."
)


if __name__ == "__main__":
    main()
