"""TorchRec's collections and ours from one seed, and batches for both."""

from typing import Any

import torch
import torchrec
from torch import Tensor
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

from embank.tables.torchrec import (
    EmbeddingBagCollection,
)


def configs(cls: type = EmbeddingBagConfig, **change: Any) -> list[Any]:
    return [
        cls(name="t1", num_embeddings=30, embedding_dim=4, feature_names=["a", "b"], **change),
        cls(name="t2", num_embeddings=20, embedding_dim=4, feature_names=["c"], **change),
    ]


def batch(seed: int, *, weighted: bool = False, rows: int = 9) -> KeyedJaggedTensor:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 4, (3 * rows,), generator=draw)
    counts = lengths.view(3, rows).sum(1).tolist()
    values = torch.cat([torch.randint(0, n, (k,), generator=draw) for n, k in zip((30, 30, 20), counts, strict=True)])
    weights = torch.rand(values.numel(), generator=draw) if weighted else None
    return KeyedJaggedTensor(keys=["a", "b", "c"], values=values, lengths=lengths, weights=weights)


def pair(**how: Any) -> tuple[EmbeddingBagCollection, torchrec.EmbeddingBagCollection]:
    """Ours and TorchRec's from one seed."""
    made = []
    for cls in (EmbeddingBagCollection, torchrec.EmbeddingBagCollection):
        torch.manual_seed(3)
        made.append(cls(tables=configs(), **how))
    return made[0], made[1]


def loss_of(values: Tensor) -> Tensor:
    return (values * torch.linspace(-1, 1, values.numel()).view_as(values)).sum() + values.square().mean()
