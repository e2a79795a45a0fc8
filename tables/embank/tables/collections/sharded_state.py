"""Rows that are spread over processes in a `state_dict`, as TorchRec has them: each process names its parts of a table
(`ShardedTensor`), and distributed checkpoints and TorchRec's own helpers put them together."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.metadata import ShardedTensorMetadata, TensorProperties
from torch.distributed._shard.sharded_tensor.shard import Shard

from embank.tables.errors import CheckpointError, ConfigError
from embank.tables.rows.physical import PhysicalTable
from embank.tables.rows.shards import TableShard

if TYPE_CHECKING:
    from embank.tables.collections.base import Tables


def sharded_weights(tables: "Tables") -> dict[str, Tensor]:
    """Rows of each physical table: its parts here and where the others are, or all of them where every process has
    them. Nothing is copied or sent.

    Raises:
        ConfigError: a table is cut into stripes of rows, which are no blocks of it.
    """
    assert tables.sharding is not None
    held = tables.weights()
    found = {}
    for method in tables.built_methods():
        for table in method.physical:
            kind = tables.sharding.plan.placement(table.name).kind
            if kind == "row_wise":
                raise ConfigError(
                    f"the rows of table '{table.name}' are dealt to {tables.processes.count} processes in stripes, "
                    "which a state_dict can't name. Use save_checkpoint and load_checkpoint of embank.tables, or a "
                    "plan without row_wise (Tables.spread(sharding=...))"
                )
            found[table.name] = held[table.name] if kind == "data_parallel" else _parts(tables, table, held)
    return found


def _parts(tables: "Tables", table: PhysicalTable, held: dict[str, Tensor]) -> Tensor:
    assert tables.sharding is not None
    sharding, device = tables.sharding, tables.tier.device
    every = [(rank, sharding.plan.shard(table, rank)) for rank in range(sharding.plan.world_size)]
    boxes = {rank: _box(shard, rank, device=device) for rank, shard in every if shard is not None}
    facts = ShardedTensorMetadata(
        shards_metadata=list(boxes.values()),
        size=torch.Size([table.num_embeddings, table.embedding_dim]),
        tensor_properties=TensorProperties(dtype=tables.tier.torch_dtype),
    )
    own = [Shard(held[table.name], boxes[sharding.rank])] if sharding.rank in boxes else []
    made: Tensor = ShardedTensor._init_from_local_shards_and_global_metadata(
        own, facts, process_group=sharding.process_group
    )
    return made


def _box(shard: TableShard, rank: int, *, device: str) -> ShardMetadata:
    return ShardMetadata(
        [shard.first_position, shard.first_column],
        [shard.num_rows, shard.num_columns],
        placement=f"rank:{rank}/{device}",
    )


def lacks_values(rows: Tensor) -> bool:
    """Whether rows of a `state_dict` are on the meta device."""
    return not isinstance(rows, ShardedTensor) and rows.is_meta


def copy_parts(target: Tensor, source: Tensor, *, name: str) -> None:
    """Copies rows into the parts of a table that are here.

    Args:
        target: what `sharded_weights` gave.
        source: the whole table, or the same parts of it.
        name: of the rows, for errors.

    Raises:
        CheckpointError: other parts.
    """
    if isinstance(source, ShardedTensor) and not isinstance(target, ShardedTensor):
        raise CheckpointError(
            f"the state_dict's '{name}' is spread over processes, and these tables are not. Load it by "
            "torch.distributed.checkpoint into the state_dict of these tables, or gather it first"
        )
    for shard in target.local_shards() if isinstance(target, ShardedTensor) else ():
        box = shard.metadata
        (row, column), (rows, columns) = box.shard_offsets, box.shard_sizes
        if isinstance(source, ShardedTensor):
            same = [s for s in source.local_shards() if s.metadata.shard_offsets == box.shard_offsets]
            if not same or same[0].metadata.shard_sizes != box.shard_sizes:
                raise CheckpointError(
                    f"the state_dict's '{name}' is cut in another way. Load it by torch.distributed.checkpoint into "
                    "the state_dict of these tables, which cuts it anew"
                )
            shard.tensor.copy_(same[0].tensor)
        else:
            shard.tensor.copy_(source[row : row + rows, column : column + columns])
    if not isinstance(target, ShardedTensor):
        target.copy_(source)
