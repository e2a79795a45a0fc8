"""What tests of methods share: a table of one method, and the check of its values and gradients against a dense
graph."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from embank.compression import Packed, Table
from embank.tables import RowOptimizer, TableSpec
from tests.compression.materialised import lookup
from tests.tables.batches import random_kjt

Weights = dict[str, Tensor]


def spec_of(
    method: str, num: int, dim: int, *, options: Any = None, budget: float | None = None, **more: Any
) -> TableSpec:
    return TableSpec(
        name="t",
        num_embeddings=num,
        embedding_dim=dim,
        feature_names=["t"],
        method=method,
        options=options,
        budget=budget,
        **more,
    )


def table_of(
    method: str, num: int, dim: int, *, options: Any = None, budget: float | None = None, seed: int = 0
) -> Table:
    """A table whose rows move by minus their gradient."""
    spec = spec_of(method, num, dim, options=options, budget=budget)
    return Table(spec, seed=seed, optimizer=RowOptimizer(name="sgd", lr=1.0))


def materialised(table: Table) -> Tensor:
    """Every logical row [N, D] in evaluation mode."""
    return table.lookup(torch.arange(table.spec.num_embeddings))


def looked_up(table: Table, ids_N: Tensor) -> Tensor:
    """Logical rows [N, D] with their graph, in the mode that the collection is in: what a training step sees."""
    return lookup(table.collection, ids_N)


def check_against_dense(table: Table, dense: Callable[[Weights], Tensor], *, seed: int = 0) -> None:
    """lookup(batch) is dense(weights)[batch], and a random linear functional of both has the same gradient.

    Args:
        table: with rows that move by minus their gradient.
        dense: the logical table [N, D] from physical rows, written without the code under test; differentiable.
        seed: of the batch, in which ids repeat, and the functional.
    """
    generator = torch.Generator().manual_seed(seed)
    num, dim = table.spec.num_embeddings, table.spec.embedding_dim
    ids = torch.randint(0, num, (2 * num + 3,), generator=generator)
    direction = torch.randn(ids.numel(), dim, generator=generator)
    leaves = {name: rows.clone().requires_grad_() for name, rows in table.collection.weights().items()}
    expected = dense(leaves)
    torch.testing.assert_close(materialised(table), expected.detach(), rtol=1e-5, atol=1e-6)
    (expected[ids] * direction).sum().backward()
    out = looked_up(table, ids)
    torch.testing.assert_close(out.detach(), expected.detach()[ids], rtol=1e-5, atol=1e-6)
    (out * direction).sum().backward()
    table.collection.update_rows()
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        moved = leaf.detach() - table.collection.weights()[name]
        torch.testing.assert_close(moved, leaf.grad, rtol=1e-4, atol=1e-4 * float(leaf.grad.abs().max()))


def splitmix64(value: int) -> int:
    """The finaliser of splitmix64 on Python integers, as an unsigned 64-bit number."""
    mask = 2**64 - 1
    z = (value + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def packed_after_training(table: Table) -> Packed:
    """A table's packed form after 20 steps, which serves what the trained table shows, bit for bit."""
    num = table.spec.num_embeddings
    for seed in range(20):
        kjt = random_kjt({table.feature: num}, batch_size=64, seed=seed)
        (table.collection(kjt).values() - 0.7).square().sum().backward()
        table.collection.update_rows()
    packed = table.pack()
    everything = torch.arange(num)
    assert torch.equal(packed.lookup(everything), table.lookup(everything).detach())
    return packed
