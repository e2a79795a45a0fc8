"""Programs as TorchRec's users write them, on its collections or on those of `embank.tables.torchrec`. They run in
worker processes."""

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torchrec
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.optim import _apply_optimizer_in_backward
from torch.nn.parallel import DistributedDataParallel
from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor
from torchrec.datasets.utils import Batch
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.model_parallel import get_default_sharders
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.inference.state_dict_transform import state_dict_gather, state_dict_to_device
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

import embank.tables.torchrec as ours
from embank.tables import ConfigError, RowOptimizer, TableCollection, Tables
from tests.tables.batches import random_kjt

SIZES = {"a": 40, "b": 30, "c": 50}
DIM, BATCH_SIZE, NUM_STEPS = 8, 6, 12
CPU, META = torch.device("cpu"), torch.device("meta")
SIDES: Mapping[str, Any] = {"torchrec": torchrec, "embank": ours}
OPTIMIZERS: Mapping[str, tuple[type[torch.optim.Optimizer], dict[str, float]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.1, "eps": 1e-8}),
    "rowwise_adagrad": (RowWiseAdagrad, {"lr": 0.1}),
}


def known(name: str, shape: torch.Size) -> Tensor:
    """Values that depend on a name and a shape."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return (torch.rand(shape, generator=generator) - 0.5) * shape[-1] ** -0.5


@torch.no_grad()
def set_values(model: nn.Module) -> None:
    """Rows and parameters by their names, whoever holds them."""
    for name, value in model.named_parameters():
        plain = name.replace("module.", "")
        if "embedding" not in plain.removeprefix("sparse_arch.embedding_bag_collection.") and value.numel():
            value.copy_(known(plain, value.shape))
    for tables in (module for module in model.modules() if isinstance(module, Tables)):
        for spec in (spec for spec in tables.specs if spec.method == "full"):
            tables.set_rows(spec.name, known(spec.name, torch.Size([spec.num_embeddings, spec.embedding_dim])))
    if not any(isinstance(module, Tables) for module in model.modules()):
        for name, value in model.state_dict().items():
            if name.endswith(tuple(f".{table}.weight" for table in SIZES)):
                full = known(name.split(".")[-2], value.size())
                for shard in value.local_shards() if isinstance(value, ShardedTensor) else ():
                    (row, column), (rows, columns) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
                    shard.tensor.copy_(full[row : row + rows, column : column + columns])
                if not isinstance(value, ShardedTensor):
                    value.copy_(full)


def batches(rank: int) -> Iterator[Batch]:
    for step in range(NUM_STEPS):
        generator = torch.Generator().manual_seed(100 * step + rank)
        yield Batch(
            dense_features=torch.rand(BATCH_SIZE, 3, generator=generator),
            sparse_features=random_kjt(SIZES, batch_size=BATCH_SIZE, seed=100 * step + rank),
            labels=torch.randint(0, 2, (BATCH_SIZE,), generator=generator),
        )


def bag_configs() -> list[EmbeddingBagConfig]:
    return [
        EmbeddingBagConfig(name=name, num_embeddings=size, embedding_dim=DIM, feature_names=[name])
        for name, size in SIZES.items()
    ]


def dlrm(side: str, **how: Any) -> DLRMTrain:
    return DLRMTrain(
        DLRM(
            SIDES[side].EmbeddingBagCollection(tables=bag_configs(), device=META, **how),
            dense_in_features=3,
            dense_arch_layer_sizes=[8, DIM],
            over_arch_layer_sizes=[8, 1],
            dense_device=CPU,
        )
    )


def wrapped_model(model: nn.Module) -> DistributedModelParallel:
    """The wrapper as programs call it, with known values. TorchRec's planner replicates tables as small as these, and
    their optimizer in the backward pass is then lost, so that it is told not to."""
    constraints = {name: ParameterConstraints(sharding_types=["table_wise"]) for name in SIZES}
    topology = Topology(world_size=dist.get_world_size(), local_world_size=dist.get_world_size(), compute_device="cpu")
    planner = EmbeddingShardingPlanner(topology=topology, constraints=constraints)
    sharders = [*get_default_sharders(), EmbeddingCollectionSharder()]
    plan = planner.collective_plan(model, sharders, dist.GroupMember.WORLD)
    wrapped = DistributedModelParallel(module=model, device=CPU, plan=plan, sharders=sharders)
    set_values(wrapped)
    return wrapped


def click_model(rank: int, side: str, optimizer: str, how: Mapping[str, Any]) -> tuple[list[float], dict[str, Tensor]]:
    """DLRM under the wrapper and a pipeline; one optimizer and one schedule for the rows and the rest. Losses, and the
    parameters that every rank has after them."""
    model = dlrm(side, **how)
    cls, arguments = OPTIMIZERS[optimizer]
    rows = [value for name, value in model.model.sparse_arch.named_parameters() if ".methods." not in name]
    _apply_optimizer_in_backward(cls, rows, dict(arguments))
    wrapped = wrapped_model(model)
    dense = dict(in_backward_optimizer_filter(wrapped.named_parameters()))
    assert not any("embedding_bags" in name for name in dense)
    both = CombinedOptimizer(
        [wrapped.fused_optimizer, KeyedOptimizerWrapper(dense, lambda values: torch.optim.SGD(values, lr=0.1))]
    )
    schedule = torch.optim.lr_scheduler.ExponentialLR(both, gamma=0.9)
    pipeline, source, losses = TrainPipelineSparseDist(wrapped, both, CPU), batches(rank), []
    for _ in range(NUM_STEPS):
        losses.append(pipeline.progress(source)[0].item())
        schedule.step()
    return losses, {name: value.detach().clone() for name, value in dense.items()}


class TwoTowers(nn.Module):
    """A score of two looked-up rows, each through a layer."""

    def __init__(self, tables: nn.Module) -> None:
        super().__init__()
        self.tables = tables
        self.query, self.candidate = nn.Linear(DIM, 4), nn.Linear(DIM, 4)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        pooled = self.tables(batch.sparse_features)
        logits = (self.query(pooled["a"]) * self.candidate(pooled["b"])).sum(1)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, batch.labels.float())
        return loss, loss.detach()


def two_towers(rank: int, side: str) -> tuple[list[float], dict[str, Tensor] | None]:
    """Losses, and on the first rank the trained rows, gathered into a model that holds all of them."""
    cls = SIDES[side].EmbeddingBagCollection
    model = TwoTowers(cls(tables=bag_configs(), device=META))
    _apply_optimizer_in_backward(RowWiseAdagrad, model.tables.parameters(), {"lr": 0.1})
    wrapped = wrapped_model(model)
    adam = KeyedOptimizerWrapper(dict(wrapped.named_parameters()), lambda values: torch.optim.Adam(values, lr=0.01))
    pipeline, source = TrainPipelineSparseDist(wrapped, adam, CPU), batches(rank)
    losses = [pipeline.progress(source).item() for _ in range(NUM_STEPS)]
    whole = TwoTowers(cls(tables=bag_configs(), device=META))
    if rank == 0:
        whole = whole.to_empty(device="cpu")
    state_dict_gather(state_dict_to_device(wrapped.state_dict(), dist.GroupMember.WORLD, CPU), whole.state_dict())
    dist.barrier()
    return losses, {name: value.clone() for name, value in whole.state_dict().items()} if rank == 0 else None


class Sequences(nn.Module):
    """A score of what each row of a batch has looked up, one by one."""

    def __init__(self, tables: nn.Module) -> None:
        super().__init__()
        self.ec = tables
        self.scores = nn.Linear(DIM, 1)

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        rows = self.ec(features)
        padded = [rows[name].to_padded_dense(desired_length=4) for name in SIZES]
        return self.scores(torch.tanh(torch.cat(padded, dim=1)).sum(1))[:, 0]


def sequences(rank: int, side: str, wrapper: str) -> list[float]:
    """Unpooled rows: under the model-parallel wrapper with an optimizer of their own, or as parameters of a replica."""
    configs = [
        EmbeddingConfig(name=name, num_embeddings=size, embedding_dim=DIM, feature_names=[name])
        for name, size in SIZES.items()
    ]
    model = Sequences(SIDES[side].EmbeddingCollection(tables=configs, device=CPU)).to(CPU)
    if wrapper == "dmp":
        _apply_optimizer_in_backward(torch.optim.Adagrad, model.ec.parameters(), {"lr": 0.1, "eps": 1e-8})
        wrapped: nn.Module = wrapped_model(model)
        dense = KeyedOptimizerWrapper(
            dict(in_backward_optimizer_filter(wrapped.named_parameters())),
            lambda values: torch.optim.Adam(values, lr=0.01),
        )
        optimizer: torch.optim.Optimizer = CombinedOptimizer([wrapped.fused_optimizer, dense])
    else:
        wrapped = DistributedDataParallel(model)
        optimizer = torch.optim.Adam(wrapped.parameters(), lr=0.01)
        set_values(wrapped)
    losses = []
    for batch in batches(rank):
        optimizer.zero_grad()
        logits = wrapped(batch.sparse_features)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, batch.labels.float())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def mistaken(rank: int) -> str:
    """What a model is refused with whose methods' own parameters get an optimizer in the backward pass, too."""
    model = dlrm("embank", method={"a": "dhe"})
    _apply_optimizer_in_backward(torch.optim.SGD, model.model.sparse_arch.parameters(), {"lr": 0.1})
    try:
        wrapped_model(model)
    except ConfigError as error:
        return str(error)
    return ""


def reloaded(rank: int, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """What a wrapped model gives before it is saved, what another one gives before and after it has loaded that."""

    def made() -> DistributedModelParallel:
        model = dlrm("embank")
        if kind == "collection":
            tables = TableCollection.from_configs(bag_configs(), optimizer=RowOptimizer())
            model.model.sparse_arch.embedding_bag_collection = tables
        else:
            _apply_optimizer_in_backward(torch.optim.SGD, model.model.sparse_arch.parameters(), {"lr": 0.1})
        return wrapped_model(model)

    first, second, (batch, *_) = made(), made(), batches(rank)
    loss, _ = first(batch)
    loss.backward()
    with torch.no_grad():
        for parameter in first.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
        before = second(batch)[1][1]
        second.load_state_dict(first.state_dict())
        return first(batch)[1][1], before, second(batch)[1][1]
