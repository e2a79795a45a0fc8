"""What oracle tests share: every logical row by looking it up, and gradients of a random linear functional."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from embank.tables import RowOptimizer, TableCollection, TableSpec

Materialise = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]
"""The whole logical table [N, D] from physical rows by table and dense parameters by name, written from the
definition."""


def lookup(tables: TableCollection, ids_N: Tensor) -> Tensor:
    """Logical rows [N, D], each id a bag of its own."""
    (feature,) = tables.specs[0].feature_names
    lengths = torch.ones(ids_N.numel(), dtype=torch.int32)
    values: Tensor = tables(KeyedJaggedTensor(keys=[feature], values=ids_N, lengths=lengths)).values()
    return values


class Gradients(NamedTuple):
    rows: dict[str, Tensor]
    dense: dict[str, Tensor]


def check_against(spec: TableSpec, materialise: Materialise, *, num_ids: int = 200) -> None:
    """Lookups, their batches, and the gradient of a random linear functional of them, against the materialised table.

    Args:
        spec: of the table, of one feature.
        materialise: the oracle.
        num_ids: size of the batch, with repeated ids.
    """
    generator = torch.Generator().manual_seed(0)
    tables = TableCollection([replace(spec)], backend="torch", optimizer=RowOptimizer(name="sgd", lr=1.0), seed=3)
    (method,) = tables.built_methods()
    rows = {name: rows.clone().requires_grad_() for name, rows in tables.weights().items()}
    dense = {name: value.detach().clone().requires_grad_() for name, value in method.named_parameters()}
    table_ND = materialise(rows, dense)
    assert table_ND.shape == (spec.num_embeddings, spec.embedding_dim)
    everything = torch.arange(spec.num_embeddings)
    torch.testing.assert_close(lookup(tables, everything).detach(), table_ND.detach(), rtol=1e-5, atol=1e-7)

    ids = torch.randint(spec.num_embeddings, (num_ids,), generator=generator)
    functional = torch.randn(num_ids, spec.embedding_dim, generator=generator)
    found = lookup(tables, ids)
    torch.testing.assert_close(found.detach(), table_ND.detach()[ids], rtol=1e-5, atol=1e-7)
    (found * functional).sum().backward()
    (table_ND[ids] * functional).sum().backward()
    store = tables.row_stores()[0]
    for shard, updated in zip(store.shards, store.rows, strict=True):  # by SGD of rate 1, and not projected yet
        moved, name = rows[shard.table.name].detach() - updated, shard.table.name
        torch.testing.assert_close(moved, rows[name].grad, rtol=1e-5, atol=1e-5, msg=name)
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(parameter.grad, dense[name].grad, rtol=1e-4, atol=1e-5)


def zipf_counts(num: int, *, exponent: float = 1.05, total: float = 1e6) -> Tensor:
    """Counts of ids that are ranked as `embank prepare` ranks them: 0 for the unknown value, then falling, with a tail
    of ones."""
    falling = (total / torch.arange(1, num + 1, dtype=torch.float64) ** exponent).long().clamp(min=1)
    return torch.cat([torch.zeros(1, dtype=torch.int64), falling[: num - 1]])
