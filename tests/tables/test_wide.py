"""Tables wider than FBGEMM's kernels take, beside narrow ones: one store, one view of each table, the torch twin's
numbers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from embank.tables import ConfigError, RowTier, TableCollection, TableSpec, load_checkpoint, save_checkpoint
from embank.tables.rows import RowOptimizer, RowStore, StoreSpec, build_rows
from embank.tables.rows.composite import MAX_AHEAD, MixedRows
from embank.tables.rows.fbgemm import MAX_DIM, FbgemmRows
from embank.tables.rows.physical import PhysicalTable, RowInit
from embank.tables.rows.wide import WideRows
from tests.tables.batches import random_kjt
from tests.tables.test_staged import Rounded

WIDTHS = (2052, 8, 4099)
LOOKUPS = (1, 0, 2, 1, 0)
NUM_ROWS, BAGS, STEPS = 40, 7, 10


def store(
    backend: str,
    optimizer: str,
    *,
    widths: tuple[int, ...] = WIDTHS,
    tier: RowTier | None = None,
    rounded: bool = False,
) -> RowStore:
    tables = [
        PhysicalTable(
            name=f"t{i}",
            num_embeddings=NUM_ROWS,
            embedding_dim=width,
            init=RowInit(scale=1.0),
            projection=Rounded() if rounded else None,
        )
        for i, width in enumerate(widths)
    ]
    lookups = LOOKUPS if len(widths) == len(WIDTHS) else range(len(widths))
    how = RowOptimizer(name=optimizer, lr=0.1)
    return build_rows(
        StoreSpec.of_tables(tables, lookups=lookups, backend=backend, optimizer=how, tier=tier or RowTier())
    )


def batch(seed: int, num_lookups: int = len(LOOKUPS)) -> tuple[Tensor, Tensor]:
    kjt = random_kjt(dict.fromkeys(map(str, range(num_lookups)), NUM_ROWS), batch_size=BAGS, seed=seed)
    return kjt.values(), kjt.offsets().long()


def train(rows: RowStore, *, ahead: int = 0) -> list[Tensor]:
    batches = [batch(seed, len(rows.lookups)) for seed in range(STEPS)]
    outputs = []
    for number, current in enumerate(batches):
        if ahead:
            for early in batches[number : number + 1 + ahead] if number == 0 else batches[number + ahead :][:1]:
                rows.prefetch(*early)
        out = rows(*current)
        outputs.append(out.detach().clone())
        out.sin().sum().backward()
        rows.update()
    return outputs


def state_of(rows: RowStore) -> dict[str, Tensor]:
    state = {f"{name}/{kind}": v for name, kinds in rows.optimizer_state().items() for kind, v in kinds.items()}
    return {**rows.weights(), **state}


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad"])
def test_ten_steps_equal_those_of_the_torch_twin(optimizer: str) -> None:
    fast, slow = store("fbgemm", optimizer), store("torch", optimizer)
    assert isinstance(fast, MixedRows)
    assert [type(part) for part in fast.parts_held()] == [FbgemmRows, WideRows]
    assert fast.dims == slow.dims == [WIDTHS[t] for t in LOOKUPS]
    for a, b in zip(train(fast), train(slow), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert fast.num_updates == slow.num_updates == STEPS
    expected = state_of(slow)
    for name, value in state_of(fast).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-4, msg=lambda t, name=name: name + t)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad"])
@pytest.mark.parametrize("rounded", [False, True])
def test_without_compiled_code_they_are_the_torch_twins(optimizer: str, rounded: bool) -> None:
    fast, slow = (store("fbgemm", optimizer, widths=(2051, 3000), rounded=rounded) for _ in range(2))
    assert isinstance(fast, WideRows)
    assert isinstance(slow, WideRows)
    assert fast.passes is not None
    slow.passes = None
    for a, b in zip(train(fast), train(slow), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-2 if rounded else 1e-5)
    for name, value in state_of(fast).items():
        is_same = torch.isclose(value, state_of(slow)[name], rtol=1e-4, atol=1e-4)
        assert is_same.double().mean() > (0.98 if rounded else 1 - 1e-9), name


@pytest.mark.parametrize("width", [MAX_DIM + 1, 5000])
def test_a_rowwise_step_is_the_textbooks(width: int) -> None:
    """One statistic over the whole row, not one for each part of it."""
    rows = store("fbgemm", "rowwise_adagrad", widths=(width,))
    before = rows.weight("t0").clone()
    grad = torch.linspace(-3, 1, width)
    (rows(torch.tensor([5]), torch.arange(2)) * grad).sum().backward()
    step = before[5] - rows.weight("t0")[5]
    torch.testing.assert_close(step, 0.1 * grad / grad.square().mean().sqrt(), rtol=1e-5, atol=1e-6)


def test_rows_are_one_view_to_read_and_to_write() -> None:
    rows = store("fbgemm", "adagrad")
    view = rows.weight("t2")
    assert view.shape == (NUM_ROWS, WIDTHS[2])
    assert rows.optimizer_state()["t2"]["sum"].shape == view.shape
    with rows.writing():
        rows.weights()["t2"][3] = torch.arange(float(WIDTHS[2]))
    assert torch.equal(view[3], torch.arange(float(WIDTHS[2])))
    offsets = torch.tensor([0, 0, 0, 1, 1, 1])
    assert torch.equal(rows(torch.tensor([3]), offsets)[0, 8 + 2052 : 8 + 2052 + 4099], view[3])
    assert rows.nbytes() >= 2 * 4 * NUM_ROWS * sum(WIDTHS)


def test_a_batch_may_come_before_others_that_were_prefetched_earlier() -> None:
    """As an evaluation amid an epoch does: the loader's next training batch has been prefetched by then."""
    plain, rows = store("fbgemm", "rowwise_adagrad"), store("fbgemm", "rowwise_adagrad")
    train_batch, valid_batch = batch(0), batch(1)
    same_size = (train_batch[0].clone(), train_batch[1].clone())
    for early in (train_batch, valid_batch, same_size):
        rows.prefetch(*early)
    for given in (valid_batch, same_size, train_batch):
        assert torch.equal(rows(*given), plain(*given))
    assert isinstance(rows, MixedRows)
    assert not rows.ahead


@pytest.mark.parametrize("ahead", [1, 4])
def test_files_and_prefetch_change_no_bit(ahead: int, tmp_path: Path) -> None:
    memory = store("fbgemm", "rowwise_adagrad")
    disk = store("fbgemm", "rowwise_adagrad", tier=RowTier(name="disk", directory=tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(train(memory), train(disk, ahead=ahead), strict=True))
    disk.flush()
    assert all(torch.equal(a, b) for a, b in zip(state_of(memory).values(), state_of(disk).values(), strict=True))
    assert len(list(tmp_path.iterdir())) == 6
    assert isinstance(disk, MixedRows)
    assert not disk.ahead
    for _ in range(2 * MAX_AHEAD):
        disk.prefetch(*batch(0))  # never looked up
    assert len(disk.ahead) == MAX_AHEAD


def test_projections_get_whole_rows() -> None:
    fast, slow = store("fbgemm", "sgd", rounded=True), store("torch", "sgd", rounded=True)
    train(fast)
    train(slow)
    for name, weight in fast.weights().items():
        assert torch.equal(weight * 64, (weight * 64).round())
        torch.testing.assert_close(weight, slow.weight(name), rtol=0, atol=1 / 64 + 1e-6)


@pytest.mark.parametrize(("saved", "loaded"), [("fbgemm", "torch"), ("torch", "fbgemm")])
def test_checkpoints_fit_both_backends(saved: str, loaded: str, tmp_path: Path) -> None:
    specs = [
        TableSpec(name=f"t{w}", num_embeddings=30, embedding_dim=w, feature_names=[f"f{w}"]) for w in (8, MAX_DIM + 4)
    ]
    kjt = random_kjt({"f8": 30, f"f{MAX_DIM + 4}": 30}, batch_size=9, seed=0)
    first, second = (TableCollection(specs, backend=b, seed=i) for i, b in enumerate((saved, loaded)))
    for _ in range(2):
        first(kjt).values().sin().sum().backward()
        first.step()
    save_checkpoint(tmp_path / "c", tables=first, dense={}, meta={})
    load_checkpoint(tmp_path / "c", tables=second)
    outputs = []
    for tables in (first, second):
        tables.set_lr(0.5)
        tables(kjt).values().sin().sum().backward()
        tables.step()
        outputs.append(tables(kjt).values())
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)


def test_an_optimizer_that_the_backend_lacks_is_refused_for_wide_tables_too() -> None:
    with pytest.raises(ConfigError, match="the fbgemm backend has no 'adam' for rows here"):
        store("fbgemm", "adam", widths=(4096,))
