"""Row storage over several processes: TorchRec moves ids and rows, local row stores hold and update them.

`DistributedModelParallel` gets an `EmbeddingBagCollection` that describes the physical tables (on the meta device: it
holds nothing) and a sharder whose lookups are our own row stores. So every backend, optimizer and tier works under
TorchRec's collectives, with the same initial values and the same updates as in one process. Replicated tables are the
exception: their dense gradients are averaged by `DistributedDataParallel`.

Gradients are averaged over ranks, as those of dense parameters are: train with the mean loss of each rank's own
samples.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharding_spec.api import EnumerableShardingSpec
from torch.nn.parallel import DistributedDataParallel
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.types import EmbeddingModuleShardingPlan, NoWait, ParameterSharding, ShardingEnv, ShardingPlan

from embank.tables.errors import ConfigError
from embank.tables.rows.base import RowStore, select_lookups
from embank.tables.rows.composite import CompositeRows
from embank.tables.rows.physical import PhysicalTable
from embank.tables.rows.shards import num_positions, positions_of
from embank.tables.rows.store_spec import RowTier, StoreSpec
from embank.tables.rows.torch_rows import TorchRows
from embank.tables.sharding.exchange import RowSharder, ShardedCollection
from embank.tables.sharding.plan import Plan
from embank.tables.specs import TableSpec


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """A plan and the processes that carry it out.

    Args:
        plan: which rank holds what.
        group: the processes; None takes all of them. Its ranks are the plan's.
        planner: makes the plan of other tables, when a method goes on to another stage; None keeps the plan.

    Example:
        >>> plan = Plan(world_size=2, tables={"item": Placement(kind="row_wise")})
        >>> Sharding(plan=plan).plan.placement("item")  # for TableCollection(specs, sharding=...) on each of two ranks
        Placement(kind='row_wise', ranks=())
    """

    plan: Plan
    group: dist.ProcessGroup | None = None
    planner: Callable[[Sequence[TableSpec]], Plan] | None = None

    def for_specs(self, specs: Sequence[TableSpec]) -> "Sharding":
        """The same for other tables."""
        return self if self.planner is None else replace(self, plan=self.planner(specs))

    @property
    def rank(self) -> int:
        """This process in the group."""
        return dist.get_rank(self.group)

    def is_replicated(self, table: str) -> bool:
        """Whether every rank holds a copy of a table."""
        return self.plan.placement(table).kind == "data_parallel"

    @property
    def process_group(self) -> dist.ProcessGroup:
        """The group, or the default one."""
        group = self.group or dist.group.WORLD
        assert group is not None
        return group


class ShardedRows(CompositeRows):
    """Rows of physical tables spread over processes by a plan. Every process calls `forward` the same number of times.

    Args:
        spec: of whole tables; its tier's directory gets a folder for each rank.
        sharding: who holds what.

    Attributes:
        shards: the parts of the tables that this process holds.
    """

    def __init__(self, spec: StoreSpec, *, sharding: Sharding) -> None:
        tier = spec.tier
        if tier.on_gpu and spec.backend == "torch" and tier.name != "device":
            raise ConfigError(
                f"tier '{tier.name}' on '{tier.device}' with backend 'torch' is for one process; over several, use "
                "tier 'host' with backend='fbgemm', or tier 'device'"
            )
        copied = next((table.name for table in spec.tables if sharding.is_replicated(table.name)), None)
        if tier.is_half and copied is not None:
            raise ConfigError(
                f"the plan replicates table '{copied}', whose rows are {tier.dtype}: replicas train fp32 only. Use "
                "table_wise or row_wise"
            )
        super().__init__(spec)
        plan, self.rank = sharding.plan, sharding.rank
        self.tables = tables = spec.tables
        self.kinds = [plan.placement(table.name).kind for table in tables]
        self.shards = tuple(shard for table in tables if (shard := plan.shard(table, self.rank)) is not None)
        self.group = sharding.process_group
        is_replica = [kind == "data_parallel" for kind in self.kinds]
        self.own = [k for k, t in enumerate(self.lookups) if is_replica[t]]
        # Lookups of one table are neighbours in TorchRec's output, in the order of the tables.
        self.moved = sorted((k for k, t in enumerate(self.lookups) if not is_replica[t]), key=lambda k: self.lookups[k])
        replicas = self._replicate([t for t, own in zip(tables, is_replica, strict=True) if own])
        self.replicated = (replicas,)  # in a tuple, so that they are no parameters of a model: see `RowStore`
        self.shared = self._share([t for t, own in zip(tables, is_replica, strict=True) if not own], sharding)
        self.started: dict[int, tuple[Tensor, Any, Any]] = {}

    def _replicate(self, tables: Sequence[PhysicalTable]) -> DistributedDataParallel | None:
        if not tables:
            return None
        order = {table.name: i for i, table in enumerate(tables)}
        lookups = [order[self.tables[self.lookups[k]].name] for k in self.own]
        in_memory = RowTier(device=self.tier.device)
        whole = StoreSpec.of_tables(
            tables, lookups=lookups, seed=self.seed, backend="torch", optimizer=self.optimizer, tier=in_memory
        )
        store = TorchRows(whole, is_replica=True)
        # A group of its own: averaging runs beside TorchRec's exchanges in the backward pass, in an order of its own.
        return DistributedDataParallel(store, process_group=dist.new_group(dist.get_process_group_ranks(self.group)))

    def _share(self, tables: Sequence[PhysicalTable], sharding: Sharding) -> DistributedModelParallel | None:
        if not tables:
            return None
        # TorchRec takes no "user.id" or "keys".
        names = {table.name: f"table{number}" for number, table in enumerate(tables)}
        collection = EmbeddingBagCollection(
            device=torch.device("meta"),
            tables=[
                EmbeddingBagConfig(
                    name=names[table.name],
                    num_embeddings=_num_positions(table, sharding.plan),
                    embedding_dim=table.embedding_dim,
                    feature_names=[_key(k) for k in self.moved if self.tables[self.lookups[k]].name == table.name],
                )
                for table in tables
            ],
        )
        placements = EmbeddingModuleShardingPlan(
            {names[table.name]: _parameter_sharding(table, sharding.plan, device=self.tier.device) for table in tables}
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return DistributedModelParallel(
                module=collection,
                device=torch.device(self.tier.device),
                env=ShardingEnv.from_process_group(self.group),
                plan=ShardingPlan(plan={"": placements}),
                sharders=[
                    RowSharder(
                        {names[table.name]: table for table in tables}, self.spec, plan=sharding.plan, rank=self.rank
                    )
                ],
                init_data_parallel=False,
                init_parameters=False,
            )

    @property
    def replicas(self) -> DistributedDataParallel | None:
        """The store of replicated tables, whose gradients are averaged."""
        return self.replicated[0]

    def _module(self) -> "ShardedCollection":
        assert self.shared is not None
        module = self.shared.module
        assert isinstance(module, ShardedCollection)
        return module

    def parts_held(self) -> Iterator[RowStore]:
        if self.replicas is not None:
            assert isinstance(self.replicas.module, TorchRows)
            yield self.replicas.module
        if self.shared is not None:
            yield from self._module().stores()

    def _stride(self, num_bags: int) -> int:
        """Bags per lookup on every rank. gloo gathers equal sizes only, so row-wise lookups are filled up with empty
        bags."""
        if "row_wise" not in self.kinds:
            return num_bags
        largest = torch.tensor(num_bags)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.group)
        return int(largest)

    def _jagged(self, indices: Tensor, offsets: Tensor, num_bags: int) -> KeyedJaggedTensor:
        """The ids of tables that live elsewhere, rows of striped tables replaced by their positions."""
        stride = self._stride(num_bags)
        filling = offsets.new_zeros(stride - num_bags)
        bounds = offsets[::num_bags].tolist() if num_bags else [0] * (len(self.lookups) + 1)
        values, lengths = [], []
        sizes = offsets.diff()
        for k in self.moved:
            table = self.lookups[k]
            ids = indices[bounds[k] : bounds[k + 1]]
            if self.kinds[table] == "row_wise":
                ids = positions_of(ids, num_rows=self.tables[table].num_embeddings)
            values.append(ids)
            lengths += [sizes[k * num_bags : (k + 1) * num_bags], filling]
        return KeyedJaggedTensor(
            keys=[_key(k) for k in self.moved],
            values=torch.cat(values),
            lengths=torch.cat(lengths).to(torch.int32),
            stride=stride,
        )

    def prefetch(self, indices: Tensor, offsets: Tensor) -> None:
        """Starts sending ids to the ranks that hold their rows. All processes must call it, in the same order.

        On the disk tier it waits for those that come in, and has their rows' pages read ahead.
        """
        if self.shared is None or id(indices) in self.started:
            return
        context, jagged = self._send(indices, offsets)
        if self.tier.name == "disk" and self.tier.prefetch:
            received = jagged.wait()
            self._module().prefetch(list(received))
            jagged = NoWait(received)
        self.started[id(indices)] = (indices, context, jagged)

    def _send(self, indices: Tensor, offsets: Tensor) -> tuple[Any, Any]:
        module = self._module()
        context = module.create_context()
        jagged = self._jagged(indices, offsets, (offsets.numel() - 1) // len(self.lookups))
        return context, module.input_dist(context, jagged.to(torch.device(self.tier.device))).wait()

    def forward(self, indices: Tensor, offsets: Tensor) -> Tensor:
        num_bags = (offsets.numel() - 1) // len(self.lookups)
        parts: dict[int, Tensor] = {}
        exchange = None
        if self.shared is not None:
            context, jagged = self.started.pop(id(indices), (None, None, None))[1:]
            if jagged is None:
                context, jagged = self._send(indices, offsets)
            exchange = self._module().compute_and_output_dist(context, jagged.wait())
        if self.replicas is not None:
            dims = [self.dims[k] for k in self.own]
            out = self.replicas(*select_lookups(indices, offsets, self.own, num_bags))
            parts |= dict(zip(self.own, out.split(dims, dim=1), strict=True))
        if exchange is not None:
            received = exchange.wait()
            values = received.values()[:num_bags]
            columns = dict(zip(received.keys(), values.split(received.length_per_key(), dim=1), strict=True))
            parts |= {k: columns[_key(k)] for k in self.moved}
        return torch.cat([parts[k] for k in range(len(self.lookups))], dim=1)


def _key(lookup: int) -> str:
    return f"lookup{lookup}"


def _num_positions(table: PhysicalTable, plan: Plan) -> int:
    is_striped = plan.placement(table.name).kind == "row_wise"
    return num_positions(table.num_embeddings) if is_striped else table.num_embeddings


def _parameter_sharding(table: PhysicalTable, plan: Plan, *, device: str) -> ParameterSharding:
    """A placement in TorchRec's terms: which rank holds which box of the (striped) table."""
    placement = plan.placement(table.name)
    ranks = placement.ranks or range(plan.world_size)
    shards = {rank: shard for rank in ranks if (shard := plan.shard(table, rank)) is not None}
    boxes = [
        ShardMetadata(
            [shard.first_position, shard.first_column],
            [shard.num_rows, shard.num_columns],
            placement=f"rank:{rank}/{_device_of(rank, device)}",
        )
        for rank, shard in shards.items()
    ]
    return ParameterSharding(
        sharding_type=placement.kind,
        compute_kernel=EmbeddingComputeKernel.CUSTOMIZED_KERNEL.value,
        ranks=list(shards),
        sharding_spec=EnumerableShardingSpec(boxes),
    )


def _device_of(rank: int, device: str) -> str:
    """The device of a rank, given this process's own: of GPUs, machine by machine one after the other."""
    return device if device == "cpu" else f"cuda:{rank % torch.cuda.device_count()}"
