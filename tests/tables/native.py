"""What the tests of the compiled lookup share."""

from pathlib import Path

import torch
from torch import Tensor

from embank.tables import PackedCollection, TableCollection, TableSpec, load_bundle, save_bundle
from embank.tables.collections.stages import advance, num_stages
from embank.tables.method.together import Rule, Widened
from embank.tables.serving.codecs.registry import encode
from embank.tables.serving.lookups import Lookups
from embank.tables.serving.native.kernel import Kernel
from embank.tables.serving.stacks import Stack

CODECS = (
    "fp32",
    "fp16",
    "bf16",
    "int8",
    "int6",
    "int4",
    "int3",
    "int2",
    "int8_rowwise",
    "int4_rowwise",
    "int2_rowwise",
)
NUM_ROWS = 1300  # more than one block of lookup.cpp


def kernel_of(matrices: list[Tensor], codec: str, rules: list[Rule], widening: Widened | None = None) -> Kernel:
    found = Kernel.of(
        [encode(rows, codec=codec).layout() for rows in matrices],
        rules,
        widening,
        num_ids=[rule.num_rows for rule in rules],
    )
    assert found is not None
    return found


def looked_up(own: Kernel, ids_KB: Tensor) -> Tensor:
    """[B, K, D]."""
    found = own(ids_KB.numpy())
    assert found is not None, "the tests need a C++ compiler"
    return found.view(ids_KB.shape[1], ids_KB.shape[0], own.form.dim)


def ids_of(num_rows: int, *, num_tables: int = 2, batch_size: int = 1100) -> Tensor:
    ids_KB = torch.randint(num_rows, (num_tables, batch_size), generator=torch.Generator().manual_seed(0))
    ids_KB[:, 0], ids_KB[:, -1] = 0, num_rows - 1
    return ids_KB


def bundle_of(folder: Path, method: str, codec: str, *, budget: float = 0.25) -> PackedCollection:
    """Three tables of a method, as it is when it is trained."""
    specs = [
        TableSpec(
            name=f"t{k}",
            num_embeddings=500 + k,
            embedding_dim=16,
            feature_names=[f"f{k}"],
            method=method,
            budget=None if method == "full" else budget,
        )
        for k in range(3)
    ]
    tables = TableCollection(specs, backend="torch")
    for _ in range(num_stages(tables) - 1):
        tables = advance(tables)
    save_bundle(folder, tables, codec=codec)
    return load_bundle(folder)


def stack_of(packed: PackedCollection) -> Stack:
    (step,) = Lookups(packed).parts[0]
    assert isinstance(step, Stack)
    return step
