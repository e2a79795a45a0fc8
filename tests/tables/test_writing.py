"""Changes of rows in place: what is on its way lands before them, and nothing that was fetched ahead is used after
them."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from embank.tables import RowTier, TableCollection, TableSpec, load_checkpoint, save_checkpoint
from embank.tables.collections.held_rows import HeldRows
from embank.tables.collections.stages import advance, settle
from embank.tables.rows import RowOptimizer, RowStore, StoreSpec, build_rows
from embank.tables.rows.physical import PhysicalTable, RowInit
from embank.tables.rows.staged import StagedRows
from embank.tables.streaming.resets import reset_rows

SPECS = [TableSpec(name=n, num_embeddings=20, embedding_dim=4, feature_names=[n]) for n in "ab"]
BATCH = torch.tensor([3, 4, 4, 9]), torch.arange(5)
TIERS = ["device", "disk", "staged"]


def store(tier: str, folder: Path, backend: str = "torch") -> RowStore:
    table = PhysicalTable(name="t", num_embeddings=10, embedding_dim=4, init=RowInit(scale=1.0))
    held = RowTier(name="disk", directory=folder) if tier == "disk" else RowTier()
    spec = StoreSpec.of_tables([table], lookups=[0], backend=backend, optimizer=RowOptimizer(name="sgd"), tier=held)
    return StagedRows(replace(spec, tier=RowTier(name="host"))) if tier == "staged" else build_rows(spec)


@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
@pytest.mark.parametrize("tier", TIERS)
def test_what_was_prefetched_is_not_used_after_a_change(tier: str, backend: str, tmp_path: Path) -> None:
    """Also where torch does not see the change, as from NumPy."""
    rows = store(tier, tmp_path, backend)
    weight = rows.weight("t")
    rows.prefetch(*BATCH)
    if isinstance(rows, StagedRows):
        rows.prefetched[0].gathered.result()
    before = weight._version
    with rows.writing():
        weight.numpy()[:] = 0.5
    assert weight._version == before
    assert (rows(*BATCH) == 0.5).all()


@pytest.mark.parametrize("tier", TIERS)
def test_an_update_starts_from_a_change_that_torch_does_not_see(tier: str, tmp_path: Path) -> None:
    rows = store(tier, tmp_path)
    loss = rows(*BATCH).sum()
    with rows.writing():
        rows.weight("t").numpy()[:] = 0.5
    loss.backward()
    rows.update()
    assert torch.allclose(rows.weight("t")[[3, 4, 9, 0], 0], torch.tensor([0.48, 0.46, 0.48, 0.5]))


@pytest.mark.parametrize("tier", TIERS)
def test_updates_land_before_a_change(tier: str, tmp_path: Path) -> None:
    rows = store(tier, tmp_path)
    weight = rows.weight("t")
    first = weight.clone()
    rows(*BATCH).sum().backward()
    with rows.writing():
        assert torch.allclose(first[4] - weight[4], torch.full((4,), 0.04))
        weight[4] = 7
    assert (rows(torch.tensor([4]), torch.arange(2)) == 7).all()


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[RowStore]:
    """The stores that were told of a change."""
    told: list[RowStore] = []
    whole = RowStore.writing

    @contextmanager
    def telling(rows: RowStore):  # type: ignore[no-untyped-def]
        told.append(rows)
        with whole(rows):
            yield

    monkeypatch.setattr(RowStore, "writing", telling)
    return told


CHANGES: dict[str, Callable[[TableCollection, Path], object]] = {
    "set_rows": lambda tables, _: tables.set_rows("a", torch.zeros(20, 4)),
    "load_state_dict": lambda tables, _: tables.load_state_dict(tables.state_dict()),
    "load_checkpoint": lambda tables, folder: load_checkpoint(folder / "c", tables=tables),
    "reset_rows": lambda tables, _: reset_rows(tables, "a", torch.tensor([1]), draw=0),
}


@pytest.mark.parametrize("how", CHANGES)
def test_stores_are_told_of_changes(how: str, noted: list[RowStore], tmp_path: Path) -> None:
    tables = TableCollection(SPECS)
    save_checkpoint(tmp_path / "c", tables=tables, dense={}, meta={})
    assert not noted
    CHANGES[how](tables, tmp_path)
    assert noted == tables.row_stores()


def test_stores_are_told_of_methods_that_change_rows(noted: list[RowStore]) -> None:
    """Only where a method asks for them: most steps of a schedule change nothing."""
    spec = replace(SPECS[0], method="deeplight", budget=0.5)
    tables = TableCollection([spec])
    tables.begin(num_steps=100)
    tables.step()
    assert not noted
    settle(tables)
    assert noted == tables.row_stores()


def test_the_next_stage_is_told_of_the_rows_it_gets(noted: list[RowStore]) -> None:
    tables = TableCollection([replace(SPECS[0], method="pep", budget=0.5), SPECS[1]])
    following = advance(tables)
    assert set(noted) <= set(following.row_stores())
    assert noted


def test_rows_that_are_read_or_copied_are_not_changed(noted: list[RowStore]) -> None:
    tables = TableCollection(SPECS)
    with HeldRows(tables, copied=["a"]) as rows:
        rows["a"].zero_()
    HeldRows(tables)["b"].sum()
    tables.weights()
    assert not noted
    with HeldRows(tables) as rows:
        view: Tensor = rows["a"]
        assert rows["b"].shape == view.shape
        assert len(noted) == 1
        assert rows.is_open
    assert not rows.is_open


def test_lookups_see_what_was_written() -> None:
    tables = TableCollection(SPECS, backend="torch")
    kjt = KeyedJaggedTensor(keys=["a", "b"], values=torch.tensor([1, 2]), lengths=torch.ones(2, dtype=torch.int32))
    with tables.writing():
        tables.weights()["a"].fill_(2.0)
    assert (tables(kjt)["a"] == 2).all()
