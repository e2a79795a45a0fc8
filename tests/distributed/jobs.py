"""What ranks do in the tests of checkpoints and training. Runs in worker processes."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

from embank.pipelines.reporting import Reporter
from embank.pipelines.train.trainer import Trainer
from embank.tables import (
    ConfigError,
    RowOptimizer,
    RowTier,
    SequenceCollection,
    TableCollection,
    TableSpec,
    save_bundle,
)
from embank.tables.sharding.plan import Placement, Plan
from embank.tables.sharding.processes import Processes
from embank.tables.sharding.sharded_rows import Sharding
from embank.tables.storage.checkpoint import load_checkpoint, row_tensors, save_checkpoint
from embank.tables.torchrec import EmbeddingBagCollection
from tests.distributed.twins import sum_lookups
from tests.tables.batches import random_kjt
from tests.training.runs import config

SIZES = {"a": 500, "b": 77, "c": 9}


def specs() -> list[TableSpec]:
    return [TableSpec(name=n, num_embeddings=size, embedding_dim=6, feature_names=[n]) for n, size in SIZES.items()]


def collection(*, seed: int, world_size: int, optimizer: str, shift: int = 0) -> TableCollection:
    """Every kind of placement at once; `shift` deals them out differently."""
    kinds = ["row_wise", "table_wise", "data_parallel"]
    kinds = kinds[shift % 3 :] + kinds[: shift % 3]
    places = {
        name: Placement(kind=kind, ranks=((shift + 1) % world_size,) if kind == "table_wise" else ())
        for name, kind in zip(SIZES, kinds, strict=True)
    }
    sharding = None if world_size == 1 else Sharding(plan=Plan(world_size=world_size, tables=places))
    return TableCollection(specs(), seed=seed, optimizer=RowOptimizer(name=optimizer, lr=0.1), sharding=sharding)


def everything(tables: TableCollection) -> dict[str, torch.Tensor]:
    """All rows and all optimizer state, put together from all ranks."""
    parts: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for tensor in row_tensors(tables):
        numbers = tensor.shard.row_numbers()
        real = numbers < tensor.shard.table.num_embeddings
        parts.setdefault(tensor.name, []).append((numbers[real], tensor.view[real].clone()))
    result: dict[str, torch.Tensor] = {}
    for of_rank in tables.processes.gather(parts):
        for name, pieces in of_rank.items():
            for numbers, values in pieces:
                shape = (SIZES[name.split("/")[1]], *values.shape[1:])
                result.setdefault(name, torch.full(shape, torch.nan))[numbers] = values
    return result


def save(rank: int, folder: Path, optimizer: str) -> dict[str, torch.Tensor]:
    """Trains a little and saves."""
    tables = collection(seed=1, world_size=dist.get_world_size(), optimizer=optimizer)
    for step in range(4):
        tables(random_kjt(SIZES, batch_size=8, seed=10 * step + rank)).values().square().sum().backward()
        tables.update_rows()
    save_checkpoint(folder, tables=tables, dense={"x": torch.ones(2)}, meta={"fact": 3})
    return everything(tables)


def pack_parts(rank: int, folder: Path) -> list[str]:
    """What a rank says to packing the part of the rows that it holds."""
    tables = collection(seed=1, world_size=dist.get_world_size(), optimizer="sgd")
    said = []
    for act in (lambda: save_bundle(folder / "b", tables), tables.packs, tables.state_dict):
        try:
            act()
        except ConfigError as error:
            said.append(str(error))
    return said


def load_and_save(
    rank: int, source: Path, target: Path, optimizer: str, shift: int
) -> tuple[dict[str, torch.Tensor], int]:
    """Loads what other ranks have saved, under another plan, and saves it again."""
    tables = collection(seed=2, world_size=dist.get_world_size(), optimizer=optimizer, shift=shift)
    dense, meta = load_checkpoint(source, tables=tables)
    assert torch.equal(dense["x"], torch.ones(2))
    save_checkpoint(target, tables=tables, dense=dense, meta={"fact": meta["fact"]})
    return everything(tables), meta["fact"]


def train_here(rank: int, data: Path, run: Path, sections: dict[str, Any], resume: bool) -> dict[str, Any]:
    return Trainer(config(data, **sections), run, processes=Processes(dist.group.WORLD)).train(resume=resume)


def pages_ahead(rank: int, folder: Path, kind: str, backend: str) -> tuple[list[int], bool]:
    """How many batches each local store was told of ahead of their lookup, and whether that changed a result."""
    world_size = dist.get_world_size()
    places = {
        name: Placement(kind=kind, ranks=(number % world_size,) if kind == "table_wise" else ())
        for number, name in enumerate(SIZES)
    }
    outputs, told = [], []
    for prefetch in (True, False):
        tier = RowTier(name="disk", directory=folder / f"{rank}-{prefetch}", prefetch=prefetch)
        sharding = Sharding(plan=Plan(world_size=world_size, tables=places))
        tables = TableCollection(
            specs(), optimizer=RowOptimizer(name="adagrad", lr=0.1), tier=tier, backend=backend, sharding=sharding
        )
        seen = []
        for step in range(6):
            addressed = tables.address(random_kjt(SIZES, batch_size=8, seed=10 * step + rank))
            tables.prefetch(addressed)
            values = tables(addressed).values()
            values.square().sum().backward()
            tables.update_rows()
            seen.append(values.detach())
        outputs.append(torch.stack(seen))
        prefetchers = [store.prefetcher for rows in tables.row_stores() for store in rows.parts_held()]
        told.append([0 if prefetcher is None else prefetcher.queue.num_made for prefetcher in prefetchers])
    assert told[1] == [0] * len(told[1])
    return told[0], torch.equal(*outputs)


class _Stop(Reporter):
    def __init__(self, at: int) -> None:
        self.at = at

    def advance(self, done: int, *, per_s: float, loss: float | None = None) -> None:
        if done == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def train_until(rank: int, data: Path, run: Path, sections: dict[str, Any], step: int) -> str:
    """Trains until the first rank gets a signal; what the trainer says."""
    trainer = Trainer(config(data, **sections), run, reporter=_Stop(step), processes=Processes(dist.group.WORLD))
    try:
        trainer.train()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("the run was not stopped")


def train_and_fail(rank: int, data: list[Path], run: Path, sections: list[dict[str, Any]]) -> str:
    """What a rank says to a run that can't be."""
    try:
        Trainer(config(data[rank], **sections[rank]), run, processes=Processes(dist.group.WORLD)).train()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("the run was not refused")


def sequences(rank: int, kind: str, dedupe: bool) -> float:
    """Unpooled lookups over ranks against one process, over ten steps; the largest difference of outputs and rows."""
    world_size = dist.get_world_size()
    heads = [
        TableSpec(name=f"h{h}", num_embeddings=300 + h, embedding_dim=8, feature_names=["layer1", "layer2"])
        for h in range(4)
    ]
    places = {
        spec.name: Placement(kind=kind, ranks=(number % world_size,) if kind == "table_wise" else ())
        for number, spec in enumerate(heads)
    }
    optimizer = RowOptimizer(name="rowwise_adagrad", lr=0.1)
    sharding = Sharding(plan=Plan(world_size=world_size, tables=places))
    sharded = SequenceCollection(heads, optimizer=optimizer, sharding=sharding, dedupe=dedupe)
    whole = SequenceCollection(heads, optimizer=optimizer, backend="torch")
    sum_lookups(whole)
    worst = 0.0
    for step in range(10):
        generator = torch.Generator().manual_seed(step)
        shapes = [(2, 5 + r, 4) for r in range(world_size)]  # ranks have texts of other lengths
        ids = [
            {group: torch.randint(0, 300, shape, generator=generator) for group in ("layer1", "layer2")}
            for shape in shapes
        ]
        addressed = sharded.address(ids[rank])
        if step % 2:
            sharded.prefetch(addressed)
        out = sharded(addressed)
        expected = [whole(one) for one in ids]
        worst = max(worst, *(float((out[g] - expected[rank][g]).detach().abs().max()) for g in out))
        sum((out[g] - 1).square().sum() for g in out).backward()
        (sum((one[g] - 1).square().sum() for one in expected for g in one) / world_size).backward()
        sharded.update_rows()
        whole.update_rows()
    return worst


def weighted(rank: int, method: str) -> float:
    """Weighted bags over ranks, row-wise, against one process, over ten steps; the largest difference of outputs."""
    world_size = dist.get_world_size()
    configs = [
        EmbeddingBagConfig(name=f"t{t}", num_embeddings=300 + t, embedding_dim=8, feature_names=[f"f{t}", f"g{t}"])
        for t in range(2)
    ]
    budget = None if method == "full" else 0.5
    how = {"is_weighted": True, "method": method, "budget": budget, "optimizer": RowOptimizer(lr=0.1)}
    whole = TableCollection.from_configs(configs, backend="torch", **how)
    tables = {table.name: Placement(kind="row_wise") for m in whole.built_methods() for table in m.physical}
    sharded = TableCollection.from_configs(
        configs, sharding=Sharding(plan=Plan(world_size=world_size, tables=tables)), **how
    )
    sharded.methods.load_state_dict(whole.methods.state_dict())
    sum_lookups(whole)
    worst = 0.0
    for step in range(10):
        draw = torch.Generator().manual_seed(step)
        batches = []
        for r in range(world_size):
            lengths = torch.randint(0, 4, (4 * (5 + r),), generator=draw)
            size = int(lengths.sum())
            ids, weights = torch.randint(0, 300, (size,), generator=draw), torch.rand(size, generator=draw)
            keys = ["f0", "f1", "g0", "g1"]
            batches.append(KeyedJaggedTensor(keys=keys, values=ids, lengths=lengths, weights=weights))
        out = sharded(batches[rank]).values()
        expected = [whole(batch).values() for batch in batches]
        worst = max(worst, float((out - expected[rank]).detach().abs().max()))
        (out - 1).square().sum().backward()
        (sum((one - 1).square().sum() for one in expected) / world_size).backward()
        sharded.update_rows()
        whole.update_rows()
    return worst


def held(rank: int) -> list[bool]:
    """Whether spread rows move: held before they were spread, let go, held again."""
    configs = [
        EmbeddingBagConfig(name=f"t{t}", num_embeddings=30 + t, embedding_dim=8, feature_names=[f"f{t}"])
        for t in range(2)
    ]
    tables = EmbeddingBagCollection(tables=configs, optimizer=RowOptimizer(name="sgd", lr=1.0), seed=1)
    tables.requires_grad_(False)
    tables.spread()
    kjt = KeyedJaggedTensor(keys=["f0", "f1"], values=torch.arange(4), lengths=torch.ones(4, dtype=torch.int64))
    moved = []
    for is_held in (True, False, True):
        tables.requires_grad_(not is_held)
        before = {name: rows.clone() for name, rows in tables.weights().items()}
        values = tables(kjt).values()
        (values * torch.ones(16, requires_grad=True)).sum().backward()
        moved.append(any(not torch.equal(rows, before[name]) for name, rows in tables.weights().items()))
    return moved
