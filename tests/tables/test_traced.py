"""Collections under torch.fx: one step of a graph, which gives what the model gives; and under TorchRec's pipelines,
which trace every model."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torchrec.fx
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor
from torchrec.datasets.utils import Batch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.optim.fused import FusedOptimizerModule

from embank.tables import (
    ConfigError,
    DataError,
    PipelinedTables,
    PlainCollection,
    RowOptimizer,
    SequenceCollection,
    StreamingCollection,
    StreamingConfig,
    TableCollection,
    TableSpec,
    load_bundle,
    pack_collection,
    save_bundle,
)
from tests.tables.batches import random_kjt

SIZES = {"a": 40, "b": 30, "c": 20}
DIM, BATCH_SIZE, NUM_STEPS = 8, 6, 12
TRACERS = [torch.fx.symbolic_trace, torchrec.fx.symbolic_trace]


def specs(method: str = "full") -> list[TableSpec]:
    return [
        TableSpec(name=name, num_embeddings=size, embedding_dim=DIM, feature_names=[name], method=method)
        for name, size in SIZES.items()
    ]


def kjt(seed: int = 0) -> KeyedJaggedTensor:
    return random_kjt(SIZES, batch_size=BATCH_SIZE, seed=seed)


def dlrm(tables: nn.Module) -> DLRM:
    torch.manual_seed(0)
    return DLRM(tables, dense_in_features=3, dense_arch_layer_sizes=[8, DIM], over_arch_layer_sizes=[8, 1])


def bundled(folder: Path) -> nn.Module:
    save_bundle(folder / "bundle", TableCollection(specs("compositional")))
    return load_bundle(folder / "bundle")


COLLECTIONS: dict[str, Callable[[Path], nn.Module]] = {
    "full": lambda _: TableCollection(specs()),
    "dpq": lambda _: TableCollection(specs("dpq")),
    "packed": lambda _: pack_collection(TableCollection(specs("dpq")), codec="int8"),
    "bundle": bundled,
    "pipelined": lambda _: PipelinedTables(TableCollection(specs())),
    "streaming": lambda _: StreamingCollection(TableCollection(specs()), {"a": StreamingConfig()}),
}


@pytest.mark.parametrize("name", COLLECTIONS)
@pytest.mark.parametrize("trace", TRACERS)
def test_a_model_of_torchrec_is_traced(
    name: str, trace: Callable[[nn.Module], torch.fx.GraphModule], tmp_path: Path
) -> None:
    tables = COLLECTIONS[name](tmp_path)
    model = dlrm(tables) if name != "streaming" else nn.Sequential(tables)
    graph = trace(model)
    inputs = [(torch.rand(BATCH_SIZE, 3), kjt(seed)) if isinstance(model, DLRM) else (kjt(seed),) for seed in range(2)]
    calls = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    assert sum(target in ("sparse_arch.embedding_bag_collection", "0") for target in calls) == 1
    for given in inputs:
        got, expected = graph(*given), model(*given)
        if not isinstance(got, Tensor):
            got, expected = got.values(), expected.values()
        assert torch.equal(got, expected)


@pytest.mark.parametrize("trace", TRACERS)
def test_a_collection_alone_is_traced(trace: Callable[[nn.Module], torch.fx.GraphModule]) -> None:
    tables = TableCollection(specs())
    graph = trace(tables)
    assert torch.equal(graph(kjt()).values(), tables(kjt()).values())
    assert torch.equal(graph(tables.address(kjt())).values(), tables(kjt()).values())
    assert "itself.embedding_bags.a.weight" in graph.state_dict()

    sequence = SequenceCollection(specs())
    rows, expected = trace(sequence)(kjt()), sequence(kjt())
    assert all(torch.equal(rows[key].values(), expected[key].values()) for key in SIZES)

    plain = PlainCollection(pack_collection(tables))
    inputs = plain.example()
    assert torch.equal(trace(plain)(*inputs), plain(*inputs))


def test_rows_of_tensors_are_traced() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = SequenceCollection(
                [TableSpec(name="head", num_embeddings=10, embedding_dim=4, feature_names=["layer"])]
            )

        def forward(self, ids_BT: Tensor) -> Tensor:
            found: Tensor = self.tables({"layer": ids_BT.unsqueeze(2)})["layer"]
            return found.sum(1)

    model = Tokens()
    graph = torch.fx.symbolic_trace(model)
    ids_BT = torch.randint(0, 10, (2, 5))
    assert torch.equal(graph(ids_BT), model(ids_BT))


def test_what_needs_the_ids_is_refused_under_a_trace() -> None:
    class Addressing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = TableCollection(specs())

        def forward(self, features: KeyedJaggedTensor) -> Tensor:
            return self.tables(self.tables.address(features)).values()

    with pytest.raises(DataError, match=r"torch\.fx is tracing. Call the tables themselves, tables\(kjt\)"):
        torch.fx.symbolic_trace(Addressing())


def batches() -> Iterator[Batch]:
    for seed in range(NUM_STEPS):
        generator = torch.Generator().manual_seed(seed)
        yield Batch(
            dense_features=torch.rand(BATCH_SIZE, 3, generator=generator),
            sparse_features=kjt(seed),
            labels=torch.randint(0, 2, (BATCH_SIZE,), generator=generator),
        )


def trained(method: str, *, pipeline: bool, stand_in: bool) -> tuple[list[float], Tensor]:
    """Losses of 12 steps, and the rows after them."""
    tables = TableCollection(specs(method), optimizer=RowOptimizer(name="adagrad", lr=0.1))
    model = DLRMTrain(dlrm(PipelinedTables(tables) if stand_in else tables))
    tables.begin(num_steps=NUM_STEPS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    if pipeline:
        runner, source = TrainPipelineSparseDist(model, optimizer, torch.device("cpu")), batches()
        for _ in range(NUM_STEPS):
            losses.append(runner.progress(source)[0].item())
            tables.step()
    else:
        for batch in batches():
            optimizer.zero_grad()
            loss, _ = model(batch)
            loss.backward()
            tables.step()
            optimizer.step()
            losses.append(loss.item())
    return losses, torch.cat([rows.flatten() for rows in tables.weights().values()])


@pytest.mark.parametrize("method", ["full", "tt_rec", "mgqe"])
def test_a_pipeline_trains_like_the_loop(method: str) -> None:
    losses, rows = trained(method, pipeline=False, stand_in=False)
    assert len(set(losses)) == NUM_STEPS
    for stand_in in (False, True):
        found = trained(method, pipeline=True, stand_in=stand_in)
        assert found[0] == losses, "a stand-in" if stand_in else "the collection"
        assert torch.equal(found[1], rows)


def test_a_bundle_is_evaluated_in_a_pipeline(tmp_path: Path) -> None:
    model = DLRMTrain(dlrm(bundled(tmp_path))).eval()
    runner = TrainPipelineSparseDist(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.device("cpu"))
    source = batches()
    for batch in batches():
        assert torch.equal(runner.progress(source)[1], model(batch)[1][1])


def test_a_stand_in_has_what_the_collection_has() -> None:
    tables = TableCollection(specs("dpq"))
    model, plain = dlrm(PipelinedTables(tables)), dlrm(tables)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    stand_in = model.sparse_arch.embedding_bag_collection
    assert [config.name for config in stand_in.embedding_bag_configs()] == list(SIZES)
    assert stand_in.specs is tables.specs
    assert stand_in.nbytes("training") == tables.nbytes("training")
    assert list(stand_in.sharded_parameter_names("x")) == ["x.mark.rows"]
    assert isinstance(stand_in, FusedOptimizerModule)  # by which DistributedModelParallel finds it
    assert stand_in.fused_optimizer is tables.fused_optimizer
    model.eval()
    assert not tables.training
    other = dlrm(PipelinedTables(TableCollection(specs("dpq"), seed=1)))
    other.load_state_dict(model.state_dict())
    inputs = torch.rand(BATCH_SIZE, 3), kjt()
    assert torch.equal(other.eval()(*inputs), model(*inputs))
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = stand_in.nothing_of_this_name


def test_tables_of_one_process_are_not_spread() -> None:
    with pytest.raises(ConfigError, match=r"no processes to spread rows over; call torch\.distributed"):
        TableCollection(specs()).spread()
