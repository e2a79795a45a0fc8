"""What a run chooses where its configuration says auto."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch._inductor.exc import CppCompileError, InductorError

from embank.ctr_models.network import Network
from embank.pipelines.config.run import parse_config
from embank.pipelines.config.sections import TrainConfig
from embank.pipelines.data.schema import Schema
from embank.pipelines.reporting import Reporter
from embank.pipelines.runs import evaluate as evaluation
from embank.pipelines.runs.build import build
from embank.pipelines.runs.evaluate import evaluate_saved
from embank.pipelines.runs.score import compiled_score
from embank.pipelines.train import execution
from embank.pipelines.train.trainer import Trainer
from embank.tables import ConfigError, WorkError
from tests.training.runs import config, raw_config, timeless, train, write_data

MODEL = {"name": "dcn_v2", "hidden_units": [8], "dropout": 0.5}
PLAIN = {"precision": "fp32", "compile": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("execution") / "data")


@pytest.fixture
def long_and_faster_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every training is long, and a step of the probe takes as long as it is said to."""
    seconds = {("fp32", False): 3.0, ("bf16", False): 2.0, ("bf16", True): 1.9}
    step = execution._Probe.step

    def timed(self: Any, network: Any, precision: str) -> float:
        step(self, network, precision)
        return seconds[precision, network != self.network.score]

    monkeypatch.setattr(execution, "LONG_SECONDS", 0.0)
    monkeypatch.setattr(execution, "_has_bf16", lambda device: True)
    monkeypatch.setattr(execution._Probe, "step", timed)
    monkeypatch.setattr(torch, "compile", lambda network, **options: lambda *inputs: network(*inputs))


class Notes(Reporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def chosen(run: Path) -> dict[str, Any]:
    own = yaml.safe_load((run / "config.yaml").read_text())["train"]
    return {key: own[key] for key in PLAIN}


@pytest.mark.slow
def test_short_trainings_are_plain_and_say_nothing(data: Path, tmp_path: Path) -> None:
    reporter = Notes()
    assert config(data).train.precision == config(data).train.compile == "auto"
    result = Trainer(config(data, model=MODEL), tmp_path / "auto", reporter=reporter).train()
    assert not any("precision" in line for line in reporter.said)
    assert chosen(tmp_path / "auto") == PLAIN
    assert timeless(result) == timeless(train(data, tmp_path / "plain", model=MODEL, train={"epochs": 3, **PLAIN}))


@pytest.mark.usefixtures("long_and_faster_in_bf16")
def test_a_long_training_takes_what_is_faster_and_keeps_to_it(data: Path, tmp_path: Path) -> None:
    reporter = Notes()
    result = Trainer(config(data, model=MODEL), tmp_path / "auto", reporter=reporter).train()
    (line,) = [line for line in reporter.said if "precision" in line]
    assert line.startswith(
        "train.precision bf16, train.compile false: a step of the network takes 3e+03 ms in fp32, 2e+03 ms in bf16; "
        "compiled, which took 0 s, 1.9e+03 ms beside 2e+03 ms"
    )
    assert chosen(tmp_path / "auto") == {"precision": "bf16", "compile": False}
    assert (tmp_path / "auto/log.txt").read_text().count(line) == 1, "the log was begun later, and has it"
    explicit = train(data, tmp_path / "bf16", model=MODEL, train={"precision": "bf16", "compile": False})
    assert timeless(result) == timeless(explicit)  # nothing of the model, nor of torch's generators, has changed


@pytest.mark.usefixtures("long_and_faster_in_bf16")
@pytest.mark.slow
def test_a_resumed_run_keeps_what_was_chosen(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(data, tmp_path / "whole", model=MODEL, train={"eval_every": 5})
    trainer = Trainer(config(data, model=MODEL, train={"eval_every": 5}), tmp_path / "run")

    class StoppedError(Exception):
        """In the middle."""

    steps = []

    def stop(*args: Any, **kwargs: Any) -> None:
        steps.append(args)
        if len(steps) == 3:
            raise StoppedError

    with monkeypatch.context() as patched:
        patched.setattr("embank.pipelines.train.loop.stop_if_asked", stop)
        with pytest.raises(StoppedError):
            trainer.train()
    monkeypatch.setattr(execution, "_has_bf16", lambda device: False)  # now another choice would be made
    resumed = train(data, tmp_path / "run", resume=True, model=MODEL, train={"eval_every": 5})
    assert chosen(tmp_path / "run")["precision"] == "bf16"
    assert timeless(resumed) == timeless(whole)
    with pytest.raises(ConfigError, match="was started with train.precision = 'bf16', the configuration now says"):
        train(data, tmp_path / "run", resume=True, model=MODEL, train={"eval_every": 5, "precision": "fp32"})


@pytest.mark.usefixtures("long_and_faster_in_bf16")
def test_what_cant_be_compiled_is_not(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no C++ compiler\nfar too much text")

    monkeypatch.setattr(torch, "compile", fail)
    reporter = Notes()
    Trainer(config(data, model=MODEL, train={"epochs": 1}), tmp_path / "run", reporter=reporter).train()
    (line,) = [line for line in reporter.said if "precision" in line]
    assert line.endswith("; it can't be compiled here (RuntimeError: no C++ compiler)")
    assert chosen(tmp_path / "run") == {"precision": "bf16", "compile": False}


@pytest.mark.slow
def test_a_real_choice(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured, with torch's compiler, on a network and a length for which it pays."""
    monkeypatch.setattr(execution, "LONG_SECONDS", 0.0)
    whole = config(data, model={"name": "fnn", "hidden_units": [8]})
    model = build(whole, Schema.load(data), data=data, rows_folder=data.parent / "rows")
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    state = torch.get_rng_state()
    train_config, said = execution.choose(model, TrainConfig(precision="fp32"), batch_rows=64, num_steps=10**9)
    assert said is not None
    assert "compiled, which took" in said
    assert train_config.compile in (True, False)
    assert train_config.precision == "fp32"
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(model.network.state_dict()[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
def test_large_splits_are_scored_by_the_compiled_network_in_full_batches(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, bool]] = []

    def compiled(network: Any, **options: Any) -> Any:
        def called(dense: Tensor, values: Tensor) -> Tensor:
            calls.append((len(dense), torch.is_grad_enabled()))
            return network(dense, values)

        return called

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(evaluation, "EVAL_BATCH_SIZE", 16)
    plain = train(data, tmp_path / "plain", train=PLAIN)
    assert not calls
    num_rows = Schema.load(data).split("valid").num_rows
    settings = PLAIN | {"compile": True}
    for least, num_batches in ((num_rows + 1, 0), (num_rows, num_rows // 16)):
        monkeypatch.setattr(evaluation, "COMPILED_ROWS", least)
        out = tmp_path / str(least)
        found = train(data, out, train=settings)
        assert {key: found[key] for key in ("auc", "valid_auc")} == {key: plain[key] for key in ("auc", "valid_auc")}
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        evaluations = sum(line["split"] == "valid" for line in lines)
        scored = [rows for rows, learns in calls if not learns]
        assert scored == [16] * num_batches * evaluations
        calls.clear()
        evaluate_saved(out, data=data, split="valid")
        assert calls == [(16, False)] * num_batches
        calls.clear()


@pytest.mark.slow
def test_a_machine_without_a_compiler(data: Path, tmp_path: Path) -> None:
    """What asks for compiled steps there is refused with its cure."""
    settings = {"train": PLAIN | {"compile": True, "epochs": 1}, "model": MODEL}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw_config(data, **settings)))
    nothing = {**os.environ, "CXX": "/nonexistent/g++", "PATH": str(tmp_path), "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "embank"]
    done = subprocess.run(
        [*command, "train", "run.yaml", "--out", "run"], cwd=tmp_path, env=nothing, capture_output=True, text=True
    )
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("embank: train.compile is true, and the network can't be compiled here: InvalidCxxCompiler")
    assert last.endswith("or begin a run with train.compile: false")


@pytest.mark.slow
def test_an_evaluation_that_cant_be_compiled_is_made_as_it_is(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By torch's own refusal, on a machine without a compiler."""
    loaded = config(data, model=MODEL)
    network = build(loaded, Schema.load(data), data=data, rows_folder=data.parent / "rows").network.eval()
    torch._dynamo.reset()
    scored = compiled_score(network, falls_back=True)
    width = network.num_embedding_columns + network.num_first_order_columns
    dense, values = torch.randn(5, network.inputs.num_dense), torch.randn(5, width)
    with torch.no_grad(), torch._inductor.config.patch({"cpp.cxx": ("/nonexistent/g++",)}):
        found = [scored(dense, values) for _ in range(2)]
        expected = network.score(dense, values)
    assert all(torch.equal(own, expected) for own in found)
    assert caplog.text.count("the network can't be compiled here") == 1


def small_network(data: Path, *, hidden_units: Sequence[int] = (8,)) -> Network:
    """Without a table of first order, in evaluation mode."""
    model = build(
        config(data, model={"name": "fnn", "hidden_units": list(hidden_units)}),
        Schema.load(data),
        data=data,
        rows_folder=data.parent / "rows",
    )
    assert isinstance(model.network, Network)
    assert not model.network.num_first_order_columns
    return model.network.eval()


class Failing:
    """What torch makes of a network, and a C++ compiler that fails as often as it is told to."""

    def __init__(self, said: str, *, times: int) -> None:
        self.said, self.times, self.calls = said, times, 0

    def compile(self, network: Any, **options: Any) -> Any:
        def called(dense: Tensor, values: Tensor) -> Tensor:
            self.calls += 1
            if self.calls <= self.times:
                raise InductorError(CppCompileError(["g++"], self.said), None)
            return network(dense, values)

        return called


def test_a_compiler_that_is_stopped_by_ctrl_c_is_asked_once_more(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal gives the signal to it as well; the run itself stops after the step."""
    network = small_network(data)
    inputs = torch.randn(5, network.inputs.num_dense), torch.randn(5, network.num_embedding_columns)
    once, always = Failing("interrupted", times=1), Failing("a\nx.cpp:3: error: no such thing\nmore", times=100)
    monkeypatch.setattr(torch, "compile", once.compile)
    assert torch.equal(compiled_score(network)(*inputs), network.score(*inputs))
    monkeypatch.setattr(torch, "compile", always.compile)
    with pytest.raises(WorkError, match=r"x.cpp:3: error: no such thing. Mend what the C\+\+ compiler says .*CXX"):
        compiled_score(network)(*inputs)
    assert always.calls == 2


def test_the_cure_of_a_folder_that_cant_be_written_is_another_one(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(network: Any, **options: Any) -> Any:
        def called(dense: Tensor, values: Tensor) -> Tensor:
            raise InductorError(OSError(30, "Read-only file system", "/cache"), None)

        return called

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(WorkError, match="Read-only .* Point the variable TORCHINDUCTOR_CACHE_DIR to a folder that can"):
        compiled_score(small_network(data))(torch.randn(2, 1), torch.randn(2, 4))


@pytest.mark.slow
def test_the_ninth_network_of_a_process_is_compiled_too(data: Path) -> None:
    """torch takes a method that it has compiled eight times as it is from then on."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for width in range(8, 18):
        network = small_network(data, hidden_units=[width])
        compiled_score(network)(torch.randn(5, network.inputs.num_dense), torch.randn(5, network.num_embedding_columns))
    assert torch._dynamo.utils.counters["frames"] == {"total": 10, "ok": 10}


def test_a_batch_larger_than_the_data_is_measured_as_it_is_trained(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def measured(model: Any, train: TrainConfig, *, batch_rows: int, num_steps: int) -> tuple[TrainConfig, None]:
        asked.extend([batch_rows, num_steps])
        return execution.plainly(train), None

    monkeypatch.setattr("embank.pipelines.train.trainer.choose", measured)
    raw = raw_config(data, model=MODEL, train={"epochs": 3})
    raw["data"]["batch_size"] = 10**9
    Trainer(parse_config(raw), tmp_path / "run").train()
    assert asked == [Schema.load(data).split("train").num_rows, 3]
