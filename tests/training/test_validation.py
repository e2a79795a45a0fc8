"""The sample of validation that candidates of a search are scored on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import build
from embank.pipelines.train.validation import ValidationSample
from embank.tables.sharding.processes import Processes
from tests.training.runs import config, write_data

ROWS = 1000


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A validation split of some size."""
    rows = {"train": 200, "valid": ROWS, "test": 10}
    return write_data(tmp_path_factory.mktemp("sampled") / "prepared", rows=rows, row_group_rows=128)


def sample(data: Path, max_samples: int | None) -> ValidationSample:
    return ValidationSample(config(data), max_samples=max_samples, processes=Processes())


def rows_of(sample: ValidationSample) -> set[tuple[float, ...]]:
    return {tuple(row) for batch in sample.batches for row in batch.dense.tolist()}


def test_all_rows_are_in_it_once_and_in_no_order_of_the_file(data: Path) -> None:
    everything = sample(data, None)
    drawn = torch.cat([batch.dense[:, 0] for batch in everything.batches])
    in_file = torch.cat([b.dense[:, 0] for b in Loader(data, "valid", batch_size=256, shuffle=False).epoch(0)])
    assert not torch.equal(drawn, in_file)
    assert torch.equal(drawn.sort().values, in_file.sort().values)
    assert len(everything.batches) >= 16
    assert all(
        torch.equal(a.dense, b.dense) for a, b in zip(everything.batches, sample(data, None).batches, strict=True)
    )


@pytest.mark.parametrize("most", [300, 500])
def test_a_part_is_spread_over_all(data: Path, most: int) -> None:
    part = sample(data, most)
    num = sum(batch.labels.numel() for batch in part.batches)
    assert most * 0.6 <= num <= most + part.batches[0].labels.numel()
    assert len(part.batches) >= 16
    assert rows_of(part) < rows_of(sample(data, None))


def test_scores_are_those_of_the_very_rows(data: Path, tmp_path: Path) -> None:
    parsed = config(data)
    model = build(parsed, Schema.load(data), data=data, rows_folder=tmp_path / "rows").eval()
    drawn = sample(data, None)
    with torch.no_grad():
        pairs = [(model(b.dense, b.sparse), b.labels) for b in drawn.batches]
    share = 3 / len(pairs)
    logits, labels = (torch.cat(column).double().numpy() for column in zip(*pairs, strict=True))
    first = sum(labels.numel() for _, labels in pairs[:3])
    assert drawn.score(model) == pytest.approx(roc_auc_score(labels, logits), abs=1e-6)
    expected = -log_loss(labels[:first], 1 / (1 + np.exp(-logits[:first])))
    assert drawn.score(model, share=share) == pytest.approx(expected, abs=1e-6)
    assert drawn.score(model, share=1e-9) < 0, "a share has a batch at least"
