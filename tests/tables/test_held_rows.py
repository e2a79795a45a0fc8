"""Rows between steps: fetched when a method asks for them, and held where a step is not to move them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from embank.tables import SequenceCollection, TableCollection, TableSpec
from embank.tables.collections.held_rows import HeldRows
from embank.tables.collections.stages import rows_held
from embank.tables.rows.torch_rows import TorchRows

SPECS = [TableSpec(name="t", num_embeddings=20, embedding_dim=4, feature_names=["t"], method="deeplight", budget=0.5)]
KJT = KeyedJaggedTensor(keys=["t"], values=torch.arange(20), lengths=torch.ones(20, dtype=torch.int32))


def test_rows_are_fetched_when_a_method_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store may have to wait for what is on its way, and let go what was prefetched."""
    tables = TableCollection([*SPECS, replace(SPECS[0], name="other")], backend="torch")
    fetched = []
    weight = TorchRows.weight

    def counted(store: TorchRows, table: str) -> Tensor:
        fetched.append(table)
        return weight(store, table)

    monkeypatch.setattr(TorchRows, "weight", counted)
    monkeypatch.setattr(TorchRows, "weights", lambda _: pytest.fail("rows of tables that nobody has asked for"))
    tables.begin(num_steps=1000)
    tables.step()  # long before DeepLight begins to prune
    rows = HeldRows(tables)
    assert not fetched
    assert rows["t"].shape == (20, 4)
    assert rows["t"] is rows["t"]
    assert fetched == ["t"]


def test_copies_may_be_written_to() -> None:
    tables = TableCollection(SPECS)
    before = tables.weights()["t"].clone()
    HeldRows(tables, copied=["t"])["t"].zero_()
    assert torch.equal(tables.weights()["t"], before)
    HeldRows(tables)["t"].zero_()
    assert not tables.weights()["t"].any()


@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
@pytest.mark.parametrize("cls", [TableCollection, SequenceCollection])
def test_rows_that_are_held_do_not_move(cls: type[TableCollection], backend: str) -> None:
    tables = cls(SPECS, backend=backend)
    scale = torch.ones(4, requires_grad=True)
    before = tables.weights()["t"].clone()
    for is_held in (True, False):
        tables.requires_grad_(True)
        if is_held:
            with rows_held(tables):
                out = tables(KJT)
        else:
            out = tables(KJT)
        values = out.values() if cls is TableCollection else out["t"].values()
        (values * scale).sum().backward()
        tables.update_rows()
        assert torch.equal(tables.weights()["t"], before) == is_held


def test_holding_rows_that_are_frozen_leaves_them_frozen() -> None:
    tables = TableCollection(SPECS)
    tables.requires_grad_(False)
    with rows_held(tables):
        tables(KJT)
    assert not tables.rows_learn


def test_holding_rows_within_a_block_that_holds_them() -> None:
    tables = TableCollection(SPECS)
    with rows_held(tables):
        with rows_held(tables):
            pass
        assert not tables.statistics_learn
        assert not tables.rows_learn
    assert tables.statistics_learn
