"""The bundle of a run: the same figures as the run's, without its data, and only from its data."""

import errno
import json
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from embank.ctr_models import MODELS
from embank.pipelines.cli.saved import evaluate as evaluate_command
from embank.pipelines.config.run import load_config
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.schema import VOCAB_FOLDER, Schema
from embank.pipelines.diagnosis.diagnose import diagnose_run
from embank.pipelines.runs import open as opening
from embank.pipelines.runs.evaluate import evaluate_saved
from embank.pipelines.runs.export import export_run
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.inspect import inspect_run, inspect_saved
from embank.pipelines.runs.open import best_model
from embank.pipelines.train.interrupt import InterruptedRunError
from embank.pipelines.train.trainer import Trainer
from embank.tables import Bundle, CheckpointError, ConfigError, DataError, load_bundle, save_bundle
from embank.tables.serving.bundle import folder_nbytes
from tests.tables.bundles import flip, plain
from tests.training.runs import config, model_of, timeless, train, write_data
from tests.training.test_resume import StopAt

pytestmark = pytest.mark.slow


METRICS = ("auc", "logloss", "calibration", "gauc", "num_rows")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    train(data, path, tables={"overrides": {"user": {"method": "hash", "num_rows": 20}}})
    return path


@pytest.fixture
def shipped(run: Path, tmp_path: Path) -> Path:
    export_run(run, out=tmp_path / "shipped")
    return tmp_path / "shipped"


def test_a_run_ends_with_its_bundle(run: Path, data: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    figures = evaluate_saved(run / "bundle", data=data, split="test")
    assert {name: result[name] for name in METRICS} == {name: figures[name] for name in METRICS}  # to the bit
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    (told,) = (line for line in lines if line["split"] == "test")
    assert {name: result[name] for name in METRICS} == {name: told[name] for name in METRICS}
    bundle = Bundle(run / "bundle")
    assert result["bundle_bytes"] == bundle.nbytes == folder_nbytes(run / "bundle")
    assert load_bundle(run / "bundle").nbytes() == result["serving_bytes"] < result["bundle_bytes"]
    assert bundle.facts["step"] == result["best_step"]
    assert bundle.facts["schema"]["fingerprint"] == RunFolder(run).fingerprint
    assert not {"path", "prefetch"} & set(bundle.facts["config"]["data"])  # what belongs to this machine


@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluating_a_bundle_gives_the_figures_of_the_run(shipped: Path, run: Path, data: Path, split: str) -> None:
    ours, theirs = (evaluate_saved(path, data=data, split=split) for path in (shipped, run))
    for key in ("auc", "logloss", "gauc"):
        assert theirs[key] is not None
        assert ours[key] == pytest.approx(theirs[key], abs=1e-6)
    assert ours["serving_bytes"] == theirs["serving_bytes"]
    assert ours["step"] == theirs["step"]
    beside = shipped.with_name("shipped.evaluations.jsonl")
    assert json.loads(beside.read_text().splitlines()[-1]) == ours
    assert json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1]) == theirs
    assert inspect_saved(shipped)["total"]["serving_bytes"] == ours["serving_bytes"]  # nothing in it has changed


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_scores_the_same(data: Path, tmp_path: Path, name: str) -> None:
    train(data, tmp_path / "run", model={"name": name}, train={"epochs": 1})
    model = model_of(Bundle(tmp_path / "run" / "bundle"))
    with best_model(RunFolder(tmp_path / "run"), schema=Schema.load(data), data=data) as (trained, _), torch.no_grad():
        trained.eval()
        for batch in Loader(data, "test", batch_size=50, shuffle=False).epoch(0):
            expected = trained(batch.dense, batch.sparse)
            torch.testing.assert_close(model(batch.dense, batch.sparse), expected, rtol=1e-5, atol=1e-6)


def test_training_data_is_not_needed(shipped: Path, run: Path, data: Path, tmp_path: Path) -> None:
    """Neither the training part nor the vocabularies: the schema and the split that is scored are enough."""
    shutil.copytree(data, tmp_path / "bare")
    for folder in ("train", "valid", VOCAB_FOLDER):
        shutil.rmtree(tmp_path / "bare" / folder)
    values = evaluate_saved(shipped, data=tmp_path / "bare", split="test")
    assert values["auc"] == pytest.approx(json.loads((run / "result.json").read_text())["auc"], abs=1e-6)
    with pytest.raises(DataError):
        evaluate_saved(run, data=tmp_path / "bare", split="test")


def test_other_vocabularies_are_refused(shipped: Path, tmp_path: Path) -> None:
    other = write_data(tmp_path / "other", single={"user": 51, "item": 7})
    with pytest.raises(ConfigError, match=r"has other vocabularies .* than the data '.*shipped' was trained on"):
        evaluate_saved(shipped, data=other, split="test")
    assert not shipped.with_name("shipped.evaluations.jsonl").exists()


def test_bundles_that_can_not_be_scored(shipped: Path, data: Path, tmp_path: Path) -> None:
    save_bundle(tmp_path / "tables", plain())
    with pytest.raises(ConfigError, match="has tables but no network"):
        evaluate_saved(tmp_path / "tables", data=data, split="test")
    save_bundle(tmp_path / "foreign", plain(), network={"w": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"the network of bundle '.*foreign' can't be built: 'inputs'"):
        evaluate_saved(tmp_path / "foreign", data=data, split="test")
    flip(shipped / "network.safetensors")
    for use in (lambda: evaluate_saved(shipped, data=data, split="test"), lambda: inspect_saved(shipped)):
        with pytest.raises(CheckpointError, match="network.safetensors' has been altered"):
            use()
    with pytest.raises(CheckpointError, match="holds no run and no bundle; give what `embank train --out` or"):
        evaluate_saved(tmp_path, data=data, split="test")


def test_paths_may_be_text(run: Path, data: Path, tmp_path: Path) -> None:
    bundle = export_run(str(run), out=f"{tmp_path}/shipped")
    assert inspect_saved(str(run), data=str(data))["total"] == inspect_run(run)["total"]
    assert inspect_saved(f"{tmp_path}/shipped")["tables"]
    figures = [evaluate_saved(str(path), data=str(data), split="valid")["auc"] for path in (run, bundle.path)]
    assert figures[0] == pytest.approx(figures[1], abs=1e-6)
    assert diagnose_run(str(run), data=str(data), out=f"{tmp_path}/diagnosis").files
    assert load_config(str(run / "config.yaml")) == load_config(run / "config.yaml")


def test_figures_that_can_not_be_recorded(
    shipped: Path, data: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are as good as others, so they are printed, and the exit code is 0."""
    shipped.with_name("shipped.evaluations.jsonl").mkdir()
    assert evaluate_saved(str(shipped), data=str(data), split="test")["auc"] > 0
    assert "the evaluation is not recorded: '" in caplog.text
    assert "shipped.evaluations.jsonl' can't be written (Is a directory)" in caplog.text
    evaluate_command(shipped, data=data)
    assert "auc" in (printed := capsys.readouterr().out)
    assert "written to" not in printed


def test_rows_on_disk_of_a_run_that_is_read_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = tempfile.TemporaryDirectory

    def refuse(prefix: str, dir: Path | None = None) -> tempfile.TemporaryDirectory[str]:
        if dir == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied", str(dir))
        return made(prefix=prefix, dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    with opening._rows_folder(tmp_path) as folder:
        assert Path(folder).parent == Path(tempfile.gettempdir())


def test_inspection(shipped: Path, run: Path) -> None:
    values, of_run = inspect_saved(shipped), inspect_saved(run)
    tables, of_run_tables = ({t["name"]: t for t in v["tables"]} for v in (values, of_run))
    assert list(tables) == list(of_run_tables)
    for name, table in tables.items():
        for key in ("method", "num_embeddings", "dim", "serving_bytes", "plain_bytes"):
            assert table[key] == of_run_tables[name][key]
    assert tables["user"]["rows"] == "rows 20 x 4 float32 + salt 1 int64"
    assert values["total"]["serving_bytes"] == of_run["total"]["serving_bytes"]
    assert values["network_bytes"] == of_run["network_bytes"]
    assert "all checksums match" in values["notes"][0]
    assert "bundle: all checksums match" in of_run["notes"]
    with pytest.raises(ConfigError, match="is a bundle, which is inspected without data; leave out --data"):
        inspect_saved(shipped, data=run)


def test_inspecting_a_run_verifies_its_bundle(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    flip(tmp_path / "run" / "bundle" / "tables.safetensors")
    with pytest.raises(CheckpointError, match="bundle/tables.safetensors' has been altered"):
        inspect_run(tmp_path / "run")


def test_exporting_a_complete_run_copies_its_bundle(run: Path, shipped: Path, tmp_path: Path) -> None:
    for file in (run / "bundle").iterdir():
        assert file.read_bytes() == (shipped / file.name).read_bytes()
    with pytest.raises(CheckpointError, match="exists already"):
        export_run(run, out=shipped)
    with pytest.raises(CheckpointError, match="holds no run"):
        export_run(shipped, out=tmp_path / "again")


def test_exporting_packs_the_best_checkpoint(run: Path, shipped: Path, tmp_path: Path) -> None:
    """What a run without a bundle (of an earlier version) gives is what the run itself would have written."""
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "bundle")
    export_run(tmp_path / "run", out=tmp_path / "packed")
    for file in shipped.iterdir():
        assert file.read_bytes() == (tmp_path / "packed" / file.name).read_bytes()


def test_a_run_with_a_damaged_bundle_says_how_to_export_it(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    flip(tmp_path / "run" / "bundle" / "tables.safetensors")
    with pytest.raises(
        CheckpointError, match=r"has been altered: .* Without '.*bundle' the checkpoint is packed: remove that folder"
    ):
        export_run(tmp_path / "run", out=tmp_path / "packed")
    shutil.rmtree(tmp_path / "run" / "bundle")
    export_run(tmp_path / "run", out=tmp_path / "packed")


def test_exporting_an_unfinished_run(data: Path, tmp_path: Path) -> None:
    for stop, step in ((4, 4), (14, 10)):  # before the first evaluation the last checkpoint, then the best one
        run = tmp_path / f"stopped-{stop}"
        with pytest.raises(InterruptedRunError):
            Trainer(config(data), run, reporter=StopAt(stop, signal.SIGTERM)).train()
        assert export_run(run, out=tmp_path / f"bundle-{stop}").facts["step"] == step
    other = write_data(tmp_path / "other", single={"user": 51, "item": 7})
    with pytest.raises(ConfigError, match="has other vocabularies"):
        export_run(run, out=tmp_path / "b", data=other)
    with pytest.raises(DataError, match="say where they are with --data"):
        export_run(run, out=tmp_path / "b", data=tmp_path / "gone")


def test_a_crash_while_the_run_finishes(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the bundle and before the result; half a bundle of another process lies about as well."""
    whole = train(data, tmp_path / "whole")

    def crash(*_: Any) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_result", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            train(data, tmp_path / "run")
    run = tmp_path / "run"
    assert Bundle(run / "bundle")
    assert not (run / "result.json").exists()
    (run / ".bundle.tmp-1").mkdir()
    shutil.copytree(run / "bundle", run / ".bundle.removed")
    (run / "bundle" / "manifest.json").write_text("{}")  # whatever it holds, it is written anew
    assert timeless(train(data, run, resume=True)) == timeless(whole)
    for file in (run / "bundle").iterdir():
        assert file.read_bytes() == (tmp_path / "whole" / "bundle" / file.name).read_bytes()
    assert not list(run.glob(".bundle*"))


def test_a_run_is_not_started_in_a_bundle(shipped: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        train(data, shipped)
    assert Bundle(shipped)
