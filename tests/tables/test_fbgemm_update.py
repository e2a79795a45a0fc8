"""Updates by groups of tables against FBGEMM's own backward pass: the same rows and state to the bit."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from embank.tables import RowOptimizer, TableCollection, TableSpec
from embank.tables.rows import fbgemm_update
from embank.tables.rows.fbgemm import FbgemmRows

STEPS = 10


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def _collection(dims: Sequence[int], *, optimizer: str = "rowwise_adagrad") -> TableCollection:
    specs = [
        TableSpec(name=f"t{i}", num_embeddings=50 + 7 * i, embedding_dim=dim, feature_names=[f"f{i}"])
        for i, dim in enumerate(dims)
    ]
    return TableCollection(specs, optimizer=RowOptimizer(name=optimizer, lr=0.1))


def _kernels(tables: TableCollection) -> Iterator[object]:
    for path in tables.paths.values():
        assert isinstance(path.store, FbgemmRows)
        yield from path.store.kernels


def _batch(num_tables: int, size: int, generator: torch.Generator) -> KeyedJaggedTensor:
    lengths = torch.randint(0, 4, (num_tables * size,), generator=generator)
    values = [
        torch.randint(0, 50 + 7 * i, (int(lengths[i * size : (i + 1) * size].sum()),), generator=generator)
        for i in range(num_tables)
    ]
    return KeyedJaggedTensor(keys=[f"f{i}" for i in range(num_tables)], values=torch.cat(values), lengths=lengths)


def _trained(tables: TableCollection, num_tables: int, sizes: Sequence[int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    found: dict[str, Tensor] = {}
    for step, size in enumerate(sizes):
        rows = tables(_batch(num_tables, size, generator)).values()
        found[f"rows {step}"] = rows.detach().clone()
        (rows * torch.randn(rows.shape, generator=generator)).sum().backward()
        tables.step()
    found |= {name: weight.clone() for name, weight in tables.weights().items()}
    for path in tables.paths.values():
        assert path.store is not None
        for name, state in path.store.optimizer_state().items():
            found |= {f"{name} {key}": value.clone() for key, value in state.items()}
    return found


@pytest.mark.parametrize("dims", [[16] * 26, [4, 8, 12, 16] * 5, [3] * 9, [8, 8]], ids=str)
def test_rows_and_state_are_the_same_to_the_bit(dims: list[int], threads: int) -> None:
    sizes = [17] * STEPS + [0, 1]
    grouped, plain = _collection(dims), _collection(dims)
    for kernel in _kernels(plain):
        kernel.grouped = None  # type: ignore[attr-defined]
    assert all(kernel.grouped is not None for kernel in _kernels(grouped))  # type: ignore[attr-defined]
    ours, theirs = (_trained(tables, len(dims), sizes) for tables in (grouped, plain))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name


def test_threads_share_all_tables(threads: int) -> None:
    (kernel,) = _kernels(_collection([16] * 26))
    groups = list(kernel.grouped._groups())  # type: ignore[attr-defined]
    assert [table for start, stop in groups for table in range(start, stop)] == list(range(26))
    assert max(stop - start for start, stop in groups) <= fbgemm_update._MOST_TABLES
    assert len(groups) % threads == 0


@pytest.mark.parametrize(("dims", "optimizer"), [([16], "rowwise_adagrad"), ([16, 16], "sgd")], ids=str)
def test_other_rows_are_left_to_fbgemm(dims: list[int], optimizer: str) -> None:
    (kernel,) = _kernels(_collection(dims, optimizer=optimizer))
    assert kernel.grouped is None  # type: ignore[attr-defined]


def test_an_update_that_fails_on_a_thread_is_told(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    tables = _collection([8] * 4)
    rows = tables(_batch(4, 3, torch.Generator().manual_seed(0))).values()

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no update")

    monkeypatch.setattr(fbgemm_update.GroupedUpdate, "_update", fail)
    with pytest.raises(RuntimeError, match="no update"):
        rows.sum().backward()
