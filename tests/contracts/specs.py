"""The tables that contract suites build of every method."""

from typing import Any

import torch

from embank.compression import METHODS
from embank.compression.methods.compositional import CompositionalConfig
from embank.compression.methods.hash_embedding import HashEmbeddingConfig
from embank.compression.methods.memcom import MemcomConfig
from embank.compression.methods.unified import UnifiedConfig
from embank.tables import TableSpec

NAMES = sorted(name for name in METHODS if not name.startswith("test_"))  # other tests register methods of theirs
NUM, DIM, BUDGET = 1200, 12, 0.5
EXACT_FLOOR = {"full"}
"""Methods that reach no budget below 1."""
BATCH_DEPENDENT = {"dhe"}
"""Methods whose training forward normalises over the batch, so that one id's row depends on the others'."""
COUNTS = (1e5 / torch.arange(1, NUM + 1) ** 1.1).long()
"""Ids are ranked by frequency, as `embank prepare` leaves them."""
SHARING: dict[str, Any] = {
    "compositional": CompositionalConfig(table="pool", num_rows=300),
    "hash_embedding": HashEmbeddingConfig(table="pool", num_rows=300),
    "memcom": MemcomConfig(table="pool", num_rows=300),
    "unified": UnifiedConfig(rows=300),
}
"""Methods whose rows several tables may share, with the options for it."""


def spec(
    method: str, *, name: str = "t", features: tuple[str, ...] = ("a",), pooling: str = "sum", plain: bool = False
) -> TableSpec:
    """A table of a method under the suites' budget, or of its natural size."""
    return TableSpec(
        name=name,
        num_embeddings=NUM,
        embedding_dim=DIM,
        feature_names=features,
        pooling=pooling,
        method=method,
        budget=None if plain or method in EXACT_FLOOR else BUDGET,
        counts=COUNTS,
    )
