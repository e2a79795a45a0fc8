"""Bytes that rows take, and whether the machine has memory for them: asked before any is taken.

A machine that takes on more than it has does not say so. It writes other programs' memory to its disk for minutes, and
then ends some process without a word.
"""

import gc

from embank.tables.errors import ConfigError
from embank.tables.rows.base import padded_dim
from embank.tables.rows.shards import TableShard
from embank.tables.rows.store_spec import ROW_DTYPES, RowDtype, RowOptimizer, RowTier, StoreSpec
from embank.tables.storage.free_memory import FreeMemory, free_memory
from embank.tables.wording import human_bytes


def row_nbytes(dim: int, optimizer: RowOptimizer, *, dtype: RowDtype = "fp32", is_padded: bool = True) -> int:
    """Bytes of a row and its optimizer state.

    Args:
        dim: of the row.
        optimizer: whose state counts; one outside of the store has none here.
        dtype: of the row; state is fp32.
        is_padded: as FBGEMM holds it.
    """
    width = padded_dim(dim) if is_padded else dim
    num_state = {"rowwise_adagrad": 1, "adagrad": width, "adam": 2 * width}.get(optimizer.name, 0)
    return ROW_DTYPES[dtype].itemsize * width + 4 * num_state


def refuse_larger_than_memory(spec: StoreSpec) -> None:
    """Refuses rows for the host's memory of which it can't hold all. Optimizer state takes memory row by row, as
    training meets them, and does not count. The room on a disk is looked at when its files are made, and a device's is
    its own to refuse.

    Args:
        spec: all that a collection will hold in this process, in however many stores.

    Raises:
        ConfigError: names the largest table and the bytes.
    """
    total = sum(_nbytes(shard, spec) for shard in spec.shards)
    free = short_of_memory(total, spec.tier)
    if free is None:
        return
    shard = max(spec.shards, key=lambda shard: _nbytes(shard, spec))
    held = free.nbytes
    disk = "an optimizer of the tables' own and the tier 'disk'" if spec.optimizer.is_external else "the tier 'disk'"
    raise ConfigError(
        f"the rows of {'these tables' if len(spec.shards) > 1 else 'this table'} take {total:,} bytes "
        f"({human_bytes(total)}), and {free.owner} has {held:,} bytes ({human_bytes(held)}) of memory left. The "
        f"largest table is '{shard.table.name}' with {_nbytes(shard, spec):,} bytes ({shard.num_rows:,} rows of "
        f"{shard.num_columns:,} numbers). Use fewer or narrower rows, {disk}, or more machines"
    )


def short_of_memory(nbytes: int, tier: RowTier) -> FreeMemory | None:
    """The memory that is left, where it is less than rows take; None where they have room, or are held elsewhere.

    Args:
        nbytes: that are to be taken.
        tier: where rows are to be held.
    """
    if tier.is_meta or tier.name == "disk" or (tier.name == "device" and tier.on_gpu):
        return None
    if nbytes <= free_memory().nbytes:
        return None
    gc.collect()  # an earlier model that nobody has any more may still be there
    free = free_memory()
    return free if nbytes > free.nbytes else None


def _nbytes(shard: TableShard, spec: StoreSpec) -> int:
    is_padded = spec.backend == "fbgemm" and not spec.optimizer.is_external
    width = padded_dim(shard.num_columns) if is_padded else shard.num_columns
    return shard.num_rows * ROW_DTYPES[spec.tier.dtype].itemsize * width
