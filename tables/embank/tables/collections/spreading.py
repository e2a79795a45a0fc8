"""Tables that one process holds, spread over the processes that train together: what `DistributedModelParallel` makes
of TorchRec's collections.

It has no sharder for others, and leaves them where they are, on every rank. But it makes itself known to them: it asks
for their `fused_optimizer`, and has modules on the meta device made anew (`reset_parameters`).
"""

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from embank.tables.collections.held_rows import writing
from embank.tables.collections.parameters import expose_rows, external_error, settle_optimizer
from embank.tables.collections.state import num_updates, set_rows
from embank.tables.errors import ConfigError
from embank.tables.rows.shards import TableShard
from embank.tables.sharding.processes import Processes, is_one_of_many

if TYPE_CHECKING:
    from embank.tables.collections.base import Tables
    from embank.tables.sharding.sharded_rows import Sharding


def follow_the_group(tables: "Tables") -> None:
    """Spreads rows that have an optimizer of their own over torch's default group, if there is one of several
    processes. Rows that are parameters for another optimizer stay on every rank, for DistributedDataParallel."""
    if is_one_of_many() and tables.sharding is None and not tables.optimizer.is_external:
        spread(tables)


@torch.no_grad()
def spread(tables: "Tables", *, sharding: "Sharding | None" = None) -> None:
    """See `Tables.spread`."""
    if tables.sharding is not None:
        raise ConfigError(
            f"the rows of these tables are spread over {tables.processes.count} processes already; make the tables "
            "with the plan that they are to have"
        )
    if not (dist.is_available() and dist.is_initialized()):
        raise ConfigError(
            "there are no processes to spread rows over; call torch.distributed.init_process_group first, on each of "
            "them"
        )
    settle_optimizer(tables, by_kernels=True)
    if tables.optimizer.is_external:
        raise external_error(dist.get_world_size())
    sharding = sharding or default_sharding(tables)
    is_made = not tables.tier.is_meta
    rows = {name: view.clone() for name, view in tables.weights().items()} if is_made else {}
    states = tables.optimizer_state() if is_made else {}
    count = num_updates(tables) if is_made else 0
    tables.sharding, tables.processes = sharding, Processes(sharding.process_group)
    if not is_made:
        return
    tables._make_paths()
    expose_rows(tables)
    for name, rows_RD in rows.items():
        # Values that were drawn are each process's own.
        set_rows(tables, name, tables.processes.first(rows_RD) if _is_replicated(tables, name) else rows_RD)
    _set_states(tables, states, count)
    if tables.chosen_optimizer is not None:
        tables.chosen_optimizer.refresh()


def default_sharding(tables: "Tables") -> "Sharding":
    """Our own plan for all processes of torch's default group: whole tables, so that torch's distributed checkpoint
    takes them, and no copies of small ones, so that each row is updated in one place, by the kernel that one process
    would use."""
    from embank.tables.sharding.plan import check_plan, make_plan
    from embank.tables.sharding.planner import table_loads
    from embank.tables.sharding.sharded_rows import Sharding

    optimizer = tables.optimizer
    loads = table_loads(tables.specs, optimizer=optimizer, num_samples=None, row_dtype=tables.tier.dtype)
    plan = make_plan(
        loads,
        world_size=dist.get_world_size(),
        memory_per_rank=None,
        replicate_below_bytes=-1,
        optimizer=optimizer.name,
        keep_whole=True,
    )
    check_plan(plan, loads, optimizer=optimizer.name)
    return Sharding(plan=plan)


def _is_replicated(tables: "Tables", table: str) -> bool:
    assert tables.sharding is not None
    return tables.sharding.is_replicated(table)


def _set_states(tables: "Tables", states: dict[str, dict[str, Tensor]], count: int) -> None:
    """Gives the parts of tables the optimizer's state that whole tables had."""
    with writing(tables):
        for store in tables.row_stores():
            held = store.optimizer_state()
            for shard in store.shards:
                for kind, view in held[shard.table.name].items() if shard.num_rows else ():
                    _set_part(view, states[shard.table.name][kind], shard)
            store.load_step(count)


def _set_part(view: Tensor, whole: Tensor, shard: TableShard) -> None:
    numbers = shard.row_numbers()
    local = (numbers < shard.table.num_embeddings).nonzero().squeeze(1)
    part = whole[numbers[local].to(whole.device)]
    if view.dim() == 2 and part.shape[1] != view.shape[1]:
        part = part[:, shard.first_column : shard.first_column + shard.num_columns]
    view[local.to(view.device)] = part.to(view)
