"""What ranks do in the tests of sharded memories. Runs in worker processes."""

from pathlib import Path

import torch

from embank.tables import ConfigError, RowOptimizer, RowTier
from embank.tables.memory import MemoryTables
from embank.tables.storage.checkpoint import row_tensors
from tests.memory.small import engram, stem, tokens


def shared(cut: str | dict[str, str], folder: Path | None, *, rank: int, name: str = "rowwise_adagrad") -> MemoryTables:
    tier = None if folder is None else RowTier(name="disk", directory=folder / f"rank{rank}")
    return MemoryTables(
        [engram(), stem()],
        optimizer=RowOptimizer(name=name, lr=0.5),
        tier=tier,
        cut=cut,
        backend="torch" if name == "adam" else "fbgemm",
    )


def train_part(
    rank: int, cut: str | dict[str, str], folder: Path | None, saved: Path | None, name: str
) -> list[torch.Tensor]:
    """Three steps on this rank's sequences, of which there may be none: 3 and 1, 4 and 0, 2 and 2 of each batch."""
    tables = shared(cut, folder, rank=rank, name=name)
    looked_up = []
    for step, bound in enumerate((3, 4, 2)):
        ids = tokens(batch=4, seed=step)
        mine = ids[:bound] if rank == 0 else ids[bound:]
        addressed = tables.address(mine)
        tables.prefetch(addressed)
        rows = tables.look_up(addressed)
        looked_up.append(rows["engram"][1].detach().clone())
        # Gradients are averaged over ranks: of four sequences each rank's half.
        loss = sum((r - 1).square().sum() for by_layer in rows.values() for r in by_layer.values()) / 2
        loss.backward()
        tables.step()
    if saved is not None:
        tables.save(saved)
    return looked_up


def loaded(rank: int, cut: str, folder: Path) -> dict[str, torch.Tensor]:
    """Rows and optimizer state of this rank's part of a checkpoint, by name: row numbers and values."""
    tables = shared(cut, None, rank=rank)
    tables.load(folder)
    parts = {}
    for collection in tables.collections.values():
        for tensor in row_tensors(collection):
            numbers = tensor.shard.row_numbers()
            real = numbers < tensor.shard.table.num_embeddings
            parts[tensor.name] = (numbers[real], tensor.view[real].clone())
    return parts


def refused(rank: int, cut: str | dict[str, str], name: str) -> str:
    """Why tables can't be cut so."""
    try:
        shared(cut, None, rank=rank, name=name)
    except ConfigError as error:
        return str(error)
    return "it was not refused"
