"""A small memory, as the tests of this folder share it."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models

from embank.tables import RowOptimizer, RowTier
from embank.tables.memory import (
    EngramConfig,
    EngramLayout,
    MemoryTables,
    StemConfig,
    StemLayout,
    TokenCompression,
)

NUM_TOKENS = 40
LAYERS = (1, 3)
MEMORY_DIM = 32
FFN_DIM = 24


def tokenizer(words: int = NUM_TOKENS) -> Tokenizer:
    """Half of its tokens are one to the memory: "w3" and "W3"."""
    names = [f"{'wW'[n % 2]}{n // 2}" for n in range(words)]
    return Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token=names[0]))


def compression(words: int = NUM_TOKENS) -> TokenCompression:
    return TokenCompression.from_tokenizer(tokenizer(words))


def engram(**changes) -> EngramLayout:
    arguments = {"layer_ids": LAYERS, "rows_per_order": (50, 60), "memory_dim": MEMORY_DIM, "num_heads": 2}
    return EngramLayout(EngramConfig(**{**arguments, **changes}), compression(), pad_token=4)


def stem(**changes) -> StemLayout:
    return StemLayout(StemConfig(**{"layer_ids": (1, 2), "ffn_dim": FFN_DIM, **changes}), compression())


def memory(folder: Path | None = None, *, lr: float = 0.5, name: str = "rowwise_adagrad", **options) -> MemoryTables:
    """Of both kinds; with a folder, on the disk tier."""
    tier = None if folder is None else RowTier(name="disk", directory=folder)
    return MemoryTables([engram(), stem()], optimizer=RowOptimizer(name=name, lr=lr), tier=tier, **options)


def tokens(*, batch: int = 3, length: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, NUM_TOKENS, (batch, length), generator=torch.Generator().manual_seed(seed))


def weights_of(memory: MemoryTables) -> dict[str, torch.Tensor]:
    """Copies of all rows."""
    return {n: w.clone() for tables in memory.collections.values() for n, w in tables.weights().items()}


def train(memory: MemoryTables, *, steps: int, first: int = 0, batch: slice = slice(None)) -> list[float]:
    """Some steps towards rows of ones."""
    losses = []
    for step in range(first, first + steps):
        rows = memory(tokens(batch=4, seed=step)[batch])
        loss = sum((r - 1).square().mean() for by_layer in rows.values() for r in by_layer.values())
        loss.backward()
        memory.step()
        losses.append(loss.item())
    return losses
