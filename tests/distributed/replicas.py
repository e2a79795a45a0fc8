"""What ranks do with tables that no `Sharding` spreads. Runs in worker processes."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchrec import KeyedJaggedTensor

from embank.tables import SequenceCollection, TableCollection, TableSpec
from embank.tables.sharding.plan import Placement, Plan
from embank.tables.sharding.sharded_rows import Sharding
from tests.tables.batches import random_kjt

SIZES = {"a": 50, "b": 30}


def specs(method: str = "full") -> list[TableSpec]:
    return [
        TableSpec(name=name, num_embeddings=size, embedding_dim=4, feature_names=[name], method=method)
        for name, size in SIZES.items()
    ]


class Model(nn.Module):
    def __init__(self, tables: TableCollection) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tables, self.score = tables, nn.Linear(8, 1)

    def forward(self, kjt: KeyedJaggedTensor) -> Tensor:
        scores: Tensor = self.score(self.tables(kjt).values())
        return scores


def refusals(rank: int, backend: str) -> dict[str, str]:
    """What is said to tables without a sharding, by the way that they are used; nothing where they may be."""
    kjt = random_kjt(SIZES, batch_size=6, seed=rank)
    model = Model(TableCollection(specs(), backend=backend))
    sequence = SequenceCollection(specs(), backend=backend)
    wrapped = DistributedDataParallel(model)

    def evaluate() -> None:
        with torch.no_grad():
            model.train()(kjt)
        model.eval()(kjt)  # with gradients, but nobody goes backward
        model.train()

    def train_in_evaluation_mode() -> None:
        try:
            model.eval()(kjt).sum().backward()
        finally:
            model.train()

    said = {}
    for name, use in {
        "alone": lambda: model(kjt),
        "sequence": lambda: sequence(kjt),
        "in DistributedDataParallel": lambda: wrapped(kjt),
        "backward in evaluation mode": train_in_evaluation_mode,
        "evaluation": evaluate,
    }.items():
        try:
            use()
            said[name] = ""
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"
    return said


def sharded_in_ddp(rank: int, backend: str) -> dict[str, Tensor]:
    """A model with sharded tables trains inside `DistributedDataParallel`; what every rank must have alike."""
    places = {"a": Placement(kind="data_parallel"), "b": Placement(kind="table_wise", ranks=(1,))}
    tables = TableCollection(
        specs(), backend=backend, sharding=Sharding(plan=Plan(world_size=dist.get_world_size(), tables=places))
    )
    model = Model(tables)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    for step in range(5):
        optimizer.zero_grad()
        wrapped(random_kjt(SIZES, batch_size=6, seed=10 * step + rank)).square().mean().backward()
        tables.step()
        optimizer.step()
    return {"rows": tables.weights()["a"].clone(), **{name: p.detach().clone() for name, p in model.named_parameters()}}
