"""What batches are compared by."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from embank.pipelines.data.loading.batch import Batch


def row_numbers(batches: Iterable[Batch]) -> list[int]:
    return [int(row) for batch in batches for row in batch.dense[:, 0]]


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.position == b.position
        assert torch.equal(a.dense, b.dense)
        assert torch.equal(a.labels, b.labels)
        assert (a.groups is None and b.groups is None) or torch.equal(a.groups, b.groups)
        assert torch.equal(a.sparse.values(), b.sparse.values())
        assert torch.equal(a.sparse.lengths(), b.sparse.lengths())


def assert_matches_files(batches: list[Batch], path: Path, split: str) -> None:
    """The slow twin: compare every batch, row by row, with the rows that pyarrow reads."""
    table = pa.concat_tables([pq.read_table(part) for part in sorted((path / split).glob("*.parquet"))])
    rows = table.to_pylist()
    for batch in batches:
        bags = {key: jagged.to_dense() for key, jagged in batch.sparse.to_dict().items()}
        for place, number in enumerate(row_numbers([batch])):
            row = rows[number]
            assert row["label"] == batch.labels[place]
            if batch.groups is not None:
                assert row["group"] == batch.groups[place]
            for key, values in bags.items():
                expected = row[key] if isinstance(row[key], list) else [row[key]]
                assert values[place].tolist() == expected
