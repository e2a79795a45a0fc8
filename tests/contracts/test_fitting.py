"""Every registered method is fitted to vectors that others have trained."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import embank.compression.fitting.regression as regression
from embank.compression import Table, build_table
from embank.tables import GivenRows, ImportedRows, RowOptimizer, TableCollection, TableSpec, fit_tables, method_class
from embank.tables.collections.stages import finished
from tests.contracts.specs import EXACT_FLOOR, NAMES
from tests.distributed.imports import import_sharded
from tests.distributed.ranks import Ranks
from tests.tables.batches import random_kjt

NUM, DIM, BUDGET = 400, 8, 0.5
COUNTS = (1e5 / torch.arange(1, NUM + 1) ** 1.1).long()
IDS = torch.arange(NUM)
SPECTRUM = torch.linspace(1, 0.2, DIM)
UNWEIGHTED = {"deeplight", "optembed", "dpq", "mgqe"}
"""Methods that choose what to keep by size alone, and k-means, which may end in another place."""


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression, "_STEPS", 150)
    monkeypatch.setattr(regression, "_BATCH", 128)


def spec(method: str, *, name: str = "t", budget: float | None = BUDGET, options: Any = None) -> TableSpec:
    return TableSpec(
        name=name,
        num_embeddings=NUM,
        embedding_dim=DIM,
        feature_names=[name],
        method=method,
        budget=None if method in EXACT_FLOOR or options is not None else budget,
        counts=COUNTS,
        options=options,
        init_std=0.1 if method == "robe" else None,
    )


def vectors(num: int = NUM) -> Tensor:
    """Rows as spread as trained ones."""
    generator = torch.Generator().manual_seed(7)
    rotation = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator))[0]
    return 0.1 * torch.randn(num, DIM, generator=generator) * SPECTRUM @ rotation


def table(method: str, *, budget: float | None = BUDGET, seed: int = 0) -> Table:
    return build_table(
        method=method,
        num_embeddings=NUM,
        embedding_dim=DIM,
        budget=None if method in EXACT_FLOOR else budget,
        counts=COUNTS,
        seed=seed,
    )


@cache
def fitted(method: str) -> tuple[ImportedRows, Tensor]:
    """What became of the vectors of all ids, and what is served."""
    own = table(method)
    return own.fit(vectors()), own.pack().lookup(IDS)


def error_of(found_ND: Tensor, wanted_ND: Tensor) -> float:
    return float((found_ND - wanted_ND).norm() / wanted_ND.norm())


@pytest.mark.parametrize("method", NAMES)
def test_a_fit_is_nearer_and_is_what_is_served(method: str) -> None:
    own, given = table(method), vectors()
    before = error_of(own.lookup(IDS), given)
    report = own.fit(given)
    assert report.error < (before if method == "dhe" else 0.8)
    assert (report.taken, report.missing) == (NUM, 0)
    packed = own.pack()
    assert error_of(packed.lookup(IDS), given) == pytest.approx(report.error, rel=1e-3, abs=1e-6)
    assert packed.nbytes() <= (1 if method in EXACT_FLOOR else BUDGET) * own.spec.plain_nbytes


@pytest.mark.parametrize("method", NAMES)
def test_weights_are_respected(method: str) -> None:
    given = vectors()
    _, found = fitted(method)
    weighted = table(method).fit(given, weights=COUNTS)
    square = (COUNTS * (found - given).square().sum(1)).sum() / (COUNTS * given.square().sum(1)).sum()
    more = 1.1 if method in UNWEIGHTED else 1 + 1e-4
    assert weighted.weighted_error <= float(square**0.5) * more + 1e-6


SHARING: dict[str, Any] = {
    "compositional": method_class("compositional").Config(table="pool", num_rows=100),
    "hash_embedding": method_class("hash_embedding").Config(table="pool", num_rows=100),
    "memcom": method_class("memcom").Config(table="pool", num_rows=100),
    "robe": method_class("robe").Config(array="pool", chunk=8, num_weights=1600),
    "unified": method_class("unified").Config(rows=100, width=2, lookups=2),
}
EXACT = {"hash", "adapt", "frequency_cut", "robe", "unified", "mde", "uniform_dim", "full", "low_precision"}
NEARLY = {
    "compositional": 1e-3,
    "memcom": 1e-3,
    "alpt": 0.01,
    "tt_rec": 0.01,
    "hash_embedding": 0.3,
    "dpq": 0.2,
    "mgqe": 0.2,
}


@pytest.mark.parametrize("method", sorted(EXACT | set(NEARLY)))
def test_what_the_method_can_hold_is_found_again(method: str) -> None:
    given = table(method, seed=5).pack().lookup(IDS)
    assert table(method).fit(given).error < NEARLY.get(method, 1e-4)


@pytest.mark.parametrize("method", ["deeplight", "pep", "autosrh"])
def test_few_numbers_are_kept(method: str) -> None:
    given = vectors() * (torch.rand(NUM, DIM, generator=torch.Generator().manual_seed(1)) < 0.4)
    assert table(method).fit(given).error == 0


def test_equal_blocks_are_merged() -> None:
    assert table("dedup").fit(vectors(NUM // 3).repeat(3, 1)).error < 1e-6


@pytest.mark.parametrize(
    "method", [name for name in NAMES if name not in EXACT_FLOOR | {"dhe", "low_precision", "alpt"}]
)
def test_more_bytes_leave_no_larger_error(method: str) -> None:
    given = vectors()
    small, large = (table(method, budget=budget).fit(given).error for budget in (0.4, 0.8))
    assert large < small


@pytest.mark.parametrize("method", NAMES)
def test_training_goes_on_from_there(method: str) -> None:
    given = vectors()
    tables = TableCollection([spec(method)], backend="torch", optimizer=RowOptimizer(name="sgd", lr=1.0))
    tables, _ = fit_tables(tables, {"t": GivenRows(ids=IDS, vectors=given)})
    again, _ = fit_tables(
        TableCollection([spec(method)], backend="torch", optimizer=RowOptimizer(name="sgd", lr=1.0)),
        {"t": GivenRows(ids=IDS, vectors=given)},
    )
    losses = []
    for each in (tables, again):
        each.begin(num_steps=3)
        dense = torch.optim.SGD([*each.dense_parameters(), torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        for _ in range(3):
            loss = (each(random_kjt({"t": NUM}, batch_size=64, seed=1, single=True)).values() - 1).square().mean()
            dense.zero_grad()
            loss.backward()
            dense.step()
            each.step()
            losses.append(float(loss.detach()))
    assert losses[2] < losses[0]
    assert losses[:3] == losses[3:], "a fit is the same every time"


@pytest.mark.parametrize("method", NAMES)
def test_ids_without_a_vector_do_not_count(method: str) -> None:
    """Of a few ids a table is nearer than of all; the others stay finite."""
    few, given = IDS[::4], vectors()
    own = table(method)
    report = own.fit(given[few], ids=few)
    assert (report.taken, report.missing) == (NUM // 4, NUM - NUM // 4)
    assert report.error <= fitted(method)[0].error * 1.05 + 1e-6
    assert bool(own.lookup(IDS).isfinite().all())


@pytest.mark.parametrize("method", sorted(SHARING))
def test_tables_that_share_rows_are_fitted_together(method: str) -> None:
    specs = [spec(method, name=name, options=SHARING[method]) for name in ("t", "u")]
    tables, given = TableCollection(specs, backend="torch"), vectors(2 * NUM)
    parts = {"t": GivenRows(ids=IDS, vectors=given[:NUM]), "u": GivenRows(ids=IDS, vectors=given[NUM:])}
    before = {name: rows.clone() for name, rows in tables.weights().items()}
    with pytest.raises(Exception, match="table 't' shares the rows .* with table 'u'"):
        tables.import_rows("t", IDS, given[:NUM])
    assert all(torch.equal(rows, before[name]) for name, rows in tables.weights().items())
    _, both = fit_tables(tables, parts)
    square = sum(both[name].error ** 2 * float(parts[name].vectors.square().sum()) for name in "tu")
    assert (square / float(given.square().sum())) ** 0.5 < 1
    alone = [
        TableCollection([one], backend="torch").import_rows(one.name, IDS, parts[one.name].vectors) for one in specs
    ]
    assert max(report.error for report in alone) < min(report.error for report in both.values())


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in NAMES if name != "dhe"])
def test_sharded_tables_are_fitted_alike(two: Ranks, method: str) -> None:
    own = finished(TableCollection([spec(method)], backend="torch")).specs[0]
    for worst, sharded, whole in two.run(import_sharded, own, "row_wise", (IDS, vectors())):
        assert worst < 1e-5
        assert sharded.error == pytest.approx(whole.error, rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_a_sharded_network_is_fitted_alike(two: Ranks) -> None:
    options = method_class("dhe").Config(width=2, num_layers=2, num_hashes=8)
    one, other = two.run(import_sharded, spec("dhe", options=options), "row_wise", (IDS[:20], vectors(20)))
    assert max(one[0], other[0]) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["row_wise", "table_wise", "column_wise", "data_parallel"])
def test_sharded_plain_tables_take_what_they_hold(two: Ranks, kind: str) -> None:
    ids = torch.randperm(NUM + 10, generator=torch.Generator().manual_seed(1))[:100]
    for worst, sharded, whole in two.run(import_sharded, spec("full"), kind, (ids, vectors(100))):
        assert worst == 0
        assert sharded == whole
        assert sharded.surplus == int((ids >= NUM).sum())
        assert sharded.error == 0
