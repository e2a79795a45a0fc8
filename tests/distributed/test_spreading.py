"""Tables that every process holds, spread over all: their values stay, and checkpoints have them."""

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from embank.tables import RowOptimizer, TableCollection
from embank.tables.torchrec import EmbeddingBagCollection
from tests.distributed import spreading
from tests.distributed.programs import SIZES, bag_configs
from tests.distributed.ranks import Ranks
from tests.tables.batches import random_kjt

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [
        ("adagrad", None),
        ("rowwise_adagrad", "table_wise"),
        ("rowwise_adagrad", "row_wise"),
        ("adagrad", "column_wise"),
        ("adagrad", "data_parallel"),
    ],
)
def test_trained_tables_stay_what_they_are(two: Ranks, optimizer: str, kind: str | None) -> None:
    tables = TableCollection.from_configs(bag_configs(), optimizer=RowOptimizer(name=optimizer, lr=0.1))
    for seed in range(3):
        tables(random_kjt(SIZES, batch_size=8, seed=seed)).values().square().sum().backward()
        tables.step()
    assert two.run(spreading.differences, tables.state_dict(), optimizer, kind) == [[], []]


def test_what_is_refused(two: Ranks) -> None:
    for told in two.run(spreading.refusals):
        again, stripes, external = told
        assert "spread over 2 processes already" in again
        assert "rows of table 'a' are dealt to 2 processes in stripes" in stripes
        assert "need an optimizer of their own" in external


@pytest.mark.parametrize("kind", ["table_wise", "column_wise"])
def test_a_checkpoint_with_the_names_of_torchrec(two: Ranks, tmp_path: Path, kind: str) -> None:
    found = two.run(spreading.saved, str(tmp_path / "checkpoint"), kind)
    assert all(own["is_zero"] for own in found)
    assert any(own["first"] is not None and own["first"].any() for own in found)
    state = EmbeddingBagCollection(tables=bag_configs()).state_dict()
    assert sorted(state) == sorted(f"embedding_bags.{name}.weight" for name in SIZES)
    dcp.load({"model": state}, checkpoint_id=tmp_path / "checkpoint")
    for name, value in found[0]["whole"].items():
        assert torch.equal(state[name], value)
