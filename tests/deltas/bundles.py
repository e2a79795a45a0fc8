"""Bundles that follow each other, for tests of deltas."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from embank.tables import TableCollection, TableSpec, save_bundle
from embank.tables.collections.stages import settle

DIM = 8


def tables(
    num: int = 1000, *, method: str = "full", names: Sequence[str] = ("a", "b"), seed: int = 0
) -> TableCollection:
    """A collection of tables, read by features of the same names."""
    return TableCollection(
        [TableSpec(name=n, num_embeddings=num, embedding_dim=DIM, feature_names=[n], method=method) for n in names],
        seed=seed,
    )


def moved(old: TableCollection, rows: Sequence[int], *, by: float = 0.5) -> TableCollection:
    """The same collection with some rows of its tables moved, and with whatever else its methods have learned."""
    with old.writing(), torch.no_grad():
        for weight in old.weights().values():
            weight[[row for row in rows if row < len(weight)]] += by
        for parameter in old.methods.parameters():
            parameter += by
    settle(old)
    return old


def network(seed: float = 0) -> dict[str, Tensor]:
    """Of a model."""
    return {"weight": torch.arange(6.0).view(2, 3) + seed, "steps": torch.tensor(7)}


def chain(folder: Path, length: int) -> list[Path]:
    """Bundles of which each has a few other rows than the one before, and another network."""
    made, current = [], tables()
    for number in range(length + 1):
        made.append(folder / f"v{number}")
        save_bundle(made[-1], current, network=network(number), facts={"step": number})
        moved(current, [number, 10 + number, 900])
    return made


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
