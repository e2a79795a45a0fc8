"""From table specs to a sharding plan: what each physical table weighs, and who is asked for the plan."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from embank.tables.errors import ConfigError
from embank.tables.method.base import Method, physical_tables
from embank.tables.method.registry import build_method
from embank.tables.rows.base import padded_dim
from embank.tables.rows.physical import PhysicalTable
from embank.tables.rows.room import row_nbytes
from embank.tables.rows.store_spec import RowDtype, RowOptimizer
from embank.tables.sharding.memory import refuse_bad_limit, refuse_beyond
from embank.tables.sharding.plan import (
    REPLICATE_BELOW_BYTES,
    Kind,
    Load,
    Placement,
    Plan,
    check_plan,
    make_plan,
    rank_loads,
)
from embank.tables.specs import TableSpec

IDS_PER_PIECE = 2**20


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """How the plan is made.

    Args:
        world_size: number of ranks.
        planner: "embank" or "torchrec".
        memory_per_rank: bytes for rows and optimizer state, also for a plan that is given; None for no limit.
        given: a plan that the user wrote; it is checked and taken.
        row_dtype: of the rows, see `RowTier`; those of two bytes are not replicated.

    Example:
        >>> PlanRequest(world_size=8, memory_per_rank=4_000_000_000)
        PlanRequest(world_size=8, planner='embank', memory_per_rank=4000000000, given=None, row_dtype='fp32')
    """

    world_size: int
    planner: Literal["embank", "torchrec"] = "embank"
    memory_per_rank: int | None = None
    given: Plan | None = None
    row_dtype: RowDtype = "fp32"


def plan_tables(
    specs: Sequence[TableSpec], request: PlanRequest, *, optimizer: RowOptimizer, num_samples: int | None
) -> tuple[Plan, list[Load]]:
    """A plan for the physical tables of some specs, and what it was made from. Allocates no rows.

    Args:
        specs: the logical tables.
        request: how.
        optimizer: of the rows; its state counts.
        num_samples: rows of the training split, which the specs' counts refer to; None takes one lookup per feature.

    Raises:
        ConfigError: it does not fit, or the plan that was given is wrong.
        BudgetError: a budget below its method's floor.

    Example:
        >>> specs = [
        ...     TableSpec(name="user", num_embeddings=100_000, embedding_dim=16, feature_names=["user"]),
        ...     TableSpec(name="item", num_embeddings=10_000, embedding_dim=16, feature_names=["item"]),
        ...     TableSpec(name="age", num_embeddings=100, embedding_dim=16, feature_names=["age"]),
        ... ]
        >>> plan, loads = plan_tables(specs, PlanRequest(world_size=2), optimizer=RowOptimizer(), num_samples=None)
        >>> for load in loads:
        ...     print(load.table.name, load.nbytes, plan.placement(load.table.name))
        user 6800000 Placement(kind='row_wise', ranks=())
        item 680000 Placement(kind='table_wise', ranks=(0,))
        age 6800 Placement(kind='data_parallel', ranks=())
    """
    refuse_bad_limit(request.memory_per_rank)
    loads = table_loads(specs, optimizer=optimizer, num_samples=num_samples, row_dtype=request.row_dtype)
    if request.given is not None:
        plan = request.given
        if plan.world_size != request.world_size:
            raise ConfigError(
                f"the plan is for {plan.world_size} ranks, there are {request.world_size}; make one with `embank plan "
                f"--ranks {request.world_size}`"
            )
    elif request.planner == "torchrec":
        plan = torchrec_plan(loads, request)
    else:
        plan = make_plan(
            loads,
            world_size=request.world_size,
            memory_per_rank=request.memory_per_rank,
            replicate_below_bytes=REPLICATE_BELOW_BYTES if request.row_dtype == "fp32" else -1,
            optimizer=optimizer.name,
        )
    check_plan(plan, loads, optimizer=optimizer.name)
    if request.memory_per_rank is not None:
        refuse_beyond(rank_loads(plan, loads), request.memory_per_rank)
    return plan, loads


def table_loads(
    specs: Sequence[TableSpec], *, optimizer: RowOptimizer, num_samples: int | None, row_dtype: RowDtype = "fp32"
) -> list[Load]:
    """Bytes and expected lookups of each physical table."""
    loads: dict[str, Load] = {}
    for spec in specs:
        method = build_method(spec)
        for table in physical_tables(method):
            weights_R = _expected_lookups(method, table, num_samples)
            lookups = _lookups_per_sample(method, table, num_samples) if weights_R is None else float(weights_R.sum())
            before = loads.get(table.name)
            if before is not None:  # another logical table shares its rows
                lookups += before.lookups
                both = weights_R is not None and before.lookups_R is not None
                weights_R = weights_R + before.lookups_R if both else None  # type: ignore[operator]
            loads[table.name] = Load(
                table=table,
                nbytes_per_row=row_nbytes(table.embedding_dim, optimizer, dtype=row_dtype),
                lookups=lookups,
                lookups_R=weights_R,
                whole_rows=method.traits.whole_rows or (before is not None and before.whole_rows),
            )
    return list(loads.values())


def _lookups_per_sample(method: Method, table: PhysicalTable, num_samples: int | None) -> float:
    spec, uses = method.spec, method.physical.count(table)
    if spec.counts is None or not num_samples:
        return float(uses * len(spec.feature_names))
    return uses * float(spec.counts.sum()) / num_samples


def _expected_lookups(method: Method, table: PhysicalTable, num_samples: int | None) -> Tensor | None:
    """Expected lookups per sample of each row, from the counts of the ids that address it."""
    counts = method.spec.counts
    if counts is None or not num_samples:
        return None
    weights_R = torch.zeros(table.num_embeddings, dtype=torch.float64)
    for start in range(0, counts.numel(), IDS_PER_PIECE):
        ids = torch.arange(start, min(counts.numel(), start + IDS_PER_PIECE))
        addressed = method.address(ids)
        for used, rows in zip(method.physical, addressed, strict=True):
            if used == table:
                weights_R.index_add_(0, rows, counts[ids].double())
    return weights_R / num_samples


def torchrec_plan(loads: Sequence[Load], request: PlanRequest) -> Plan:
    """TorchRec's own planner, asked for whole tables and columns (it offers no row-wise pooled tables on a CPU).

    Raises:
        ConfigError: it finds no plan.
    """
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
    from torchrec.distributed.planner.types import ParameterConstraints, PlannerError

    collection = EmbeddingBagCollection(
        device=torch.device("meta"),
        tables=[
            EmbeddingBagConfig(
                name=load.table.name,
                num_embeddings=load.table.num_embeddings,
                embedding_dim=padded_dim(load.table.embedding_dim),
                feature_names=[load.table.name],
            )
            for load in loads
        ],
    )
    constraints = {
        load.table.name: ParameterConstraints(sharding_types=["table_wise"], pooling_factors=[max(load.lookups, 1e-3)])
        for load in loads
    }
    memory = {} if request.memory_per_rank is None else {"ddr_cap": request.memory_per_rank}
    topology = Topology(world_size=request.world_size, compute_device="cpu", **memory)
    planner = EmbeddingShardingPlanner(topology=topology, constraints=constraints)
    try:
        found = planner.plan(module=collection, sharders=[EmbeddingBagCollectionSharder()])
    except PlannerError as error:
        raise ConfigError(
            f"TorchRec's planner finds no plan for {request.world_size} ranks: {' '.join(str(error).split())[:300]}. "
            "Use more ranks or memory, or embank's planner, which cuts tables by rows"
        ) from error
    (module_plan,) = found.plan.values()
    kinds = {name: cast(Kind, placed.sharding_type) for name, placed in module_plan.items()}
    tables = {name: Placement(kind=kinds[name], ranks=tuple(placed.ranks)) for name, placed in module_plan.items()}
    return Plan(world_size=request.world_size, tables=tables)
