"""Methods of several stages: how long they train, what moves what, what is chosen, and that a stopped run ends the
same."""

import json
import math
import os
import random
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.schema import Schema
from embank.pipelines.reporting import Reporter
from embank.pipelines.runs.build import build, initial_network
from embank.pipelines.runs.evaluate import evaluate_saved
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.inspect import inspect_run
from embank.pipelines.runs.open import best_model
from embank.pipelines.train.interrupt import InterruptedRunError
from embank.pipelines.train.step import SearchStepper, Stepper
from embank.pipelines.train.trainer import Trainer
from embank.tables import TableCollection
from embank.tables.collections.stages import search_parameters
from tests.processes import forkserver
from tests.training.narrowing import _Halves
from tests.training.runs import config, raw_config, timeless, train

pytestmark = pytest.mark.slow

TABLES = {"dim": 4, "method": "test_narrowing", "overrides": {"item": {"method": "full"}}}
SEARCH_STEPS, TRAIN_STEPS = 15, 30  # half of 3 epochs of 10 steps, and all of them


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    train(data, path, tables=TABLES)
    return path


def test_every_stage_has_its_share_of_steps(run: Path) -> None:
    records = RunFolder(run).read_metrics()
    assert [(r["split"], r["stage"], r["step"], r["epoch"]) for r in records[:-1]] == [
        ("valid", "search", 10, 1),
        ("valid", "search", 15, 2),
        ("valid", "train", 15, 2),  # as it begins
        ("valid", "train", 25, 3),
        ("valid", "train", 35, 4),
        ("valid", "train", 45, 5),
    ]
    assert (records[-1]["split"], records[-1]["stage"]) == ("test", "train")


def test_all_stages_are_paid_for(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    stages = result["stages"]
    assert [(s["name"], s["steps"]) for s in stages] == [("search", SEARCH_STEPS), ("train", TRAIN_STEPS)]
    searched = 7 * 100 + 64  # 15 batches of 64 from passes over 100 rows
    assert [s["samples"] for s in stages] == [600 + 5 * 64 + searched, 3 * 600]
    assert result["num_samples"] == sum(s["samples"] for s in stages)
    assert result["train_seconds"] == pytest.approx(sum(s["seconds"] for s in stages))
    assert all(s["seconds"] > 0 for s in stages)
    assert stages[0]["training_bytes"] > stages[1]["training_bytes"] > 0
    assert result["training_bytes"] == stages[0]["training_bytes"]


def test_only_the_last_stage_chooses_what_is_served(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    trained = [r for r in RunFolder(run).read_metrics() if r["stage"] == "train" and r["split"] == "valid"]
    best = max(trained, key=lambda record: record["auc"])
    assert (result["best_step"], result["valid_auc"]) == (best["step"], best["auc"])
    begins = "-stage-1" if best["step"] == SEARCH_STEPS else ""
    expected = {f"step-{best['step']:09d}{begins}-evaluated", "step-000000045-evaluated"}
    assert {p.name for p in RunFolder(run).saved()} == expected


class Spoils(Reporter):
    """Sets the network's parameters to 0 after every step of the last stage."""

    trainer: Trainer
    stage = ""

    def start(self, phase: str, *, total: int, unit: str, done: int = 0, speed: str = "rows") -> None:
        self.stage = phase.split(", ")[-1]

    @torch.no_grad()
    def advance(self, done: int, *, per_s: float, loss: float | None = None) -> None:
        if self.stage == "train":
            for parameter in self.trainer.session.model.network.parameters():
                parameter.zero_()


def test_what_further_training_spoils_is_served_as_it_was(data: Path, tmp_path: Path) -> None:
    sections = {"tables": TABLES, "train": {"lr": 0.02}}
    reporter = Spoils()
    reporter.trainer = Trainer(config(data, **sections), tmp_path / "run", reporter=reporter)
    result = reporter.trainer.train()
    records = RunFolder(tmp_path / "run").read_metrics()
    begun = next(r for r in records if r["stage"] == "train")
    assert begun["train_logloss"] is None
    later = [r["auc"] for r in records if r["stage"] == "train" and r["step"] > SEARCH_STEPS]
    assert begun["auc"] > max(later[:-1])
    assert (result["best_step"], result["valid_auc"]) == (SEARCH_STEPS, begun["auc"])
    assert "step-000000015-stage-1-evaluated" in [p.name for p in RunFolder(tmp_path / "run").saved()]
    assert evaluate_saved(tmp_path / "run", data=data, split="valid")["auc"] == begun["auc"]


def test_a_last_stage_that_searches_serves_its_end(data: Path, tmp_path: Path) -> None:
    tables = {"method": "test_search_only", "overrides": {"genre": {"method": "full"}}}  # the first table has no search
    result = train(data, tmp_path / "run", tables=tables)
    records = [r for r in RunFolder(tmp_path / "run").read_metrics() if r["split"] == "valid"]
    assert {r["stage"] for r in records} == {"search"}
    assert result["num_samples"] == 3 * 600 + 15 * 100
    assert result["best_step"] == result["num_steps"] == 30
    assert result["valid_auc"] == records[-1]["auc"]


def test_a_finished_run_is_read_in_its_last_stage(run: Path, data: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert evaluate_saved(run, data=data, split="test")["auc"] == result["auc"]
    tables = {t["name"]: t for t in inspect_run(run)["tables"]}
    assert tables["user"]["rows"] == "50 x 2"
    assert tables["item"]["rows"] == "7 x 4"
    with best_model(RunFolder(run), schema=Schema.load(data), data=data) as (model, _):
        assert {spec.stage for spec in model.tables.specs if spec.method == "test_narrowing"} == {1}
        assert not model.tables.weights()["user"][-1].any(), "what is served is settled"
        assert model.tables.weights()["user"][1].any()


class AtStages(Reporter):
    """Remembers the network at the end of a stage and at the beginning of the next; may stop the run there."""

    def __init__(self, *, stop: bool = False) -> None:
        self.trainer: Trainer | None = None
        self.stop, self.networks, self.described = stop, {}, []
        self.best_search = -1.0

    def _network(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.trainer.session.model.network.state_dict().items()}

    def start(self, phase: str, *, total: int, unit: str, done: int = 0, speed: str = "rows") -> None:
        self.networks[phase] = self._network()
        self.described.append((phase, total, done))
        if self.stop and len(self.described) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    def evaluated(self, record: Mapping[str, Any]) -> None:
        if record["stage"] == "search" and record["auc"] > self.best_search:
            self.best_search, self.networks["best of search"] = record["auc"], self._network()


def observed(data: Path, run: Path, *, stop: bool = False, **sections: dict[str, Any]) -> AtStages:
    reporter = AtStages(stop=stop)
    reporter.trainer = Trainer(config(data, **sections), run, reporter=reporter)
    reporter.trainer.train()
    return reporter


def equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_network_goes_on_or_starts_anew(data: Path, tmp_path: Path) -> None:
    first, second = "stage 1 of 2, search", "stage 2 of 2, train"
    for method in ("test_narrowing", "test_narrowing_anew"):
        reporter = observed(data, tmp_path / method, tables={"method": method})
        assert reporter.described == [(first, SEARCH_STEPS, 0), (second, TRAIN_STEPS, 0)]
        networks = reporter.networks
        assert not equal(networks[first], networks["best of search"])
        source = first if method == "test_narrowing_anew" else "best of search"
        assert equal(networks[second], networks[source])
    schema = Schema.load(data)
    assert equal(networks[first], initial_network(config(data), schema).state_dict())


def test_optimizers_start_anew_and_the_penalty_follows_the_tables(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InterruptedRunError, match=r"stopped after step 1 of 30 of stage 2 of 2, train, which is saved"):
        observed(data, tmp_path / "run", stop=True, tables=TABLES, train={"embedding_l2": 0.1, "optimizer": "adagrad"})
    dense = torch.load(RunFolder(tmp_path / "run").saved()[-1] / "dense.pt", weights_only=True)
    assert {int(state["step"]) for state in dense["optimizer"]["state"].values()} == {1}
    norms = []
    for l2 in (0.0, 0.1):
        path = tmp_path / f"l2-{l2}"
        train(data, path, tables=TABLES, train={"embedding_l2": l2, "epochs": 2})
        with best_model(RunFolder(path), schema=Schema.load(data), data=data) as (model, _):
            norms.append(float(model.tables.weights()["user"].norm()))
    assert norms[1] < 0.9 * norms[0]


def test_early_stopping_ends_the_stage_not_the_run(data: Path, tmp_path: Path) -> None:
    sections = {"tables": TABLES, "train": {"epochs": 20, "eval_every": 2, "patience": 2, "lr": 0.02}}
    result = train(data, tmp_path / "run", **sections)
    records = [r for r in RunFolder(tmp_path / "run").read_metrics() if r["split"] == "valid"]
    for stage, full, at_its_beginning in (("search", 100, 0), ("train", 200, 1)):
        values = [r["auc"] for r in records if r["stage"] == stage]
        assert values.index(max(values)) == len(values) - 3
        steps = next(s for s in result["stages"] if s["name"] == stage)["steps"]
        assert steps == 2 * (len(values) - at_its_beginning) < full


def parts(model: Any) -> dict[str, torch.Tensor]:
    """Copies of all that a search step must leave alone."""
    tables = model.tables
    found = {f"network/{k}": v for k, v in model.network.state_dict().items()}
    found |= {f"rows/{k}": v for k, v in tables.weights().items()}
    found |= {f"state/{k}/{n}": v for k, s in tables.optimizer_state().items() for n, v in s.items()}
    found |= {f"methods/{k}": v for k, v in tables.methods.state_dict().items() if "gates" not in k}
    return {name: value.clone() for name, value in found.items()}


@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad"])
def test_search_steps_move_search_parameters_alone(data: Path, tmp_path: Path, backend: str, optimizer: str) -> None:
    settings = config(
        data,
        tables=TABLES,
        model={"name": "deepfm", "hidden_units": [8], "batch_norm": True, "dropout": 0.2},
        rows={"backend": backend},
        train={"table_optimizer": optimizer, "search_lr": 0.01},
    )
    model = build(settings, Schema.load(data), data=data, rows_folder=tmp_path).train()
    assert isinstance(model.tables, TableCollection)
    searched = search_parameters(model.tables)
    stepper = Stepper(model, config=settings.train, batch_size=64, num_rows=600, num_steps=30, held=searched)
    loader = Loader(data, "valid", batch_size=64, shuffle=True, address=model.tables.address)
    search = SearchStepper(model, config=settings.train, loader=loader, start=None)
    training = Loader(data, "train", batch_size=64, shuffle=True, address=stepper.address)
    for step, batch in enumerate(training.epoch(0)):
        gates = [p.detach().clone() for p in searched]
        before = parts(model)
        stepper(batch, step=step)
        assert all(torch.equal(a, b) for a, b in zip(gates, searched, strict=True)), "training moves no gate"
        after = parts(model)
        assert not torch.equal(before["rows/user"], after["rows/user"])
        search()
        assert equal(after, parts(model)), "a search step moves nothing else"
        assert not any(torch.equal(a, b) for a, b in zip(gates, searched, strict=True))
        assert model.network.training


def test_search_parameters_go_where_the_gradient_of_validation_points(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of a search step against autograd on a copy whose every weight requires one."""
    settings = config(data, tables=TABLES, train={"search_lr": 0.01}, rows={"backend": "torch"})
    model = build(settings, Schema.load(data), data=data, rows_folder=tmp_path)
    assert isinstance(model.tables, TableCollection)
    monkeypatch.setattr(torch, "randn", torch.zeros)  # no noise of the gates
    loader = Loader(data, "valid", batch_size=64, shuffle=True, address=model.tables.address)
    searched = search_parameters(model.tables)
    before = [p.detach().clone() for p in searched]
    batch = next(iter(loader.epoch(0)))
    logits = model(batch.dense, batch.sparse)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels) + model.tables.extra_loss()
    gradients = torch.autograd.grad(loss, searched)
    SearchStepper(model, config=settings.train, loader=loader, start=None)()
    for old, new, gradient in zip(before, searched, gradients, strict=True):
        expected = old - 0.01 * gradient / (gradient.abs() + 1e-8)  # Adam's first step
        torch.testing.assert_close(new.detach(), expected)


FREQUENT = {"epochs": 3, "table_lr": 0.05, "num_threads": 1, "checkpoint_every": 4}


class Dies(Reporter):
    """Kills this process at a moment of the run that has a name."""

    def __init__(self, moment: str) -> None:
        self.moment = moment

    def _at(self, moment: str) -> None:
        if moment == self.moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def start(self, phase: str, *, total: int, unit: str, done: int = 0, speed: str = "rows") -> None:
        self.stage = phase.split(", ")[-1]
        self._at(f"start of {self.stage}")

    def advance(self, done: int, *, per_s: float, loss: float | None = None) -> None:
        self._at(f"step {done} of {self.stage}")

    def evaluated(self, record: Mapping[str, Any]) -> None:
        is_start = record["stage"] == "train" and record["step"] == SEARCH_STEPS
        self._at(f"evaluation {'of train ' if is_start else ''}at {record['step']}")

    def note(self, message: str) -> None:
        self._at("end of search")


def _child(raw: dict[str, Any], run: str, resume: bool, moment: str, scores: int | None) -> None:
    from embank.pipelines.config.run import parse_config

    _Halves.dies_after_scores = scores
    Trainer(parse_config(raw), Path(run), reporter=Dies(moment)).train(resume=resume)


def start(raw: dict[str, Any], run: Path, *, resume: bool, moment: str = "", scores: int | None = None) -> Any:
    process = forkserver().Process(target=_child, args=(raw, str(run), resume, moment, scores))
    process.start()
    return process


MOMENTS = [
    *("start of search", "step 3 of search", "step 7 of search", "evaluation at 10", "step 13 of search"),
    *(
        "evaluation at 15",
        "end of search",
        "evaluation of train at 15",
        "start of train",
        "step 1 of train",
        "step 17 of train",
        "evaluation at 45",
    ),
]


@pytest.mark.parametrize("tier", ["device", "disk"])
def test_kill_9_in_every_part_of_a_run(data: Path, tmp_path: Path, tier: str) -> None:
    """Each once, every third moment: `test_a_run_that_is_killed_again_and_again` goes through all of them."""
    sections = {"tables": TABLES, "train": FREQUENT, "rows": {"tier": tier}}
    whole = train(data, tmp_path / "whole", **sections)
    raw = raw_config(data, **sections)
    deaths = [(moment, None) for moment in MOMENTS[1::3]] + [("", 1), ("", 3)]
    for number, (moment, scores) in enumerate(deaths if tier == "device" else deaths[::2]):
        run = tmp_path / f"killed-{number}"
        process = start(raw, run, resume=False, moment=moment, scores=scores)
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, f"{moment or scores}: the run was not killed"
        assert timeless(train(data, run, resume=True, **sections)) == timeless(whole), moment or scores
        assert RunFolder(run).read_metrics() == RunFolder(tmp_path / "whole").read_metrics(), moment or scores


def test_kill_9_at_random_moments(data: Path, tmp_path: Path) -> None:
    raw = raw_config(data, tables=TABLES, train={**FREQUENT, "epochs": 6})
    whole = start(raw, tmp_path / "whole", resume=False)
    while not (tmp_path / "whole" / "config.yaml").is_file():
        time.sleep(0.01)
    begun = time.monotonic()
    whole.join(120)
    lasting = time.monotonic() - begun
    assert whole.exitcode == 0
    moments = random.Random(1)
    expected = RunFolder(tmp_path / "whole")
    for number in range(2):
        run = tmp_path / f"killed-{number}"
        process = start(raw, run, resume=False)
        while not (run / "config.yaml").is_file():
            time.sleep(0.01)
        time.sleep(moments.uniform(0, lasting))
        process.kill()
        process.join(30)
        process = start(raw, run, resume=True)
        process.join(120)
        assert process.exitcode == 0
        assert timeless(RunFolder(run).read_result()) == timeless(expected.read_result())
        assert RunFolder(run).read_metrics() == expected.read_metrics()


def test_a_run_that_is_killed_again_and_again(data: Path, tmp_path: Path) -> None:
    """At every moment."""
    sections = {"tables": TABLES, "train": FREQUENT}
    whole = train(data, tmp_path / "whole", **sections)
    raw = raw_config(data, **sections)
    for number, moment in enumerate(MOMENTS):
        process = start(raw, tmp_path / "run", resume=number > 0, moment=moment)
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, moment
    assert timeless(train(data, tmp_path / "run", resume=True, **sections)) == timeless(whole)
    assert RunFolder(tmp_path / "run").read_metrics() == RunFolder(tmp_path / "whole").read_metrics()


def test_a_signal_while_the_next_stage_is_searched_for(data: Path, tmp_path: Path) -> None:
    class Asks(Reporter):
        def note(self, message: str) -> None:
            told.append(message)
            if len(told) == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    told: list[str] = []

    whole = train(data, tmp_path / "whole", tables=TABLES)
    with pytest.raises(
        InterruptedRunError, match=r"SIGTERM: stopped at the end of stage 1 of 2, search, which is saved"
    ):
        Trainer(config(data, tables=TABLES), tmp_path / "run", reporter=Asks()).train()
    assert told[0] == "stage 1 of 2, search is done; preparing the next stage"
    assert told[1].startswith("SIGTERM: stopping")
    assert inspect_run(tmp_path / "run")["notes"][-1].endswith("the best on validation")
    assert timeless(train(data, tmp_path / "run", resume=True, tables=TABLES)) == timeless(whole)


def test_a_stage_has_at_least_one_step(data: Path, tmp_path: Path) -> None:
    settings = config(data, tables=TABLES, train={"epochs": 1})
    settings = replace(settings, data=replace(settings.data, batch_size=1000))
    result = Trainer(settings, tmp_path / "run").train()
    assert [s["steps"] for s in result["stages"]] == [1, 1]
    assert math.isfinite(result["logloss"])


def test_a_run_may_end_before_the_stage_that_is_served(data: Path, run: Path, tmp_path: Path) -> None:
    path = tmp_path / "search"
    found = Trainer(config(data, tables=TABLES), path, num_stages=1).train()
    folder = RunFolder(path)
    assert (found["stage"], found["step"]) == ("search", SEARCH_STEPS)
    assert not folder.result.exists()
    assert not folder.bundle.exists()
    assert {r["split"] for r in folder.read_metrics()} == {"valid"}  # the test split is not read
    assert Trainer(config(data, tables=TABLES), path, num_stages=1).train(resume=True) == found
    result = Trainer(config(data, tables=TABLES), path).train(resume=True)  # and goes on as if it had not ended
    assert timeless(result) == timeless(RunFolder(run).read_result())
