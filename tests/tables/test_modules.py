"""Tables as parts of ordinary PyTorch models: casts and moves, copies, pickles."""

import copy
import io
import pickle
from collections.abc import Callable
from multiprocessing.context import set_spawning_popen
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
from torch import nn
from torchrec import KeyedJaggedTensor

from embank.tables import ConfigError, RowOptimizer, RowTier, SequenceCollection, TableCollection, TableSpec
from embank.tables.collections.base import Tables
from embank.tables.streaming import StreamingCollection, StreamingConfig
from tests.tables.batches import random_kjt

BACKENDS = ["fbgemm", "torch"]
SIZES = {"a": 40, "b": 30}
METHODS = ["full", "alpt", "mgqe", "dhe", "deeplight", "compositional"]


def specs(method: str) -> list[TableSpec]:
    return [
        TableSpec(name=name, num_embeddings=size, embedding_dim=6, feature_names=[name], method=method)
        for name, size in SIZES.items()
    ]


def batch(seed: int) -> KeyedJaggedTensor:
    return random_kjt(SIZES, batch_size=8, seed=seed)


def train(tables: Tables, *, first: int, last: int) -> None:
    for step in range(first, last):
        out = tables(batch(step))
        values = out.values() if isinstance(tables, TableCollection) else torch.cat([o.values() for o in out.values()])
        (values - 1).square().sum().backward()
        tables.step()
        with torch.no_grad():
            for parameter in tables.dense_parameters():
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad
                    parameter.grad = None


def state(tables: Tables) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in tables.state_dict().items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def through_torch_save(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def through_a_queue(model: nn.Module) -> nn.Module:
    """What `torch.multiprocessing` sends to a process that runs."""
    return pickle.loads(ForkingPickler.dumps(model))


def through_a_spawned_process(model: nn.Module) -> nn.Module:
    """What `multiprocessing` hands to a process that it spawns, which gets nothing of the files and shared memory that
    are open here."""

    class Popen:
        def duplicate_for_child(self, fd: int) -> int:
            raise AssertionError("the new process would look for a file that is closed by then")

    network = model.pop("network")  # its tensors live as long as it does
    set_spawning_popen(Popen())
    try:
        copied = pickle.loads(ForkingPickler.dumps(model))
    finally:
        set_spawning_popen(None)
        model["network"] = network
    return copied


PROCESSES = [through_a_queue, through_a_spawned_process]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", METHODS)
def test_casts_leave_tables_alone(method: str, backend: str, dtype: torch.dtype, tmp_path: Path) -> None:
    for tier in (RowTier(), RowTier(name="disk", directory=tmp_path)):
        tables = TableCollection(specs(method), backend=backend, tier=tier)
        tables.begin(num_steps=4)
        model = nn.ModuleDict({"tables": tables, "network": nn.Linear(12, 1)})
        before, expected = state(tables), tables.eval()(batch(0)).values().detach()
        model.to(dtype)
        assert model["network"].weight.dtype == dtype
        assert_equal(before, state(tables))
        assert torch.equal(tables(batch(0)).values(), expected)
        train(tables.train(), first=0, last=2)
        assert all(rows.dtype == torch.float32 for rows in tables.weights().values())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", METHODS)
def test_tables_do_not_take_the_defaults_of_the_model_around(method: str, backend: str) -> None:
    """A language model is made with bf16 as the default type, perhaps on a device without values, or where nothing is
    differentiated."""
    made = [TableCollection(specs(method), backend=backend)]
    torch.set_default_dtype(torch.bfloat16)
    try:
        made.append(TableCollection(specs(method), backend=backend))
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        made.append(TableCollection(specs(method), backend=backend))
    with torch.inference_mode():
        made.append(TableCollection(specs(method), backend=backend))
    for tables in made:
        tables.begin(num_steps=2)
        train(tables, first=0, last=2)
    for tables in made[1:]:
        assert_equal(state(made[0]), state(tables))


def test_a_move_to_another_device_is_refused() -> None:
    model = nn.Sequential(TableCollection(specs("full")), nn.Linear(12, 1))
    model.to("cpu")
    with pytest.raises(ConfigError, match="rows can't be put into shared memory with a model"):
        model.share_memory()
    keeps = pytest.raises(
        ConfigError, match=r"rows are on 'cpu' and can't be moved to 'cuda:0' with a model; make the tables"
    )

    class Elsewhere:
        device, dtype = torch.device("cuda:0"), torch.float32

    with keeps:
        model._apply(lambda tensor: Elsewhere())


@pytest.mark.parametrize("through", [copy.deepcopy, through_pickle, through_torch_save, *PROCESSES])
@pytest.mark.parametrize("backend", BACKENDS)
def test_copies_go_on_as_the_original(backend: str, through: Callable[[nn.Module], nn.Module]) -> None:
    for method in METHODS:
        rows = RowOptimizer(name="adam" if backend == "torch" else "adagrad", lr=0.1)
        tables = TableCollection(specs(method), backend=backend, optimizer=rows, seed=3)
        tables.begin(num_steps=6)
        tables.set_lr(0.03)
        train(tables, first=0, last=3)
        model = nn.ModuleDict({"tables": tables, "network": nn.Linear(12, 1)}).eval()
        copied = through(model)["tables"]
        assert not copied.training
        assert_equal(state(tables), state(copied))
        kept = state(copied)
        train(tables.train(), first=3, last=6)
        assert_equal(kept, state(copied))
        train(copied.train(), first=3, last=6)
        assert_equal(state(tables), state(copied))


def test_copies_of_frozen_tables_are_frozen() -> None:
    tables = TableCollection(specs("full"))
    tables.requires_grad_(False)
    copied = through_pickle(tables)
    before = state(copied)
    (copied(batch(0)).values() * torch.ones(12, requires_grad=True)).sum().backward()
    assert_equal(before, state(copied))


def test_sequences_and_streams_are_copied() -> None:
    sequence = SequenceCollection(specs("mgqe"), dedupe=True)
    sequence.begin(num_steps=4)
    train(sequence, first=0, last=1)
    copied = copy.deepcopy(sequence)
    assert copied.dedupe
    for tables in (sequence, copied):
        train(tables, first=1, last=3)
    assert_equal(state(sequence), state(copied))
    streaming = StreamingCollection(TableCollection(specs("full")), {"a": StreamingConfig()})
    streaming(batch(0)).values().sum().backward()
    other = through_pickle(streaming)
    assert torch.equal(streaming.eval()(batch(1)).values(), other.eval()(batch(1)).values())


def test_files_are_not_copied(tmp_path: Path) -> None:
    tables = TableCollection(specs("full"), tier=RowTier(name="disk", directory=tmp_path))
    for through in (copy.deepcopy, through_pickle):
        with pytest.raises(ConfigError, match="tables on the disk tier can't be copied or pickled: .*save_checkpoint"):
            through(tables)
