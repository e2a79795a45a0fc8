"""Sweeps with codecs: every run under every codec, none trained again, what is missing made up later."""

import csv
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embank.pipelines.runs.coded import coded_figures, coded_file, evaluate_codecs
from embank.pipelines.runs.evaluate import figures_of
from embank.pipelines.runs.export import export_run
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.sweep.coding import coded_result
from embank.pipelines.sweep.plan import Plan, codec_names
from embank.pipelines.sweep.sweep import InterruptedSweepError, Sweep
from embank.tables import CheckpointError, ConfigError, WorkError
from tests.told import Told
from tests.training.runs import raw_config, write_data

pytestmark = pytest.mark.slow

METHODS = ["full", "dpq"]


def a_plan(data: Path, **changes: Any) -> Plan:
    settings: dict[str, Any] = {
        "config": raw_config(data, train={"epochs": 1}),
        "models": ["deepfm"],
        "methods": METHODS,
        "budgets": [0.5],
        "seeds": [0, 1],
        "grid": {},
    }
    return Plan(**{**settings, **changes})


def lines(out: Path) -> list[dict[str, str]]:
    with (out / "leaderboard.csv").open() as file:
        return list(csv.DictReader(file))


def times(out: Path, pattern: str) -> dict[str, int]:
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.glob(pattern)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "prepared", single={"user": 500, "item": 7})


@pytest.fixture(scope="module")
def swept(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep without codecs, then with one, then with another."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    Sweep(a_plan(data), out).run()
    before, trained = lines(out), times(out, "runs/**/result.json")
    assert not {"codec", "minus_fp32"} & set(before[0]), "a sweep without codecs has no columns of them"
    assert "codecs" not in (out / "sweep.yaml").read_text()

    told = Told()
    Sweep(a_plan(data, codecs=["fp32", "int4"]), out, reporter=told).run(resume=True)
    assert any(note.startswith("[4/4] deepfm/") and " under int4: evaluated, " in note for note in told.notes), (
        told.notes
    )
    coded = times(out, "runs/**/codecs/int4.json")
    assert len(coded) == 4
    plain = [line for line in lines(out) if line["codec"] == "fp32"]
    timed = {"lookup_us_1", "lookup_rows_per_s_4096"}
    assert [{k: line[k] for k in before[0].keys() - timed} for line in plain] == [
        {k: line[k] for k in line.keys() - timed} for line in before
    ], "lines of methods alone are what they were"

    told = Told()
    Sweep(a_plan(data, codecs=["int2"]), out, reporter=told).run(resume=True)
    assert [note for note in told.notes if "int4" in note] == [], "what is there is not made again"
    assert times(out, "runs/**/codecs/int4.json") == coded
    assert times(out, "runs/**/result.json") == trained
    return out


def test_a_line_for_each_method_and_codec(swept: Path) -> None:
    found = lines(swept)
    assert [(line["method"], line["codec"]) for line in found] == [
        (method, codec) for method in METHODS for codec in ("fp32", "int4", "int2")
    ]
    assert {line["status"] for line in found} == {"complete"}
    assert {line["seeds"] for line in found} == {"0,1"}
    assert not list(swept.glob("**/codecs/bundle*")), "no bundle for each codec"
    assert len(list(swept.glob("runs/**/tables.safetensors"))) == 4
    page = " ".join((swept / "leaderboard.md").read_text().split())
    assert "coded and scored anew and not trained again" in page


@pytest.mark.parametrize(("method", "budget"), [("full", "1"), ("dpq", "0.5")])
def test_a_line_is_what_its_exported_bundles_say(
    swept: Path, data: Path, tmp_path: Path, method: str, budget: str
) -> None:
    """The slow twin: each run exported under the codec, and the bundle scored."""
    aucs, plains, nbytes = [], [], []
    for seed in ("0", "1"):
        run = swept / "runs/deepfm" / method / budget / seed
        bundle = tmp_path / seed
        export_run(run, out=bundle, codec="int2")
        figures = figures_of(bundle, data=data, split="test")
        aucs.append(figures["auc"])
        nbytes.append(figures["serving_bytes"])
        plains.append(json.loads((run / "result.json").read_text()))
        coded, judged = coded_figures(RunFolder(run), "int2"), figures_of(bundle, data=data, split="valid")
        assert coded is not None
        assert coded["valid"] == {key: judged[key] for key in coded["valid"]}
    (line,) = (line for line in lines(swept) if (line["method"], line["codec"]) == (method, "int2"))
    (plain,) = (line for line in lines(swept) if (line["method"], line["codec"]) == (method, "fp32"))
    assert float(line["auc"]) == sum(aucs) / 2
    assert float(line["serving_bytes"]) == sum(nbytes) / 2 < float(plain["serving_bytes"])
    assert float(line["serving_ratio"]) == pytest.approx(nbytes[0] / plains[0]["plain_bytes"])
    changes = [auc - plain["auc"] for auc, plain in zip(aucs, plains, strict=True)]
    assert float(line["minus_fp32"]) == pytest.approx(sum(changes) / 2)
    assert float(line["minus_fp32_sd"]) == pytest.approx(abs(changes[0] - changes[1]) / 2**0.5)
    assert (plain["minus_fp32"], plain["nominal_ratio"]) == ("", "1.0" if method == "full" else plain["nominal_ratio"])
    assert line["nominal_ratio"] == "", "papers don't count codecs"
    assert line["training_bytes"] == plain["training_bytes"]


def test_figures_that_are_damaged_or_of_another_bundle_are_made_again(swept: Path, data: Path) -> None:
    run = RunFolder(swept / "runs/deepfm/full/1/0")
    file, before = coded_file(run, "int2"), coded_figures(run, "int2")
    assert before is not None
    raw = json.loads(file.read_text())
    other = RunFolder(swept / "runs/deepfm/full/1/1")
    for content in ("{", json.dumps({**raw, "serving_bytes": 1}), coded_file(other, "int2").read_text()):
        file.write_text(content)
        assert coded_figures(run, "int2") is None
    evaluate_codecs(run.path, data=data, codecs=["int2"])
    assert coded_figures(run, "int2") == before


def test_an_interrupted_evaluation_is_no_line_and_goes_on(swept: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(swept, out)

    class StopsAfterTheFirst(Told):
        def note(self, message: str) -> None:
            super().note(message)
            if "evaluated" in message:
                os.kill(os.getpid(), signal.SIGTERM)

    before = (out / "leaderboard.csv").read_bytes()
    plan = a_plan(data, codecs=["int8"])
    with pytest.raises(InterruptedSweepError, match="go on with the same command and --resume") as stopped:
        Sweep(plan, out, num_jobs=1, reporter=StopsAfterTheFirst()).run(resume=True)
    assert (out / "leaderboard.csv").read_bytes() == before
    made = times(out, "runs/**/codecs/int8.json")
    assert 1 <= len(made) < 4
    assert "codecs of" in str(stopped.value)
    assert "runs are still to be evaluated" in str(stopped.value)
    told = Told()
    rows = Sweep(plan, out, reporter=told).run(resume=True)
    assert sum("under int8: evaluated" in note for note in told.notes) == 4 - len(made)
    assert times(out, "runs/**/codecs/int8.json").items() >= made.items()
    assert [(row.method, row.status, row.seeds) for row in rows if row.codec == "int8"] == [
        ("full", "complete", "0,1"),
        ("dpq", "complete", "0,1"),
    ]


def test_a_further_seed_without_the_option_keeps_the_lines_of_codecs(swept: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(swept, out)
    shutil.rmtree(out / "runs/deepfm/dpq/0.5/1")
    before = {(line["method"], line["codec"]) for line in lines(out)}
    rows = Sweep(a_plan(data, methods=["dpq"]), out).run(resume=True)
    assert {(row.method, row.codec) for row in rows} == before
    assert {row.seeds for row in rows if row.auc is not None} == {"0,1"}, "the new run is evaluated under them as well"


def test_a_codec_that_refuses_is_no_failure_and_a_bundle_that_is_gone_is_one(data: Path, tmp_path: Path) -> None:
    raw = raw_config(data, tables={"dim": 4, "init_std": 1e6}, train={"epochs": 1})  # beyond fp16
    plan = a_plan(data, config=raw, methods=["full"], seeds=[0], codecs=["int4", "bf16"])
    sweep = Sweep(plan, tmp_path / "out")
    rows = sweep.run()
    sweep.refuse_failures(rows)
    assert [(row.codec, row.status) for row in rows] == [
        ("fp32", "complete"),
        ("int4", "refused"),
        ("bf16", "complete"),
    ]
    assert (rows[1].auc, rows[1].serving_bytes) == (None, None)
    assert "deepfm/full/1/0: table 'user': rows reach " in rows[1].note

    run = RunFolder(tmp_path / "out/runs/deepfm/full/1/0")
    run.bundle.rename(tmp_path / "bundle")
    sweep = Sweep(replace(plan, codecs=["int8"]), tmp_path / "out")
    rows = sweep.run(resume=True)
    status = {row.codec: row.status for row in rows}
    assert status == {"fp32": "complete", "int4": "refused", "bf16": "complete", "int8": "failed"}, (
        "what was there stays"
    )
    assert f"embank export {run.path} --out {run.bundle}" in rows[-1].note
    with pytest.raises(WorkError, match="runs of 1 of 4 lines failed"):
        sweep.refuse_failures(rows)
    (tmp_path / "bundle").rename(run.bundle)
    assert [row.status for row in sweep.run(resume=True)][-1] == "refused"
    with pytest.raises(CheckpointError, match="has no bundle any more"):
        evaluate_codecs(tmp_path, data=data, codecs=["int8"])


def test_wrong_codecs_are_refused(data: Path) -> None:
    for codecs, message in (
        (["int5"], "did you mean 'int"),
        (["auto"], "is chosen for each table of one run, by `embank export RUN --codec auto`"),
    ):
        with pytest.raises(ConfigError, match=message):
            a_plan(data, codecs=codecs)
    with pytest.raises(ConfigError, match=r"'tables.codec' is int4 with method 'full', and --codecs codes the rows"):
        a_plan(data, config=raw_config(data, tables={"codec": "int4"}), codecs=["int8"])
    with pytest.raises(ConfigError, match="--codecs is ' ,'; give names separated by commas"):
        codec_names(" ,")


def test_a_result_under_a_codec() -> None:
    result = {"auc": 0.8, "logloss": 0.4, "valid_auc": 0.7, "plain_bytes": 400, "serving_bytes": 100, "seed": 3}
    figures = {"codec": "int4", "serving_bytes": 20, "valid": {"auc": 0.6, "logloss": 0.5}, "test": {"auc": 0.75}}
    assert coded_result(result, figures) == {
        "auc": 0.75,
        "logloss": 0.4,
        "valid_auc": 0.6,
        "valid_logloss": 0.5,
        "plain_bytes": 400,
        "seed": 3,
        "serving_bytes": 20,
        "serving_ratio": 0.05,
        "nominal_ratio": None,
        "codec": "int4",
    }
