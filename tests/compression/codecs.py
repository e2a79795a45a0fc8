"""The codecs that take any rows, by the names that tests try, and rows to try them on."""

import torch
from torch import Tensor

from embank.tables import Coded, named_codec, registered_codecs
from embank.tables.method.facts import facts_of, restored

OWN = [n for n in registered_codecs() if not n.startswith("test_") and named_codec(n).takes_rows]
NAMES = [*OWN, "pca3+int8", "lowrank2+int4", "pca2+dedup+fp16", "binary1", "binary3", "pq3", "dedup20+int4"]
"""Every registered codec that takes rows, and some with a number or an inner codec."""


def random_rows(num_rows: int, dim: int, *, seed: int = 0) -> Tensor:
    """Of unlike sizes, as trained rows are."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(num_rows, 1, generator=generator) + 0.1
    return torch.randn(num_rows, dim, generator=generator) * sizes


def loaded(coded: Coded) -> Coded:
    """The same from its facts and tensors alone, as a bundle gives it."""
    tensors = {name: tensor.clone() for name, tensor in coded.named_buffers()}
    made: Coded = restored(type(coded), facts_of(coded), tensors)
    return made
