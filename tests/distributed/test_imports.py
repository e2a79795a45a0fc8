"""Rows that others have trained, taken by sharded tables: the same as by whole ones."""

import pytest
import torch

from embank.tables import TableSpec
from tests.distributed.imports import import_sharded
from tests.distributed.ranks import Ranks

NUM, DIM = 150, 8


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["row_wise", "table_wise", "column_wise", "data_parallel"])
def test_sharded_tables_take_what_they_hold(two: Ranks, kind: str) -> None:
    spec = TableSpec(name="t", num_embeddings=NUM, embedding_dim=DIM, feature_names=["t"])
    ids = torch.randperm(NUM + 10, generator=torch.Generator().manual_seed(1))[:100]
    vectors = torch.randn(100, DIM, generator=torch.Generator().manual_seed(2))
    for worst, sharded, whole in two.run(import_sharded, spec, kind, (ids, vectors)):
        assert worst == 0
        assert sharded == whole
        assert sharded.surplus == int((ids >= NUM).sum())
        assert sharded.error == 0
