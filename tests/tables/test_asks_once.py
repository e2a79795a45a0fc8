"""Methods that ask for each row of a batch once, and row stores that give a part per lookup, against the plain way."""

from typing import Any

import pytest
import torch

from embank.tables import DistinctMethod, RowOptimizer, TableCollection, TableSpec, method_class
from embank.tables.collections import paths
from embank.tables.collections.paths import each_once
from tests.tables.batches import random_kjt

NUM, DIM = 400, 12
METHODS = ("tt_rec", "dpq", "mgqe")


def collection(method: str, **options: Any) -> TableCollection:
    """Two tables of a method, one of them with two features, and a table of another one."""
    specs = [
        TableSpec(name="t", num_embeddings=NUM, embedding_dim=DIM, feature_names=["a", "b"], method=method, budget=0.4),
        TableSpec(
            name="u",
            num_embeddings=NUM,
            embedding_dim=DIM,
            feature_names=["c"],
            method=method,
            budget=0.4,
            pooling="mean",
        ),
        TableSpec(name="v", num_embeddings=NUM, embedding_dim=DIM, feature_names=["d"]),
    ]
    return TableCollection(specs, optimizer=RowOptimizer(name="sgd", lr=0.1), **options)


def trained(method: str, *, steps: int = 3, **options: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The last output and all rows and gradients of dense parameters after a few steps."""
    tables = collection(method, **options)
    for step in range(steps):
        out = tables(random_kjt(dict.fromkeys("abcd", NUM), batch_size=40, seed=step)).values()
        loss, extra = (out - 1).square().sum(1).mean(), tables.extra_loss()
        (loss if extra is None else loss + extra).backward()
        tables.update_rows()
    gradients = {name: p.grad for name, p in tables.methods.named_parameters() if p.grad is not None}
    return out.detach(), {**tables.weights(), **gradients}


@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
@pytest.mark.parametrize("method", METHODS)
def test_asking_once_equals_a_row_per_id(method: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = method_class(method)
    assert issubclass(cls, DistinctMethod)
    once, rows_once = trained(method, backend=backend)
    with monkeypatch.context() as patch:
        patch.setattr(cls, "combine_distinct", DistinctMethod.combine_distinct)
        spread, rows_spread = trained(method, backend=backend)
    with monkeypatch.context() as patch:
        patch.setattr(paths, "_path_of", lambda method, late: "pooled" if method.spec.name == "v" else "per id")
        per_id, rows_per_id = trained(method, backend=backend)
    assert rows_once.keys() == rows_spread.keys() == rows_per_id.keys()
    for out, rows in ((spread, rows_spread), (per_id, rows_per_id)):
        torch.testing.assert_close(once, out, rtol=2e-5, atol=2e-6)
        for name, value in rows_once.items():
            torch.testing.assert_close(value, rows[name], rtol=2e-5, atol=2e-6, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("dims", [(8, 8), (6, 8, 1, 6), (5,)])
@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
def test_parts_are_the_columns_of_forward(dims: tuple[int, ...], backend: str) -> None:
    """Of one kernel or of several, with padding and without."""
    specs = [
        TableSpec(name=f"t{i}", num_embeddings=30, embedding_dim=dim, feature_names=[f"f{i}"])
        for i, dim in enumerate(dims)
    ]
    tables = TableCollection(specs, backend=backend)
    (store,) = tables.row_stores()
    ids = tables.address(random_kjt({f"f{i}": 30 for i in range(len(dims))}, batch_size=9, seed=0)).paths["pooled"]
    whole = store(ids.row_ids, ids.offsets)
    parts = store.parts(ids.row_ids, ids.offsets)
    assert [part.shape[1] for part in parts] == list(dims)
    assert torch.equal(torch.cat(parts, dim=1), whole)


def test_each_once_gives_back_every_row() -> None:
    uses = [torch.tensor([5, 3, 5]), torch.tensor([9]), torch.tensor([3, 4])]
    distinct, places = each_once(uses, [0, 1, 0])
    assert [rows.tolist() for rows in distinct] == [[3, 4, 5], [9]]
    for rows_N, lookup, at in zip(uses, (0, 1, 0), places, strict=True):
        assert torch.equal(distinct[lookup][at], rows_N)
