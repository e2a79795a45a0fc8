"""Training through a codec: what a step sees, which gradient it takes, and what it moves."""

from collections.abc import Callable

import pytest
import torch
from torchrec import KeyedJaggedTensor

from embank.tables import ConfigError, RowOptimizer, RowTier, TableCollection, TableSpec, encode, pack_collection
from embank.tables.collections.stages import finished
from embank.tables.collections.straight_through import StraightThrough, refuse_untrainable
from tests.contracts.specs import NAMES

NUM, DIM = 103, 8  # the last group of rows is short
BATCH = KeyedJaggedTensor(
    keys=["a", "b"], values=torch.tensor([5, 102, 7, 5, 0, 61]), lengths=torch.tensor([1, 2, 1, 2])
)


def collection(*, method: str = "full", backend: str = "torch", **changes: object) -> TableCollection:
    specs = [
        TableSpec(
            name=name,
            num_embeddings=NUM,
            embedding_dim=DIM,
            feature_names=[name],
            method=method,
            budget=None if method == "full" else 0.5,
            init_std=0.1,
        )
        for name in ("a", "b")
    ]
    return TableCollection(specs, seed=3, backend=backend, optimizer=RowOptimizer(name="sgd", lr=0.1), **changes)


def rows_of(tables: TableCollection) -> dict[str, torch.Tensor]:
    return {name: rows.clone() for name, rows in tables.weights().items()}


def step(tables: TableCollection) -> torch.Tensor:
    """One step of a loss whose gradient depends on the rows; returns what was looked up."""
    values = tables(BATCH).values()
    values.square().sum().backward()
    tables.step()
    return values.detach().clone()


@pytest.mark.parametrize(
    ("codec", "method", "backend"),
    [
        *(("int2", method, backend) for method in ("full", "hash", "compositional") for backend in ("torch", "fbgemm")),
        *((codec, "full", "fbgemm") for codec in ("int3", "int8", "fp16", "pca4+int4")),
    ],
)
def test_a_step_sees_the_coded_rows_and_moves_the_plain_ones(codec: str, method: str, backend: str) -> None:
    """The slow twin: tables that hold the coded rows, trained for one step; what they have moved by is added."""
    tables, twin = collection(method=method, backend=backend), collection(method=method, backend=backend)
    through = StraightThrough(tables, {"a": codec, "b": codec})
    for _ in range(3):
        plain = rows_of(tables)
        coded = {
            name: encode(rows, codec=codec).take(torch.arange(len(rows))) if name in through.coded else rows
            for name, rows in plain.items()
        }
        served = pack_collection(tables, codec=codec)(BATCH).values()
        for name, rows in coded.items():
            twin.set_rows(name, rows)
        with through:
            seen = rows_of(tables)
            looked_up = step(tables)
        assert all(torch.equal(seen[name], coded[name]) for name in seen), "rows are those of the codec, to the bit"
        torch.testing.assert_close(looked_up, served, rtol=0, atol=1e-6)
        assert torch.equal(looked_up, step(twin))
        moved = rows_of(twin)
        for name, rows in rows_of(tables).items():
            if name not in through.coded:
                assert torch.equal(rows, moved[name])
                continue
            assert torch.equal(rows, plain[name] + (moved[name] - coded[name])), "the gradient at the coded rows"
            assert not torch.equal(rows, plain[name])
    assert set(through.coded) == {name for name, rows in tables.weights().items() if rows.numel() >= 64}


def test_rows_that_were_changed_meanwhile_are_coded_again() -> None:
    tables = collection()
    through = StraightThrough(tables, {"a": "int2"})
    assert set(through.coded) == {"a"}
    with through:
        pass
    changed = rows_of(tables)["a"]
    changed[100:] *= 3
    tables.set_rows("a", changed)
    other = rows_of(tables)["b"]
    with through:
        assert torch.equal(tables.weights()["a"], encode(changed, codec="int2").take(torch.arange(NUM)))
        assert torch.equal(tables.weights()["b"], other)
    assert torch.equal(tables.weights()["a"], changed)


def test_an_error_within_a_step_leaves_the_rows_as_they_were() -> None:
    tables = collection()
    before = rows_of(tables)
    with pytest.raises(RuntimeError), StraightThrough(tables, {"a": "int2", "b": "int4"}):
        raise RuntimeError
    assert all(torch.equal(rows, before[name]) for name, rows in rows_of(tables).items())


def test_many_small_steps_change_a_code() -> None:
    """Plain rounding would undo each of them."""
    tables = collection()
    through = StraightThrough(tables, {"a": "int2", "b": "int2"})
    first = encode(rows_of(tables)["a"], codec="int2").take(torch.tensor([5]))
    for _ in range(40):
        with through:
            step(tables)
    last = encode(rows_of(tables)["a"], codec="int2").take(torch.tensor([5]))
    assert float(last.abs().max()) < float(first.abs().max())


@pytest.mark.parametrize(
    ("changes", "codecs", "message"),
    [
        ({"method": "dpq"}, {"a": "int2"}, "the rows of method 'dpq' are not what is coded in the end"),
        ({}, {"a": "fp32"}, "no codec can be trained through"),
        ({}, {"c": "int2"}, "there is no such table"),
        ({"tier": RowTier(name="device", dtype="bf16")}, {"a": "int2"}, "rows have fewer than 32 bits"),
    ],
)
def test_what_can_not_be_trained_through_a_codec(changes: dict, codecs: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StraightThrough(collection(**changes), codecs)


def refusal(refuses: Callable[[TableCollection, dict[str, str]], object], tables: TableCollection) -> str | None:
    try:
        refuses(tables, {"a": "int2", "b": "int2"})
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("method", NAMES)
def test_the_first_stage_tells_what_the_last_one_would(method: str) -> None:
    tables = collection(method=method)
    before, drawn = rows_of(tables), torch.get_rng_state()
    told = refusal(refuse_untrainable, tables)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(rows, before[name]) for name, rows in rows_of(tables).items())
    assert told == refusal(StraightThrough, finished(tables))


@pytest.mark.parametrize(
    ("changes", "codecs", "message"),
    [
        ({"method": "pep"}, {"a": "int2"}, "the rows of method 'pep' are not what is coded in the end"),
        ({"method": "optembed"}, {"a": "fp32"}, "no codec can be trained through"),
        ({"method": "optembed", "tier": RowTier(name="device", dtype="bf16")}, {"a": "int2"}, "fewer than 32 bits"),
    ],
)
def test_what_is_refused_before_the_first_of_several_stages(
    changes: dict, codecs: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        refuse_untrainable(collection(**changes), codecs)


def test_one_table_that_is_coded_in_the_end_is_enough() -> None:
    specs = [
        TableSpec(name=name, num_embeddings=NUM, embedding_dim=DIM, feature_names=[name], method=method)
        for name, method in (("a", "pep"), ("b", "full"))
    ]
    refuse_untrainable(TableCollection(specs), {"a": "int2", "b": "int2"})


def test_a_refusal_leaves_the_rows_of_all_tables_as_they_are() -> None:
    tables = collection()
    with tables.writing(), torch.no_grad():
        tables.weights()["b"][7, 3] = 1e30
    before = rows_of(tables)
    through = StraightThrough(tables, {"a": "int2", "b": "int2"})
    with pytest.raises(ConfigError, match=r"table 'b': rows reach 1e\+30"):
        through.__enter__()
    assert all(torch.equal(rows, before[name]) for name, rows in rows_of(tables).items())


def test_a_refusal_leaves_nothing_that_a_later_step_would_see() -> None:
    """Neither rows that were never coded nor, of blocks that were coded before, those of an earlier step."""
    tables = collection()
    through = StraightThrough(tables, {"a": "int8", "b": "int2"})
    for spoilt, mended in ((torch.nan, 0.25), (torch.inf, -0.5)):
        changed = rows_of(tables)["a"] * 1.5
        with tables.writing(), torch.no_grad():
            tables.weights()["a"].copy_(changed)[0, 0] = spoilt
        with pytest.raises(ConfigError, match="table 'a': rows are not finite"):
            through.__enter__()
        with tables.writing(), torch.no_grad():
            tables.weights()["a"][0, 0] = mended
        plain = rows_of(tables)
        with through:
            for name, codec in (("a", "int8"), ("b", "int2")):
                seen, coded = tables.weights()[name], encode(plain[name], codec=codec).take(torch.arange(NUM))
                assert torch.equal(seen, coded), f"{(seen != coded).any(1).sum()} rows of '{name}' are other ones"
        assert all(torch.equal(rows, plain[name]) for name, rows in rows_of(tables).items())
