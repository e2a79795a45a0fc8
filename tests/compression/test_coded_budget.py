"""Budgets of coded bytes."""

import pytest
import torch

from embank.compression import METHODS
from embank.compression.budget.coded import coded_nbytes, share_coded, within_coded
from embank.compression.budget.solver import share
from embank.tables import BudgetError, TableCollection, TableSpec, pack_collection
from embank.tables.collections.stages import finished

SIZES = {"a": 900, "b": 4000, "c": 30}
EXACT = sorted(
    set(METHODS)
    - {"full", "dhe", "deeplight", "pep", "autosrh", "autodim", "optembed", "dedup", "low_precision", "alpt"}
    - {name for name in METHODS if name.startswith("test_")}
)
"""Methods of rows or codes whose sizes are known before training and follow from a budget."""


def specs(method: str, *, dim: int = 16) -> list[TableSpec]:
    return [
        TableSpec(
            name=name, num_embeddings=num, embedding_dim=dim, feature_names=[name], method=method,
            counts=torch.arange(num, 0, -1),
        )
        for name, num in SIZES.items()
    ]  # fmt: skip


def packed_nbytes(tables: list[TableSpec], codecs: dict[str, str]) -> int:
    return pack_collection(finished(TableCollection(tables)), codec=codecs).nbytes()


@pytest.mark.parametrize("method", EXACT)
def test_coded_tables_keep_the_budget_and_have_more_rows(method: str) -> None:
    codecs = dict.fromkeys(SIZES, "int4")
    plain_nbytes = sum(spec.plain_nbytes for spec in specs(method))
    made = share_coded(specs(method), budget=0.1, codecs=codecs, plain_below=100)
    nbytes = packed_nbytes(made, codecs)
    assert nbytes <= 0.1 * plain_nbytes
    assert nbytes == coded_nbytes(made, codecs)
    if method not in ("dpq", "mgqe"):  # codes have coarse sizes
        assert nbytes > 0.08 * plain_nbytes
        try:
            fewer = share(specs(method), budget=0.1, plain_below=100)
        except BudgetError:
            return  # without a codec it can't be kept at all
        assert packed_nbytes(fewer, codecs) < 0.6 * nbytes


def test_without_a_codec_it_is_the_plain_share() -> None:
    fp32 = dict.fromkeys(SIZES, "fp32")
    assert share_coded(specs("hash"), budget=0.1, codecs=fp32) == share(specs("hash"), budget=0.1)


def test_tables_that_fit_as_plain_ones_are_plain() -> None:
    made = share_coded(specs("hash"), budget=0.2, codecs=dict.fromkeys(SIZES, "int4"))
    assert {(spec.method, spec.budget) for spec in made} == {("full", None)}
    assert [s.method for s in share_coded(specs("full"), budget=0.15, codecs=dict.fromkeys(SIZES, "int4"))] == [
        "full"
    ] * 3


def test_codecs_of_single_tables_count() -> None:
    codecs = {"a": "fp32", "b": "int4", "c": "int8"}
    made = share_coded(specs("hash"), budget=0.05, codecs=codecs)
    nbytes = packed_nbytes(made, codecs)
    assert 0.045 <= nbytes / sum(spec.plain_nbytes for spec in specs("hash")) <= 0.05


def test_a_budget_below_every_form_tells_the_floor_that_does() -> None:
    codecs = dict.fromkeys(SIZES, "int8")
    with pytest.raises(
        BudgetError, match=r"coded \(int8\) their floor is about .* bytes, budget 0\.[0-9]+\."
    ) as refused:
        share_coded(specs("full"), budget=0.1, codecs=codecs)
    floor = float(str(refused.value).split("budget ")[-1].split(". ")[0])
    assert {spec.method for spec in share_coded(specs("full"), budget=floor, codecs=codecs)} == {"full"}


@pytest.mark.parametrize("method", ["mgqe", "dpq", "low_precision", "frequency_cut", "deeplight"])
def test_a_small_table_of_another_method_is_no_reason_to_refuse(method: str) -> None:
    tables = [
        TableSpec(name=name, num_embeddings=num, embedding_dim=16, feature_names=[name], method=own)
        for name, num, own in (("item", 1_000_000, "hash"), ("city", 200, method))
    ]
    codecs = {"item": "int4", "city": "int4"}
    made = share_coded(tables, budget=0.001, codecs=codecs, plain_below=100)
    nbytes = coded_nbytes(made, codecs)
    assert 0.00098 < nbytes / sum(spec.plain_nbytes for spec in tables) <= 0.001


def test_a_method_that_codecs_leave_alone_beside_a_small_table() -> None:
    tables = [
        TableSpec(name=name, num_embeddings=num, embedding_dim=4, feature_names=[name], method=method)
        for name, num, method in (("item", 1000, "dedup"), ("city", 7, "mgqe"))
    ]
    codecs = {"item": "int4", "city": "int4"}
    made = share_coded(tables, budget=0.1, codecs=codecs)
    assert coded_nbytes(made, codecs) <= 0.1 * sum(spec.plain_nbytes for spec in tables)
    assert [spec.method for spec in made] == ["dedup", "mgqe"]


def test_the_budget_of_one_table() -> None:
    spec = TableSpec(name="t", num_embeddings=3000, embedding_dim=8, feature_names=["t"], method="tt_rec", budget=0.05)
    made = within_coded(spec, codec="int4")
    assert packed_nbytes([made], {"t": "int4"}) <= 0.05 * spec.plain_nbytes
    assert made.budget is not None
    assert made.budget > 0.2
    assert within_coded(spec, codec="fp32") is spec
