"""Training, evaluation and inspection of small runs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from embank.ctr_models import MODELS
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.prepare.prepare import prepare
from embank.pipelines.data.schema import NO_GROUP, Schema
from embank.pipelines.reporting import Reporter
from embank.pipelines.runs.evaluate import evaluate, evaluate_saved
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.inspect import inspect_run
from embank.pipelines.runs.open import best_model
from embank.pipelines.runs.progress import Progress
from embank.pipelines.sweep.comparison import validation
from embank.pipelines.train.schedule import lr_factor
from embank.pipelines.train.step import NonFiniteLossError
from embank.pipelines.train.trainer import Trainer
from embank.tables import CheckpointError, ConfigError, DataError
from tests.data.prepared import edit_part
from tests.training.runs import config, train, write_data

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def signal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough rows to tell a model that has learned from one that has not."""
    rows = {"train": 3000, "valid": 500, "test": 1000}
    return write_data(tmp_path_factory.mktemp("signal") / "prepared", rows=rows, row_group_rows=512)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_learns(signal: Path, tmp_path: Path, name: str) -> None:
    settings = {"epochs": 6, "table_lr": 0.1, "lr": 0.01}
    result = train(signal, tmp_path / "run", model={"name": name}, train=settings)
    assert result["auc"] > 0.8
    assert result["gauc"] > 0.68, "ranks within users as well, which a model of users alone can't"
    assert result["logloss"] < 0.55
    with best_model(RunFolder(tmp_path / "run"), schema=Schema.load(signal), data=signal) as (model, _):
        for parameter in model.network.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        for rows in model.tables.weights().values():
            rows.normal_(std=0.05)
        assert evaluate(model, signal, "test")["auc"] < 0.6, "and what has learned nothing fails"


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    train(data, path, tables={"overrides": {"user": {"method": "hash", "num_rows": 20}}})
    return path


def test_what_a_run_leaves_behind(run: Path) -> None:
    names = {str(p.relative_to(run)) for p in run.rglob("*")}
    assert {"config.yaml", "environment.json", "metrics.jsonl", "result.json", "plots/learning_curves.png"} <= names
    records = RunFolder(run).read_metrics()
    assert [r["split"] for r in records] == ["valid"] * 3 + ["test"]
    result = json.loads((run / "result.json").read_text())
    wanted = {"auc", "logloss", "serving_bytes", "training_bytes", "samples_per_s", "seed", "method", "budget", "gauc"}
    assert wanted <= set(result)
    assert result["auc"] == records[-1]["auc"]
    best = max(records[:-1], key=lambda record: record["auc"])
    assert result["best_step"] == best["step"] == records[-1]["step"]
    assert result["best_epoch"] == best["epoch"] == records[-1]["epoch"]
    least = min(records[:-1], key=lambda record: record["logloss"])
    assert result["least_valid_logloss"] == {
        key: least[key] for key in ("step", "epoch", "logloss", "auc", "gauc") if least[key] is not None
    }
    assert result["valid_logloss"] == best["logloss"]


def test_metrics_equal_scikit_learn(run: Path, data: Path) -> None:
    with best_model(RunFolder(run), schema=Schema.load(data), data=data) as (model, _):
        model.eval()
        loader = Loader(data, "test", batch_size=7, shuffle=False)
        with torch.no_grad():
            pairs = [(model(b.dense, b.sparse), b.labels) for b in loader.epoch(0)]
    logits, labels = (torch.cat(column).double().numpy() for column in zip(*pairs, strict=True))
    values = evaluate_saved(run, data=data, split="test")
    assert values["auc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-6)
    assert values["logloss"] == pytest.approx(log_loss(labels, 1 / (1 + np.exp(-logits))), abs=1e-6)
    assert values["auc"] == json.loads((run / "result.json").read_text())["auc"]


def test_inspection_adds_up(run: Path) -> None:
    values = inspect_run(run)
    tables = {t["name"]: t for t in values["tables"]}
    assert tables["user"]["serving_bytes"] == 20 * 4 * 4 + 8
    assert tables["item"]["plain_bytes"] == 7 * 4 * 4
    assert values["total"]["serving_bytes"] == json.loads((run / "result.json").read_text())["serving_bytes"]
    file = next(RunFolder(run).checkpoints.rglob("dense.pt"))
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"x")
    try:
        with pytest.raises(CheckpointError, match="altered"):
            inspect_run(run)
    finally:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match="holds no run"):
        inspect_run(run / "plots")


def test_evaluation_on_other_vocabularies_is_refused(run: Path, tmp_path: Path) -> None:
    other = write_data(tmp_path / "other", single={"user": 51, "item": 7})
    with pytest.raises(ConfigError, match="has other vocabularies"):
        evaluate_saved(run, data=other, split="test")


def test_early_stopping_keeps_the_best(data: Path, tmp_path: Path) -> None:
    result = train(data, tmp_path / "run", train={"epochs": 50, "patience": 2, "lr": 0.01})
    records = [r for r in RunFolder(tmp_path / "run").read_metrics() if r["split"] == "valid"]
    assert len(records) < 50
    values = [r["auc"] for r in records]
    assert values.index(max(values)) == len(values) - 3
    assert result["valid_auc"] == max(values)
    assert len(RunFolder(tmp_path / "run").saved()) == 2


def record(step: int, **figures: float | None) -> dict[str, Any]:
    return {"step": step, "epoch": step // 10, "auc": 0.5, "logloss": 0.7, "auc_undefined": "", **figures}


def judged(*records: dict[str, Any], monitor: str = "auc", patience: int | None = None) -> Progress:
    progress = Progress()
    for entry in records:
        progress.step = entry["step"]
        progress.judge(entry, monitor=monitor, patience=patience, only_end=False)
    return progress


def test_the_speed_of_a_training_of_few_steps_is_that_of_all_of_them() -> None:
    progress = Progress()
    assert progress.samples_per_s == 0
    progress.begin_stage("train")
    progress.book(100, seconds=2.0, waited=0.1, is_warm=False)
    assert progress.samples_per_s == 50
    progress.book(100, seconds=1.0, waited=0.1, is_warm=True)
    assert progress.samples_per_s == 100


def test_a_choice_that_costs_log_loss_is_told() -> None:
    early, late = record(10, auc=0.70, logloss=0.29), record(30, auc=0.71, logloss=0.63)
    progress = judged(early, record(20, auc=0.69, logloss=0.4), late)
    assert (progress.best_step, progress.chosen.epoch, progress.least_loss.step) == (30, 3, 10)
    assert "step 30, chosen by AUC on validation (0.7100), has a log loss of 0.6300 there" in progress.loss_note
    assert "that of step 10 had 0.2900 at AUC 0.7000" in progress.loss_note
    again = Progress.from_json(json.loads(json.dumps(asdict(progress))))
    assert again == progress
    assert judged(early, late, monitor="logloss").loss_note is None
    assert judged(record(10, auc=0.7, logloss=0.3), record(20, auc=0.71, logloss=0.301)).loss_note is None


def test_the_log_loss_is_told_at_the_end_of_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AUC rises and log loss with it: the last checkpoint is taken, and the note has both."""
    notes: list[str] = []

    class Listens(Reporter):
        def note(self, message: str) -> None:
            notes.append(message)

    def worse(model: Any, path: Any, split: str, **_: Any) -> dict[str, Any]:
        number = len(list((tmp_path / "run" / "checkpoints").iterdir()))
        return {"auc": 0.6 + number / 10, "logloss": 0.3 + number / 10}

    monkeypatch.setattr("embank.pipelines.train.checkpoints.evaluate", worse)
    result = Trainer(config(data, train={"epochs": 2}), tmp_path / "run", reporter=Listens()).train()
    assert result["least_valid_logloss"]["logloss"] == pytest.approx(0.3)
    assert result["valid_logloss"] == pytest.approx(0.4)
    assert "has a log loss of 0.4000 there; that of step 10 had 0.3000 at AUC 0.6000" in notes[-1]


@pytest.mark.parametrize(
    ("settings", "aucs", "is_told"),
    [
        ({"epochs": 1}, [0.6], True),
        ({"epochs": 2, "decay": "plateau"}, [0.6, 0.7], True),
        ({"epochs": 2}, [0.7, 0.6], False),
        ({"epochs": 2, "decay": "cosine"}, [0.6, 0.7], False),
    ],
)
def test_a_training_that_ends_while_it_improves_is_told(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    aucs: list[float],
    is_told: bool,
) -> None:
    notes: list[str] = []

    class Listens(Reporter):
        def note(self, message: str) -> None:
            notes.append(message)

    values = iter(aucs)
    scores = "embank.pipelines.train.checkpoints.evaluate"
    monkeypatch.setattr(scores, lambda *_, **__: {"auc": next(values), "logloss": 0.5})
    Trainer(config(data, train=settings), tmp_path / "run", reporter=Listens()).train()
    told = [note for note in notes if "the last evaluation was the best one" in note]
    assert len(told) == is_told
    if is_told:
        count = "1 epoch may" if settings["epochs"] == 1 else "2 epochs may"
        assert f"more than {count} do better: with train.decay=plateau and train.patience=2" in told[0]


def test_the_monitor_may_be_group_auc(data: Path, tmp_path: Path) -> None:
    first, second = record(10, auc=0.8, gauc=0.6), record(20, auc=0.7, gauc=0.7)
    progress = judged(first, second, monitor="gauc")
    assert (progress.best_step, progress.best_value, progress.monitor) == (20, 0.7, "gauc")
    assert judged(record(10, gauc=None, gauc_undefined="none"), monitor="gauc").monitor == "logloss"
    ungrouped = write_data(tmp_path / "data", group=False)
    with pytest.raises(ConfigError, match="'train.monitor' is 'gauc', but .* has no group key"):
        train(ungrouped, tmp_path / "run", train={"monitor": "gauc"})
    assert not (tmp_path / "run").exists()
    assert validation({"monitor": "gauc", "valid_gauc": 0.7, "valid_auc": 0.5, "valid_logloss": 0.6}) == 0.7
    assert validation({"monitor": "logloss", "valid_auc": 0.5, "valid_logloss": 0.6}) == -0.6


def test_evaluation_every_few_steps(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "run", train={"epochs": 1, "eval_every": 4})
    assert [r["step"] for r in RunFolder(tmp_path / "run").read_metrics()][:-1] == [4, 8, 10]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_backends_reach_the_same_result(data: Path, tmp_path: Path, precision: str) -> None:
    results = [
        train(data, tmp_path / b, rows={"backend": b}, train={"epochs": 2, "precision": precision})
        for b in ("fbgemm", "torch")
    ]
    assert results[0]["auc"] == pytest.approx(results[1]["auc"], abs=2e-3)
    assert results[0]["logloss"] == pytest.approx(results[1]["logloss"], abs=2e-4)


def test_rows_without_a_group_key_are_in_no_group(tmp_path: Path) -> None:
    """Two users of opposite taste and many rows of nobody: in one big group these would have an AUC of their own."""
    rows = [(user, item, int(user == item)) for user in ("a", "b") for item in ("a", "b")] * 20
    rows += [("", item, int(item == "a")) for item in ("a", "b")] * 50
    log = "user,item,click,split\n" + "".join(
        f"{user},{item},{click},{split}\n" for split in ("train", "valid", "test") for user, item, click in rows
    )
    (tmp_path / "log.csv").write_text(log)
    columns = {
        "label": {"column": "click"},
        "categorical": ["user", "item"],
        "group": "user",
        "split": {"by": "column", "column": "split"},
    }
    prepare(columns, [tmp_path / "log.csv"], tmp_path / "data")
    batches = Loader(tmp_path / "data", "test", batch_size=7, shuffle=False).epoch(0)
    assert sum(int((batch.groups == NO_GROUP).sum()) for batch in batches) == 100
    result = train(tmp_path / "data", tmp_path / "run", train={"epochs": 1})
    evaluated = evaluate_saved(tmp_path / "run", data=tmp_path / "data", split="test")
    for values in (result, evaluated):
        assert (values["gauc_groups"], values["gauc_total_groups"]) == (2, 2)
        assert (values["gauc_rows"], values["gauc_rows_without_group"], values["num_rows"]) == (80, 100, 180)


def test_a_missing_class_is_said_and_training_goes_on(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    for name in ("valid", "test"):
        for part in (data / name).iterdir():
            zeros = lambda t: t.set_column(
                t.schema.get_field_index("label"), "label", pa.array([0] * t.num_rows, pa.int8())
            )
            edit_part(part, zeros)
    result = train(data, tmp_path / "run", train={"epochs": 1})
    assert result["auc"] is None
    assert "no positive example" in result["auc_undefined"]
    assert 0 < result["valid_logloss"] < 2
    assert "valid_auc" not in result


def test_non_finite_loss_names_step_batch_and_table(data: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match=r"the loss is \S+ in step \d+ \(epoch 0, batch \d+\): .*table '\S+"):
        train(data, tmp_path / "run", train={"table_optimizer": "sgd", "table_lr": 1e38})


def test_nan_in_a_numeric_column(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    part = sorted((data / "train").iterdir())[0]
    table = pq.read_table(part)
    ages = table["age"].to_numpy().copy()
    ages[5] = np.nan
    edit_part(part, lambda t: t.set_column(t.schema.get_field_index("age"), "age", pa.array(ages, pa.float32())))
    with pytest.raises(DataError, match="age"):
        train(data, tmp_path / "run")


def test_ids_out_of_range_of_the_vocabulary(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    part = sorted((data / "train").iterdir())[0]
    edit_part(
        part, lambda t: t.set_column(t.schema.get_field_index("user"), "user", pa.array([50] * t.num_rows, pa.int32()))
    )
    with pytest.raises(DataError, match=r"user.*50|50.*user"):
        train(data, tmp_path / "run")


def test_missing_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        train(tmp_path / "nothing", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_empty_validation_split(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", rows={"train": 100, "valid": 0, "test": 10})
    with pytest.raises(DataError, match="has no rows in its valid split"):
        train(data, tmp_path / "run")


def test_learning_rate_schedule() -> None:
    def factors(decay: str) -> list[float]:
        return [round(lr_factor(s, num_steps=10, warmup_steps=2, decay=decay), 4) for s in (0, 1, 2, 6, 10)]

    assert factors("none") == [0.5, 1, 1, 1, 1]
    assert factors("linear") == [0.5, 1, 1, 0.5, 0]
    assert factors("cosine") == [0.5, 1, 1, 0.5, 0]
    plateaus = [lr_factor(9, num_steps=10, warmup_steps=2, decay="plateau", num_plateaus=n) for n in (0, 1, 2)]
    assert plateaus == pytest.approx([1, 0.1, 0.01])
