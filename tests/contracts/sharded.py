"""What a rank does in the sharding contract. Runs in worker processes, see `tests.distributed.ranks`."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec import KeyedJaggedTensor

from embank.tables import RowOptimizer, RowTier, TableCollection, TableSpec
from embank.tables.collections.stages import HeldRows, after_step, finished
from embank.tables.sharding.plan import Placement, Plan
from embank.tables.sharding.processes import Processes
from embank.tables.sharding.sharded_rows import Sharding
from tests.contracts.specs import NUM, SHARING, spec
from tests.distributed.twins import sum_lookups
from tests.tables.batches import random_kjt

STEPS = 10
SCALE = 64
"""What losses are divided by, so that decoders of several layers don't diverge."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One combination of the contract."""

    method: str
    kind: str
    backend: str
    tier: str
    optimizer: str
    training: bool
    shared: bool = False
    dim: int | None = None
    """Of the first table, if not the suites' own."""
    dtype: str = "fp32"
    """Of the sharded rows; their twin has fp32."""


def placed(tables: TableCollection, kind: str, world_size: int) -> Plan:
    """Every physical table of a collection placed alike; columns that can't be cut evenly stay on one rank."""
    names = {table.name: table for method in tables.built_methods() for table in method.physical}
    placements = {}
    for number, (name, table) in enumerate(names.items()):
        if kind == "table_wise":
            placements[name] = Placement(kind="table_wise", ranks=(number % world_size,))
        elif kind == "column_wise":
            ranks = range(world_size) if table.embedding_dim % world_size == 0 else [number % world_size]
            placements[name] = Placement(kind="column_wise", ranks=tuple(ranks))
        else:
            placements[name] = Placement(kind=kind)
    return Plan(world_size=world_size, tables=placements)


def specs(method: str, *, shared: bool = False, dim: int | None = None) -> list[TableSpec]:
    """Two tables of one method: one of bags under a mean, one that two features share; with `shared` both read the same
    rows."""
    tables = [spec(method, name="t", features=("a",), pooling="mean"), spec(method, name="u", features=("b", "c"))]
    if dim is not None:
        tables[0] = replace(tables[0], embedding_dim=dim)
    return [replace(table, budget=None, options=SHARING[method]) for table in tables] if shared else tables


def batch(step: int, rank: int) -> KeyedJaggedTensor:
    """Uneven batches, one of them empty."""
    size = 7 if rank == 0 else (0 if step == 3 else 5)
    return random_kjt(dict.fromkeys("abc", NUM), batch_size=size, seed=100 * step + rank)


def compare(rank: int, case: Case, folder: Path) -> float:
    """Trains the sharded tables and their unsharded torch twin; the largest difference of outputs, rows and dense
    parameters."""
    world_size = dist.get_world_size()
    optimizer = RowOptimizer(name=case.optimizer, lr=0.05)
    tables = specs(case.method, shared=case.shared, dim=case.dim)
    whole = finished(TableCollection(tables, backend="torch", optimizer=optimizer))
    sum_lookups(whole)
    plan = placed(whole, case.kind, world_size)
    tier = RowTier(
        name="disk" if case.tier == "disk" else "device",
        directory=folder if case.tier == "disk" else None,
        dtype=case.dtype,  # type: ignore[arg-type]
    )
    sharded = TableCollection(
        whole.specs, backend=case.backend, optimizer=optimizer, tier=tier, sharding=Sharding(plan=plan)
    )
    sharded.methods.load_state_dict(whole.methods.state_dict())
    _copy_rows(whole, sharded)
    worst = 0.0
    for step in range(STEPS):
        batches = [batch(step, r) for r in range(world_size)]
        addressed = sharded.address(batches[rank])
        if step % 2:
            sharded.prefetch(addressed)
        for tables in (sharded, whole):
            tables.train(case.training)
        outputs, losses = [], []
        for part in batches:
            outputs.append(whole(part).values())
            losses.append(_loss(whole, outputs[-1]))
        out = sharded(addressed).values()
        worst = max(worst, _difference(out, outputs[rank]))
        _loss(sharded, out).backward()
        torch.stack(losses).mean().backward()
        _average(sharded)
        for tables in (sharded, whole):
            tables.update_rows()
            _step_dense(tables)
            after_step(tables, step=step + 1, num_steps=STEPS)
    return max(worst, _difference_of_rows(sharded, whole), _difference_of_dense(sharded, whole))


def _copy_rows(source: TableCollection, target: TableCollection) -> None:
    """What `finished` made of the rows; where it changed nothing the sharded ones start equal by themselves."""
    rows = source.weights()
    for store in target.row_stores():
        weights = store.weights()
        for shard in store.shards:
            numbers = shard.row_numbers()
            real = numbers < shard.table.num_embeddings
            columns = slice(shard.first_column, shard.first_column + shard.num_columns)
            weight = weights[shard.table.name]
            weight[real] = rows[shard.table.name][numbers[real], columns].to(weight.dtype)


def _loss(tables: TableCollection, out: Tensor) -> Tensor:
    """What a rank trains with: its own samples' loss and what methods add to it."""
    loss, extra = (out - 1).square().sum() / SCALE, tables.extra_loss()
    return loss if extra is None else loss + extra


def _average(tables: TableCollection) -> None:
    """Gradients of dense parameters as DistributedDataParallel leaves them."""
    for parameter in tables.dense_parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


def _step_dense(tables: TableCollection) -> None:
    with torch.no_grad():
        for parameter in tables.dense_parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad
                parameter.grad = None


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max()) if a.numel() else 0.0


def _difference_of_rows(sharded: TableCollection, whole: TableCollection) -> float:
    rows, worst = whole.weights(), 0.0
    held = HeldRows(sharded)
    for name, weights in sharded.weights().items():
        shard = held.shards[name]
        numbers = shard.row_numbers()
        real = numbers < shard.table.num_embeddings
        columns = slice(shard.first_column, shard.first_column + shard.num_columns)
        worst = max(worst, _difference(weights[real], rows[name][numbers[real], columns]))
    return worst


def _difference_of_dense(sharded: TableCollection, whole: TableCollection) -> float:
    pairs = zip(sharded.dense_parameters(), whole.dense_parameters(), strict=True)
    return max((_difference(a, b) for a, b in pairs), default=0.0)


def starts_equal(rank: int, method: str, kind: str) -> bool:
    """Whether sharded tables that go through all stages by themselves start with the unsharded ones' outputs."""
    whole = finished(TableCollection(specs(method), backend="torch"))
    first = TableCollection(specs(method), backend="torch")
    sharding = Sharding(plan=_plan_of_all_stages(first, whole, kind, dist.get_world_size()))
    sharded = finished(TableCollection(specs(method), sharding=sharding))
    ids = batch(0, 0)
    outputs = [tables.eval()(ids).values() for tables in (sharded, whole)]
    Processes(sharding.process_group).gather(rank)
    return bool(torch.allclose(*outputs, rtol=1e-5, atol=1e-6))


def _plan_of_all_stages(first: TableCollection, last: TableCollection, kind: str, world_size: int) -> Plan:
    tables = {**placed(first, kind, world_size).tables, **placed(last, kind, world_size).tables}
    return Plan(world_size=world_size, tables=tables)
