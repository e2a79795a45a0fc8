"""Row stores whose lookups come in any order."""

from typing import Literal

import pytest
import torch
import torch.nn.functional as F

from embank.tables.rows import RowOptimizer, StoreSpec, build_rows
from embank.tables.rows.physical import PhysicalTable, RowInit
from embank.tables.rows.shards import TableShard


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad"])
@pytest.mark.parametrize("dims", [(8, 8), (8, 6)])
def test_lookups_of_a_table_need_not_be_neighbours(name: str, dims: tuple[int, int]) -> None:
    """FBGEMM's backward takes lookups of one table for neighbours; the store orders them and gives the caller's order
    back."""
    shards = [
        TableShard.whole(PhysicalTable(name=f"t{i}", num_embeddings=9, embedding_dim=dim, init=RowInit(scale=1.0)))
        for i, dim in enumerate(dims)
    ]
    lookups = [1, 0, 1, 0, 0]
    fast, slow = (
        build_rows(StoreSpec(shards=shards, lookups=lookups, backend=b, optimizer=RowOptimizer(name=name, lr=0.1)))
        for b in ("fbgemm", "torch")
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        indices, offsets = torch.randint(0, 9, (5 * 4,), generator=generator), torch.arange(5 * 4 + 1)
        columns = [F.embedding(indices[4 * k : 4 * k + 4], fast.weights()[f"t{t}"]) for k, t in enumerate(lookups)]
        out = fast(indices, offsets)
        assert torch.equal(out, torch.cat(columns, dim=1))
        for rows in (out, slow(indices, offsets)):
            rows.square().sum().backward()
        fast.update()
        slow.update()
        for table, weight in fast.weights().items():
            torch.testing.assert_close(weight, slow.weights()[table], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dims", [(8, 8, 8), (8, 6, 3), (8,), (2100, 4)])
@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
def test_a_tables_rows_are_those_of_all_tables(dims: tuple[int, ...], backend: Literal["fbgemm", "torch"]) -> None:
    """`weight` and `weights` are views of the same memory, and of one shape, with and without columns of padding."""
    shards = [
        TableShard.whole(PhysicalTable(name=f"t{i}", num_embeddings=5 + i, embedding_dim=dim, init=RowInit(scale=1.0)))
        for i, dim in enumerate(dims)
    ]
    rows = build_rows(StoreSpec(shards=shards, lookups=range(len(dims)), backend=backend))
    for name, view in rows.weights().items():
        own = rows.weight(name)
        assert own.data_ptr() == view.data_ptr()
        assert (own.shape, own.stride(), own.requires_grad) == (view.shape, view.stride(), view.requires_grad)


def test_parts_are_the_columns_of_all_lookups() -> None:
    """In value and in the updates of a backward pass."""
    shards = [
        TableShard.whole(PhysicalTable(name=f"t{i}", num_embeddings=9, embedding_dim=dim, init=RowInit(scale=1.0)))
        for i, dim in enumerate((8, 6, 2100))
    ]
    lookups, (indices, offsets) = [1, 0, 2, 0], (torch.arange(8) % 9, torch.arange(9))
    for backend in ("fbgemm", "torch"):
        whole, parted = (build_rows(StoreSpec(shards=shards, lookups=lookups, backend=backend)) for _ in range(2))
        for _ in range(3):
            out, parts = whole(indices, offsets), parted.parts(indices, offsets)
            assert torch.equal(out, torch.cat(parts, dim=1))
            out.sin().sum().backward()
            torch.cat([part.sin() for part in parts], dim=1).sum().backward()
            whole.update()
            parted.update()
        for name, rows in whole.weights().items():
            assert torch.equal(rows, parted.weight(name))
