"""A model under TorchRec's training pipelines, and the plain loop that they must equal. Runs in worker processes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist
from torchrec.streamable import Pipelineable

from embank.tables import RowOptimizer, SequenceCollection, TableCollection, TableSpec
from embank.tables.collections.addressed import Addressed, AddressedSequence
from embank.tables.collections.pipelined import PipelinedTables
from embank.tables.sharding.plan import Placement, Plan
from embank.tables.sharding.sharded_rows import Sharding
from tests.tables.batches import random_kjt

SIZES = {"a": 500, "b": 300, "c": 100}
DIM, BATCH_SIZE, NUM_STEPS = 8, 6, 12


@dataclass
class Batch(Pipelineable):
    sparse: KeyedJaggedTensor | Addressed | AddressedSequence
    labels: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        return replace(self, sparse=self.sparse.to(device), labels=self.labels.to(device))

    def record_stream(self, stream: torch.Stream) -> None:
        self.sparse.record_stream(stream)

    def pin_memory(self) -> "Batch":
        return self


class Model(nn.Module):
    """Scores what it looks up, by a stand-in for the tables (`given` "addressed" or "ids") or by themselves
    ("alone")."""

    def __init__(self, tables: TableCollection | SequenceCollection, width: int, given: str) -> None:
        super().__init__()
        self.tables, self.given = tables, given
        self.lookup = tables if given == "alone" else PipelinedTables(tables)
        self.scores = nn.Linear(width, 1)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        found = self.lookup(batch.sparse)
        rows = found["layer"].flatten(0, 1) if isinstance(self.tables, SequenceCollection) else found.values()
        logits = self.scores(rows)[:, 0]
        return nn.functional.binary_cross_entropy_with_logits(logits, batch.labels), logits


def model(kind: str, method: str, *, unpooled: bool, given: str) -> Model:
    torch.manual_seed(0)
    world_size = dist.get_world_size()
    names = {name: "layer" if unpooled else name for name in SIZES}
    specs = [
        TableSpec(name=n, num_embeddings=size, embedding_dim=DIM, feature_names=[names[n]], method=method)
        for n, size in SIZES.items()
    ]
    cls = SequenceCollection if unpooled else TableCollection
    physical = [t.name for m in cls(specs).built_methods() for t in m.physical]
    places = {
        name: Placement(kind=kind, ranks=(number % world_size,) if kind == "table_wise" else ())
        for number, name in enumerate(dict.fromkeys(physical))
    }
    sharding = Sharding(plan=Plan(world_size=world_size, tables=places))
    tables = cls(specs, optimizer=RowOptimizer(name="adagrad", lr=0.1), sharding=sharding)
    return Model(tables, DIM * len(SIZES), given)


def batches(trained: Model, rank: int) -> Iterator[Batch]:
    tables = trained.tables
    for step in range(NUM_STEPS):
        generator = torch.Generator().manual_seed(100 * step + rank)
        labels = torch.randint(0, 2, (BATCH_SIZE,), generator=generator).float()
        if isinstance(tables, SequenceCollection):
            ids = torch.randint(0, 100, (2, BATCH_SIZE // 2, len(SIZES)), generator=generator)
            yield Batch(tables.address({"layer": ids}), labels)
        else:
            kjt = random_kjt(SIZES, batch_size=BATCH_SIZE, seed=100 * step + rank)
            yield Batch(tables.address(kjt) if trained.given == "addressed" else kjt, labels)


def by_the_loop(rank: int, kind: str, method: str, unpooled: bool) -> Tensor:
    """Logits [steps, B] of each step."""
    trained = model(kind, method, unpooled=unpooled, given="addressed")
    optimizer = torch.optim.SGD([*trained.scores.parameters(), *trained.tables.dense_parameters()], lr=0.1)
    seen = []
    for batch in batches(trained, rank):
        optimizer.zero_grad()
        loss, logits = trained(batch)
        loss.backward()
        optimizer.step()
        trained.tables.update_rows()
        seen.append(logits.detach())
    return torch.stack(seen)


def by_a_pipeline(rank: int, name: str, kind: str, method: str, unpooled: bool, given: str) -> tuple[Tensor, list[int]]:
    """The same under a pipeline, and how many batches were on their way after each step."""
    trained = model(kind, method, unpooled=unpooled, given=given)
    optimizer = torch.optim.SGD([*trained.scores.parameters(), *trained.tables.dense_parameters()], lr=0.1)
    cls = {"base": TrainPipelineBase, "sparse_dist": TrainPipelineSparseDist}[name]
    pipeline = cls(trained, optimizer, torch.device("cpu"))
    source, seen, travelling = batches(trained, rank), [], []
    for _ in range(NUM_STEPS):
        out = pipeline.progress(source)
        trained.tables.update_rows()
        seen.append((out[-1] if isinstance(out, tuple) else out).detach())
        travelling.append(max(len(rows.started) for rows in trained.tables.row_stores()))
    return torch.stack(seen), travelling
