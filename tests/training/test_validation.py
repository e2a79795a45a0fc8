"""The sample of validation that candidates of a search are scored on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from embank.ctr_models import CTRModel
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import build
from embank.pipelines.train.validation import ValidationSample
from embank.tables import TableCollection
from tests.training.runs import config, write_data

ROWS = 1000


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A validation split of some size."""
    rows = {"train": 200, "valid": ROWS, "test": 10}
    return write_data(tmp_path_factory.mktemp("sampled") / "prepared", rows=rows, row_group_rows=128)


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> CTRModel:
    rows = tmp_path_factory.mktemp("rows")
    return build(config(data), Schema.load(data), data=data, rows_folder=rows).eval()


def sample(data: Path, model: CTRModel, max_samples: int | None) -> ValidationSample:
    assert isinstance(model.tables, TableCollection)
    return ValidationSample(config(data), model.tables, max_samples=max_samples)


def rows_of(sample: ValidationSample) -> set[tuple[float, ...]]:
    return {tuple(row) for batch in sample.batches for row in batch.dense.tolist()}


def test_all_rows_are_in_it_once_and_in_no_order_of_the_file(data: Path, model: CTRModel) -> None:
    everything = sample(data, model, None)
    drawn = torch.cat([batch.dense[:, 0] for batch in everything.batches])
    in_file = torch.cat([b.dense[:, 0] for b in Loader(data, "valid", batch_size=256, shuffle=False).epoch(0)])
    assert not torch.equal(drawn, in_file)
    assert torch.equal(drawn.sort().values, in_file.sort().values)
    assert len(everything.batches) >= 8
    again = sample(data, model, None)
    assert all(torch.equal(a.dense, b.dense) for a, b in zip(everything.batches, again.batches, strict=True))


@pytest.mark.parametrize("most", [300, 500])
def test_a_part_is_spread_over_all(data: Path, model: CTRModel, most: int) -> None:
    part = sample(data, model, most)
    num = sum(batch.labels.numel() for batch in part.batches)
    assert most * 0.6 <= num <= most + part.batches[0].labels.numel()
    assert len(part.batches) >= 8
    assert rows_of(part) < rows_of(sample(data, model, None))


def test_scores_are_those_of_the_very_rows(data: Path, model: CTRModel) -> None:
    drawn = sample(data, model, None)
    with torch.no_grad():
        pairs = [(model(b.dense, b.sparse), b.labels) for b in drawn.batches]
    share = 3 / len(pairs)
    logits, labels = (torch.cat(column).double().numpy() for column in zip(*pairs, strict=True))
    first = sum(labels.numel() for _, labels in pairs[:3])
    assert drawn.score(model) == pytest.approx(roc_auc_score(labels, logits), abs=1e-6)
    expected = -log_loss(labels[:first], 1 / (1 + np.exp(-logits[:first])))
    assert drawn.score(model, share=share) == pytest.approx(expected, abs=1e-6)
    assert drawn.score(model, share=1e-9) < 0, "a share has a batch at least"
