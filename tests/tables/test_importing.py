"""Rows that others have trained: which are taken, what is refused, and that a refusal changes nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from embank.tables import (
    NUM_TOKEN_IDS,
    ConfigError,
    DataError,
    EmbankError,
    GivenRows,
    RowOptimizer,
    RowTier,
    SequenceCollection,
    TableCollection,
    Tables,
    TableSpec,
    Vocabulary,
    fit_tables,
)
from tests.tables.batches import random_kjt

NUM, DIM = 20, 4


def spec(**changes: Any) -> TableSpec:
    return TableSpec(**{"name": "t", "num_embeddings": NUM, "embedding_dim": DIM, "feature_names": ["t"], **changes})


def vectors(num: int, dim: int = DIM, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))


def vocabulary(tokens: list[str | None], **options: Any) -> Vocabulary:
    return Vocabulary("t", pl.Series([None, *tokens], dtype=pl.String), np.ones(1 + len(tokens)), **options)


@pytest.mark.parametrize("backend", ["torch", "fbgemm"])
@pytest.mark.parametrize("kind", [TableCollection, SequenceCollection])
@pytest.mark.parametrize("tier", ["device", "disk", "half"])
def test_plain_rows_are_taken_by_id(kind: type[Tables], backend: str, tier: str, tmp_path: Path) -> None:
    if tier == "half" and backend == "fbgemm":
        pytest.skip("FBGEMM has no such rows on a CPU")
    tiers = {"device": None, "disk": RowTier(name="disk", directory=tmp_path), "half": RowTier(dtype="bf16")}
    tables = kind([spec(), spec(name="u", feature_names=["u"])], backend=backend, tier=tiers[tier])  # type: ignore[call-arg]
    before = {name: rows.clone() for name, rows in tables.weights().items()}
    given = vectors(3).bfloat16().float()
    report = tables.import_rows("t", [7, 0, 99], given)
    rows = tables.weights()["t"].float()
    assert torch.equal(rows[[7, 0]], given[:2])
    others = [i for i in range(NUM) if i not in (0, 7)]
    assert torch.equal(rows[others], before["t"].float()[others])
    assert torch.equal(tables.weights()["u"], before["u"])
    assert (report.taken, report.missing, report.surplus, report.duplicates) == (2, NUM - 2, 1, 0)
    assert report.error == report.weighted_error == 0
    assert report.cosine == pytest.approx(1)


def test_tokens_are_found_in_the_vocabulary() -> None:
    known = vocabulary(["b", "a", None], missing_id=3)
    given = vectors(4)
    for tokens in (["a", "zzz", "b", None], pl.Series(["a", "zzz", "b", None]), np.array(["a", "zzz", "b", None])):
        tables = TableCollection([spec(num_embeddings=4)])
        unknown = tables.weights()["t"][0].clone()
        report = tables.import_rows("t", tokens, given.numpy(), vocabulary=known)
        assert torch.equal(tables.weights()["t"][1:], given[[2, 0, 3]])
        assert torch.equal(tables.weights()["t"][0], unknown)
        assert (report.taken, report.missing, report.surplus) == (3, 1, 1)
    without = TableCollection([spec()])
    report = without.import_rows("t", [12, 13, None], given[:3], vocabulary=vocabulary(["13", "12"]))
    assert torch.equal(without.weights()["t"][1:3], given[[1, 0]]), "numbers are tokens where a vocabulary is given"
    assert report.surplus == 1, "null is no value of a vocabulary without missing ones"


def test_equal_duplicates_are_counted_and_others_refused() -> None:
    tables, given = TableCollection([spec()]), vectors(2)
    report = tables.import_rows("t", torch.tensor([5, 2, 5]), given[[0, 1, 0]])
    assert (report.taken, report.duplicates) == (2, 1)
    assert torch.equal(tables.weights()["t"][[5, 2]], given)
    before = tables.weights()["t"].clone()
    with pytest.raises(DataError, match=r"two that differ for id 5 \(rows 0 and 2, counted from 0\)"):
        tables.import_rows("t", torch.tensor([5, 2, 5]), vectors(3, seed=1))
    assert torch.equal(tables.weights()["t"], before)


BAD: dict[str, tuple[type[EmbankError], str, Any, Any, dict[str, Any]]] = {
    "one row for all": (ConfigError, r"have shape \(1, 4\) and there are 20 ids", torch.arange(NUM), vectors(1), {}),
    "flat": (ConfigError, r"have shape \(4,\)", [0], vectors(1)[0], {}),
    "other dim": (ConfigError, "have dim 3, the table has embedding_dim 4; make", [0], vectors(1, 3), {}),
    "whole numbers": (ConfigError, "are torch.int64; give floating-point", [0], torch.ones(1, 4).long(), {}),
    "no tensor": (ConfigError, "are torch.int64|are a str", [0], "abcd", {}),
    "NaN": (DataError, "not finite .* in row 1", [0, 1], torch.tensor([[0.0] * 4, [float("nan")] * 4]), {}),
    "too large": (DataError, "too large for fp32", [0], torch.full((1, 4), 1e300, dtype=torch.float64), {}),
    "float ids": (ConfigError, "type torch.float32; give whole", torch.tensor([1.0]), vectors(1), {}),
    "negative": (DataError, r"have -1 \(row 1", [3, -1], vectors(2), {}),
    "all outside": (DataError, "none of the 2 ids .* first one is 20, the table has 0 .. 19", [20, 21], vectors(2), {}),
    "empty": (DataError, "there are no vectors", torch.zeros(0, dtype=torch.int64), vectors(0), {}),
    "tokens alone": (ConfigError, "only a vocabulary knows their ids", ["a"], vectors(1), {}),
    "other tokens": (DataError, "none of the 1 tokens .* 'x'", ["x"], vectors(1), {"vocabulary": vocabulary(["a"])}),
    "long vocabulary": (
        ConfigError,
        "has 31 ids and table 't' has 20",
        ["1"],
        vectors(1),
        {"vocabulary": vocabulary([str(i) for i in range(30)])},
    ),
    "weights": (ConfigError, "weights .* have shape", [0], vectors(1), {"weights": [1.0, 2.0]}),
    "negative weight": (DataError, "negative or not finite", [0], vectors(1), {"weights": [-1.0]}),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_nothing_changes(case: str) -> None:
    error, message, ids, given, options = BAD[case]
    tables = TableCollection([spec()])
    before = tables.weights()["t"].clone()
    with pytest.raises(error, match=message):
        tables.import_rows("t", ids, given, **options)
    assert torch.equal(tables.weights()["t"], before)


def test_a_wrong_table_is_named() -> None:
    with pytest.raises(ConfigError, match="there is no table 'items'; did you mean 'item'"):
        TableCollection([spec(name="item")]).import_rows("items", [0], vectors(1))


@pytest.mark.parametrize("backend", ["torch", "fbgemm"])
def test_optimizer_state_begins_anew_for_what_changed(backend: str) -> None:
    tables = TableCollection([spec()], backend=backend, optimizer=RowOptimizer(name="rowwise_adagrad", lr=0.1))  # type: ignore[arg-type]
    for step in range(3):
        tables(random_kjt({"t": NUM}, batch_size=64, seed=step)).values().square().sum().backward()
        tables.update_rows()
    state = tables.optimizer_state()["t"]["sum"]
    before = state.clone()
    assert bool((before[[4, 6]] > 0).all())
    tables.import_rows("t", torch.tensor([4, 6]), vectors(2))
    changed = torch.zeros(NUM, dtype=torch.bool)
    changed[[4, 6]] = True
    assert bool((state[changed] == 0).all())
    assert torch.equal(state[~changed], before[~changed])


def test_training_goes_on_as_from_rows_that_were_there_at_once() -> None:
    given, batch = vectors(NUM), random_kjt({"t": NUM}, batch_size=8, seed=0)
    imported, written = (TableCollection([spec()]) for _ in range(2))
    imported.import_rows("t", torch.arange(NUM), given)
    written.set_rows("t", given)
    for tables in (imported, written):
        for _ in range(3):
            tables(batch).values().square().sum().backward()
            tables.update_rows()
    assert torch.equal(imported.weights()["t"], written.weights()["t"])
    assert not torch.equal(imported.weights()["t"], given)


def test_tokens_of_a_table_without_a_vocabulary_are_hashed() -> None:
    from embank.compression.methods.hash import HashConfig
    from embank.tables import token_id

    one = spec(num_embeddings=NUM_TOKEN_IDS, method="hash", options=HashConfig(num_rows=5000))
    tables, given = TableCollection([one]), vectors(3)
    report = tables.import_rows("t", ["a", "b", "c"], given)
    assert (report.taken, report.missing, report.error) == (3, None, 0)
    ids = torch.tensor([token_id(token) for token in ("a", "b", "c")])
    (rows_N,) = next(iter(tables.built_methods())).address(ids)
    assert torch.equal(tables.weights()["t"][rows_N], given)


def test_several_tables_at_once() -> None:
    given = {"t": GivenRows(ids=[1], vectors=vectors(1)), "u": GivenRows(ids=[2, 3], vectors=vectors(2))}
    tables = TableCollection([spec(), spec(name="u", feature_names=["u"])])
    result, report = fit_tables(tables, given)
    assert result is tables
    assert [report[name].taken for name in ("t", "u")] == [1, 2]
    before = {name: rows.clone() for name, rows in tables.weights().items()}
    with pytest.raises(DataError, match="table 'u'"):
        fit_tables(
            tables, {"t": GivenRows(ids=[1], vectors=vectors(1, seed=3)), "u": GivenRows(ids=[-1], vectors=vectors(1))}
        )
    assert all(torch.equal(rows, before[name]) for name, rows in tables.weights().items())


def test_what_is_no_table_or_no_given_rows_is_said() -> None:
    tables = TableCollection([spec()])
    with pytest.raises(ConfigError, match="0 is no name of a table; give one of t"):
        tables.import_rows(0, [1], vectors(1))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="given for table 't' is Tensor; give GivenRows"):
        fit_tables(tables, {"t": vectors(NUM)})  # type: ignore[dict-item]
