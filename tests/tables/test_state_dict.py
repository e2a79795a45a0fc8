"""`state_dict` of collections: rows by the names of tables, whatever the order, the backend and the module around
them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, EmbeddingCollection, EmbeddingConfig

from embank.compression.methods.robe import RobeConfig
from embank.tables import (
    CheckpointError,
    ConfigError,
    RowOptimizer,
    RowTier,
    SequenceCollection,
    TableCollection,
    TableSpec,
)
from embank.tables.collections.base import Tables
from embank.tables.serving.packing import pack_collection
from embank.tables.sharding.plan import Placement, Plan
from embank.tables.sharding.sharded_rows import Sharding
from embank.tables.streaming import StreamingCollection, StreamingConfig
from tests.contracts.specs import NUM, spec
from tests.tables.batches import random_kjt
from tests.tables.held import held_nbytes

SIZES = {"a": 40, "b": 40, "c": 40, "d": 40}


def specs() -> list[TableSpec]:
    """Plain tables of one shape whose names are hard, and methods with several physical tables and with dense
    parameters."""
    common = {"num_embeddings": 40, "embedding_dim": 6}
    return [
        TableSpec(name="user.id", feature_names=["a"], **common),
        TableSpec(name="keys", feature_names=["b"], **common),
        TableSpec(name="many", feature_names=["c"], method="memcom", budget=0.5, **common),
        TableSpec(name="deep", feature_names=["d"], method="dhe", **common),
    ]


def trained(tables: TableCollection, *, steps: int = 3, seed: int = 0) -> TableCollection:
    for step in range(steps):
        (tables(random_kjt(SIZES, batch_size=6, seed=seed + step)).values() - 1).square().sum().backward()
        tables.update_rows()
        for parameter in tables.dense_parameters():
            if parameter.grad is not None:
                parameter.data.sub_(0.01 * parameter.grad)
                parameter.grad = None
    return tables


def assert_same_state(one: Tables, other: Tables) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine if not name.endswith("_extra_state"))


@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad"])
def test_tables_listed_in_another_order_in_another_backend(backend: str, optimizer: str) -> None:
    rows = RowOptimizer(name=optimizer, lr=0.1)
    tables = trained(TableCollection(specs(), backend=backend, optimizer=rows))
    other = TableCollection(specs()[::-1], seed=5, backend="torch" if backend == "fbgemm" else "fbgemm", optimizer=rows)
    assert not any(other.load_state_dict(tables.state_dict()))
    for name, rows_RD in tables.weights().items():
        assert torch.equal(rows_RD, other.weights()[name]), name
        for kind, state in tables.optimizer_state()[name].items():
            assert torch.equal(state, other.optimizer_state()[name][kind]), name
    assert {store.num_updates for store in other.row_stores()} == {3}
    kjt = random_kjt(SIZES, batch_size=6, seed=9)
    for part in (tables, other):
        part.eval()
    expected = tables(kjt).to_dict()
    for name, values in other(kjt).to_dict().items():
        torch.testing.assert_close(values, expected[name])


def test_training_goes_on_as_if_it_had_not_been_saved() -> None:
    adam = RowOptimizer(name="adam", lr=0.1)
    tables = trained(TableCollection(specs(), backend="torch", optimizer=adam))
    other = TableCollection(specs(), seed=5, backend="torch", optimizer=adam)
    other.load_state_dict({name: value.clone() for name, value in tables.state_dict().items()})
    assert_same_state(trained(tables, seed=7), trained(other, seed=7))


def test_names_are_torchrecs_where_tables_are_plain() -> None:
    config = EmbeddingBagConfig(name="t", num_embeddings=40, embedding_dim=8, feature_names=["a"])
    theirs = EmbeddingBagCollection(tables=[config])
    plain = TableSpec(name="t", num_embeddings=40, embedding_dim=8, feature_names=["a"])
    tables = TableCollection([plain])
    assert not theirs.load_state_dict(tables.state_dict(), strict=False).missing_keys
    assert torch.equal(theirs.embedding_bags["t"].weight, tables.weights()["t"])
    nn.init.normal_(theirs.embedding_bags["t"].weight)
    assert not tables.load_state_dict(theirs.state_dict(), strict=False).unexpected_keys
    assert torch.equal(theirs.embedding_bags["t"].weight, tables.weights()["t"])
    nn.init.normal_(theirs.embedding_bags["t"].weight)
    tables.load_state_dict(theirs.state_dict())
    assert torch.equal(theirs.embedding_bags["t"].weight, tables.weights()["t"])
    with pytest.raises(RuntimeError, match=r"Missing key.*row_optimizer\.t\.sum"):
        tables.load_state_dict({**theirs.state_dict(), "row_optimizer.num_updates": torch.tensor(1)})
    sequences = EmbeddingCollection(
        tables=[EmbeddingConfig(name="t", num_embeddings=40, embedding_dim=8, feature_names=["a"])]
    )
    ours = SequenceCollection([plain])
    assert not sequences.load_state_dict(ours.state_dict(), strict=False).missing_keys
    assert torch.equal(sequences.embeddings["t"].weight, ours.weights()["t"])
    for one, other, names in ((tables, ours, "'embeddings.t.*'embedding_bags.t"), (ours, tables, "'embedding_bags.t")):
        with pytest.raises(CheckpointError, match=f"has rows of table 't' as {names}.*save_checkpoint and"):
            one.load_state_dict(other.state_dict())
    hashed = TableCollection([replace(plain, method="hash", budget=0.5)])
    with pytest.raises(CheckpointError, match="holds plain rows of table 't', which has method 'hash' here"):
        hashed.load_state_dict(theirs.state_dict(), strict=False)


def test_nothing_is_copied_and_rows_are_no_parameters() -> None:
    tables = TableCollection(specs())
    state, weights = tables.state_dict(), tables.weights()
    assert state["embedding_bags.keys.weight"].data_ptr() == weights["keys"].data_ptr()
    assert state["rows.many/rows.weight"].data_ptr() == weights["many/rows"].data_ptr()
    with_numbers = {id(p) for p in tables.parameters() if p.numel()}
    assert with_numbers == {id(p) for p in tables.dense_parameters()}


class Model(nn.Module):
    """Tables somewhere inside a model."""

    def __init__(self, tables: Sequence[Tables]) -> None:
        super().__init__()
        self.top = nn.Linear(24, 1)
        self.towers = nn.ModuleList(tables)


@pytest.mark.parametrize("assign", [False, True])
def test_inside_a_model(assign: bool) -> None:
    def model(seed: int, order: int) -> Model:
        sequences = SequenceCollection(specs()[::order], seed=seed)
        return Model([TableCollection(specs()[::order], seed=seed), sequences])

    one, other = model(1, 1), model(2, -1)
    rows = other.towers[0].weights()["keys"]
    other.load_state_dict({name: value.clone() for name, value in one.state_dict().items()}, assign=assign)
    for mine, theirs in zip(one.towers, other.towers, strict=True):
        assert_same_state(mine, theirs)
    assert torch.equal(rows, one.towers[0].weights()["keys"]), "rows stay where they were"
    state = one.state_dict()
    del state["towers.1.row_optimizer.keys.sum"]
    state["towers.0.rows.keys.weight"] = torch.zeros(2, 2)
    result = other.load_state_dict(state, strict=False)
    assert result.missing_keys == ["towers.1.row_optimizer.keys.sum"]
    assert result.unexpected_keys == ["towers.0.rows.keys.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*towers\.1\.row_optimizer\.keys\.sum"):
        other.load_state_dict(state)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_embeddings": 41}, "table 'keys' was saved with num_embeddings 40 and has 41 here"),
        ({"method": "hash", "budget": 0.5}, "table 'keys' was saved with method 'full' and has 'hash' here"),
        ({"embedding_dim": 4}, "table 'keys' was saved with embedding_dim 6 and has 4 here"),
    ],
)
def test_other_tables_are_refused_by_name(change: dict, message: str, strict: bool) -> None:
    plain = specs()[1]
    tables, other = TableCollection([plain]), TableCollection([replace(plain, **change)])
    before = {name: rows.clone() for name, rows in other.weights().items()}
    for state in (tables.state_dict(), {name: value.clone() for name, value in tables.state_dict().items()}):
        with pytest.raises(CheckpointError, match=message):
            other.load_state_dict(state, strict=strict)
    assert all(torch.equal(before[name], rows) for name, rows in other.weights().items())


def test_other_options_and_counts_are_refused_by_name() -> None:
    halves = [replace(specs()[1], method="compositional", budget=b) for b in (0.5, 0.4)]
    with pytest.raises(CheckpointError, match=r"table 'keys' was saved with budget 0\.5 and has 0\.4 here"):
        TableCollection([halves[1]]).load_state_dict(TableCollection([halves[0]]).state_dict())
    flat, steep = torch.full((NUM,), 100), (10_000 / torch.arange(1, NUM + 1) ** 1.5).long() + 1
    one, other = (TableCollection([replace(spec("mgqe"), counts=counts)]) for counts in (flat, steep))
    other.load_state_dict(one.state_dict())  # its codes don't depend on counts
    one, other = (TableCollection([replace(spec("adapt"), counts=counts)]) for counts in (flat, steep))
    assert one.weights()["t"].shape == other.weights()["t"].shape
    with pytest.raises(CheckpointError, match="looks its ids up in other rows here: its counts differ"):
        other.load_state_dict(one.state_dict())


def test_another_row_optimizer_is_refused() -> None:
    tables = TableCollection(specs(), optimizer=RowOptimizer(name="adagrad"))
    other = TableCollection(specs(), seed=1)
    state = tables.state_dict()
    with pytest.raises(CheckpointError, match=r"state of 'adagrad'; the tables here are updated by 'rowwise_adagrad'"):
        other.load_state_dict(state)
    rows = {name: value for name, value in state.items() if not name.startswith("row_optimizer.")}
    assert not other.load_state_dict(rows, strict=False).unexpected_keys
    assert torch.equal(other.weights()["keys"], tables.weights()["keys"])


def test_rows_without_what_they_belong_to_are_refused() -> None:
    tables = TableCollection(specs())
    state = {name: value for name, value in tables.state_dict().items() if name != "_extra_state"}
    with pytest.raises(CheckpointError, match="rows of table 'many' but no '_extra_state'"):
        TableCollection(specs()).load_state_dict(state, strict=False)
    with pytest.raises(CheckpointError, match="was not written by embank's tables"):
        TableCollection(specs()).load_state_dict({**state, "_extra_state": torch.zeros(4)})


def test_streaming_collections_go_by_name_too() -> None:
    common = {"num_embeddings": 8, "embedding_dim": 4}
    tables = [TableSpec(name=name, feature_names=[name], **common) for name in ("x", "y")]

    def streaming(order: int, seed: int) -> StreamingCollection:
        vocabularies = {spec.name: StreamingConfig() for spec in tables[::order]}
        return StreamingCollection(TableCollection(tables[::order], seed=seed), vocabularies)

    one, other = streaming(1, 0), streaming(-1, 1)
    for step in range(4):
        one(random_kjt({"x": 50, "y": 90}, batch_size=8, seed=step))
    other.load_state_dict(one.state_dict())
    one.eval()
    other.eval()
    kjt = random_kjt({"x": 50, "y": 90}, batch_size=8, seed=3)
    expected: dict[str, Tensor] = one(kjt).to_dict()
    for name, values in other(kjt).to_dict().items():
        assert torch.equal(values, expected[name])


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad"])
@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
def test_training_bytes_are_those_of_everything_that_is_held(backend: str, optimizer: str) -> None:
    """Before and after training, whose batches leave nothing that counts."""
    tables = TableCollection(specs(), backend=backend, optimizer=RowOptimizer(name=optimizer))
    for steps in (0, 2):
        trained(tables, steps=steps)
        assert tables.nbytes("training") == held_nbytes(tables)


@pytest.mark.parametrize("tier", ["device", "disk"])
@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
def test_rows_are_set_as_a_whole_or_not_at_all(backend: str, tier: str, tmp_path: Path) -> None:
    rows_in = RowTier(name=tier, directory=tmp_path if tier == "disk" else None)
    tables = TableCollection(specs(), backend=backend, tier=rows_in)
    before, wanted = tables.weights()["keys"].clone(), torch.randn(40, 6)
    for wrong in (wanted[:1], wanted[:, :1], wanted[0], torch.tensor(1.0), wanted.T):
        with pytest.raises(
            ConfigError, match=r"rows for table 'keys' have shape .*; the table has \(40, 6\): give all of its rows"
        ):
            tables.set_rows("keys", wrong)
    assert torch.equal(before, tables.weights()["keys"])
    tables.set_rows("keys", wanted)
    assert torch.equal(wanted, tables.weights()["keys"])
    with pytest.raises(ConfigError, match="there is no physical table 'kees'; did you mean 'keys'"):
        tables.set_rows("kees", wanted)


@pytest.mark.parametrize(
    ("value", "kind"),
    [([1.0], "list"), (3, "int"), (torch.empty(40, 6, device="meta"), "tensor without values")],
)
def test_what_is_no_tensor_is_refused(value: object, kind: str) -> None:
    tables = TableCollection(specs())
    before = tables.weights()["keys"].clone()
    for name in ("embedding_bags.keys.weight", "row_optimizer.num_updates"):
        with pytest.raises(
            CheckpointError, match=rf"'{name}' is a {kind}; it must be a tensor\. Nothing of it was loaded"
        ):
            tables.load_state_dict({**trained(TableCollection(specs())).state_dict(), name: value})
    with pytest.raises(
        CheckpointError, match="the '_extra_state' in this state_dict was not written by embank's tables"
    ):
        tables.load_state_dict({**tables.state_dict(), "_extra_state": torch.empty(3, device="meta")})
    with pytest.raises(ConfigError, match=r"rows for table 'keys' are a list; give a tensor of shape \(40, 6\)"):
        tables.set_rows("keys", [[0.0] * 6] * 40)
    assert torch.equal(before, tables.weights()["keys"])


def test_packed_tables_go_by_name_too() -> None:
    plain = {"embedding_dim": 8, "num_embeddings": 40}
    listed = [TableSpec(name=n, feature_names=[n], method="robe", budget=0.5, **plain) for n in ("x", "y")]
    one, other = (pack_collection(TableCollection(listed[::order], seed=order)) for order in (1, -1))
    other.load_state_dict({name: value.clone() for name, value in one.state_dict().items()})
    kjt = random_kjt({"x": 40, "y": 40}, batch_size=5, seed=0)
    expected = one(kjt).to_dict()
    for name, values in other(kjt).to_dict().items():
        assert torch.equal(values, expected[name])
    signed = [replace(spec, options=RobeConfig(signs=True)) for spec in listed]
    with pytest.raises(CheckpointError, match="is of other packed tables: 'x' was {.*} and is {.*} here"):
        pack_collection(TableCollection(signed)).load_state_dict(one.state_dict())


def test_rows_of_several_processes_are_set_together(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'ranks'}", rank=0, world_size=1)
    try:
        kinds = {"user.id": "row_wise", "keys": "data_parallel"}
        plan = Plan(world_size=1, tables={name: Placement(kind=kind) for name, kind in kinds.items()})
        tables = TableCollection(specs()[:2], sharding=Sharding(plan=plan))
        rows, kjt = torch.randn(40, 6), random_kjt(SIZES, batch_size=6, seed=0)
        for name in kinds:
            tables.set_rows(name, rows)
        alone = TableCollection(specs()[:2])
        for name in kinds:
            alone.set_rows(name, rows)
        torch.testing.assert_close(tables(kjt).values(), alone(kjt).values())
    finally:
        dist.destroy_process_group()
