"""Runs exported under codecs."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from embank.compression import unified_specs
from embank.ctr_models import CTRModel
from embank.pipelines.cli.app import app
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs import codecs as codecs_module
from embank.pipelines.runs.codecs import LADDER, choose_codecs
from embank.pipelines.runs.evaluate import evaluate, evaluate_bundle, figures_of
from embank.pipelines.runs.export import export_run
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.inspect import inspect_bundle, inspect_run
from embank.pipelines.runs.open import best_model
from embank.pipelines.search.fields import field_space
from embank.pipelines.train.interrupt import InterruptedRunError
from embank.pipelines.train.trainer import Trainer
from embank.tables import Bundle, CheckpointError, ConfigError, TableCollection, TableSpec, pack_collection
from tests.scripts import script
from tests.training.runs import config, timeless, train
from tests.training.test_resume import StopAt

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    train(data, path, tables={"dim": 16, "overrides": {"user": {"method": "hash", "num_rows": 20}}})
    return path


def codecs_in(bundle: Bundle) -> dict[str, list[str]]:
    return {entry.name: [matrix["codec"] for matrix in entry.served["matrices"]] for entry in bundle.entries}


def test_a_bundle_under_a_codec_scores_as_the_coded_tables_do(run: Path, data: Path, tmp_path: Path) -> None:
    bundle, plain = export_run(run, out=tmp_path / "int4", codec="int4"), Bundle(run / "bundle")
    codecs = codecs_in(bundle)
    assert codecs["user"] == codecs["item"] == ["int4"]
    assert codecs["first_order/item"] == ["fp32"]  # of 7 ids
    assert bundle.facts["codec"] == {"name": "int4"}
    with best_model(RunFolder(run), schema=Schema.load(data), data=data) as (model, _):
        assert isinstance(model.tables, TableCollection)
        coded = pack_collection(model.tables, codec="int4")
        model.tables = coded
        expected = evaluate(model, data, "test")
    found = evaluate_bundle(bundle, data, "test")
    assert found["auc"] == expected["auc"]
    assert found["logloss"] == pytest.approx(expected["logloss"], rel=1e-6)
    assert found["logloss"] != evaluate_bundle(plain, data, "test")["logloss"]
    assert coded.nbytes() == bundle.tables().nbytes() < 0.4 * plain.tables().nbytes()
    (user,) = [t for t in inspect_bundle(bundle.path)["tables"] if t["name"] == "user"]
    assert (user["codecs"], user["serving_bytes"]) == (["int4"], 20 * 8 + 5 * 4 + 8)  # 8 bytes of the hash


def test_auto_takes_what_the_bound_allows(run: Path, data: Path) -> None:
    """Nothing may be lost, a little, all. The rows themselves stay as they are."""
    with best_model(RunFolder(run), schema=Schema.load(data), data=data) as (model, _):
        assert isinstance(model.tables, TableCollection)
        rows = {name: own.clone() for name, own in model.tables.weights().items()}
        nothing, little, everything = (choose_codecs(model, data, max_auc_loss=bound) for bound in (0, 0.01, 1))
        assert isinstance(model.tables, TableCollection)
        found = pack_collection(model.tables, codec=little.codecs)
        before = model.tables
        model.tables = found
        auc = evaluate(model, data, "valid")["auc"]
        model.tables = before
        assert all(torch.equal(own, rows[name]) for name, own in before.weights().items())
    assert set(everything.codecs.values()) == {LADDER[-1]}
    assert auc == little.valid_auc >= little.fp32_auc - 0.01
    assert nothing.valid_auc >= nothing.fp32_auc == little.fp32_auc
    assert everything.nbytes <= little.nbytes == found.nbytes() <= nothing.nbytes <= nothing.fp32_nbytes
    assert little.num_evaluations <= 1 + 3 * len(little.codecs)


def test_tables_that_read_the_same_rows_get_one_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared rows are held once for each codec that their tables have: two codecs would take more than either."""
    names = ("user", "item", "query", "geo")
    specs = unified_specs(
        rows=20_000, width=8, lookups=dict.fromkeys(names, 2), num_embeddings=dict.fromkeys(names, 50)
    )
    alone = TableSpec(name="alone", num_embeddings=20_000, embedding_dim=8, feature_names=["alone"])
    tables = TableCollection([*specs, alone])
    model = CTRModel(tables, torch.nn.Identity())
    lost = dict(zip(LADDER, (0, 0.00001, 0.00002, 0.0001, 0.0003, 0.0006, 0.002), strict=True))

    def auc(self: Any, codecs: dict[str, str]) -> float:
        """In place of validation: what a table loses is known."""
        return 0.8 - sum(lost[codec] for codec in codecs.values())

    monkeypatch.setattr(codecs_module._Search, "auc", auc)
    chosen = choose_codecs(model, Path("unread"), max_auc_loss=0.0005)
    assert len({chosen.codecs[name] for name in names}) == 1
    assert chosen.nbytes == pack_collection(tables, codec=chosen.codecs).nbytes()
    assert chosen.nbytes <= pack_collection(tables, codec="int6").nbytes() < chosen.fp32_nbytes / 4


def test_the_command_line_exports_and_tells_what_was_chosen(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "auto"
    arguments = ["export", str(run), "--out", str(out), "--codec", "auto", "--max-auc-loss", "1"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "user int2" in lines
    facts = Bundle(out).facts["codec"]
    assert facts["name"] == "auto"
    assert f"AUC on validation {facts['valid_auc']:.5f}, {facts['valid_auc_fp32']:.5f} without" in done.stdout.replace(
        "\n", " "
    )
    assert facts["serving_bytes"] == Bundle(out).tables().nbytes() < facts["serving_bytes_fp32"]


@pytest.mark.parametrize(
    ("codec", "bound", "told"),
    [
        ("int5", 0.1, "there is no codec 'int5'; did you mean"),
        ("product", 0.1, "codec 'product' is made while its method trains"),
        ("binary32", 0.1, "codec 'binary32' has number 32; that of 'binary' is at most 16"),
        ("auto", -0.1, "the largest loss of AUC is -0.1; it must be 0 or more"),
        ("int4", 0.1, "is for codec 'auto', which chooses by it, and the codec is 'int4'; leave it out"),
        ("auto", float("nan"), "the largest loss of AUC is nan"),
    ],
)
def test_what_can_not_be_exported_is_refused(run: Path, tmp_path: Path, codec: str, bound: float, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        export_run(run, out=tmp_path / "none", codec=codec, max_auc_loss=bound)
    assert told in str(refused.value)
    assert not (tmp_path / "none").exists()


def test_an_export_under_a_codec_is_never_written_over_another(run: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(CheckpointError, match="exists"):
        export_run(run, out=tmp_path / "taken", codec="int8")


def test_the_benchmark_has_a_line_for_each_codec(run: Path, data: Path) -> None:
    fp32, int4 = script("codecs").lines(run, data, ["fp32", "int4"])
    assert fp32 == ("`fp32`", "1.000", "0.000", "1.0000", "1.000", "1.000", "+0")
    assert (int4[0], float(int4[1]) < 0.16, 0 < float(int4[2]) < 0.2) == ("`int4`", True, True)


@pytest.fixture(scope="module")
def coded_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "coded"
    tables = {
        "dim": 16,
        "method": "hash",
        "budget": 0.1,
        "codec": "int4",
        "overrides": {"item": {"method": "full", "codec": "int8"}},
    }
    train(data, path, tables=tables)
    return path


def test_a_run_is_served_and_judged_under_the_codec_of_its_configuration(
    coded_run: Path, data: Path, tmp_path: Path
) -> None:
    """Its budget counts coded bytes; a feature may have its own codec."""
    result, bundle = RunFolder(coded_run).read_result(), Bundle(coded_run / "bundle")
    assert result["codec"] == "int4"
    assert result["serving_bytes"] == bundle.tables().nbytes() == inspect_run(coded_run)["total"]["serving_bytes"]
    codecs = codecs_in(bundle)
    assert codecs["user"] == ["int4"]
    assert codecs["item"] == ["int8"]
    default = [t for t in inspect_bundle(bundle.path)["tables"] if "item" not in t["name"]]
    assert sum(t["serving_bytes"] for t in default) <= 0.1 * sum(t["plain_bytes"] for t in default)
    (user,) = [table for table in bundle.tables().packed_tables() if table[0].name == "user"]
    assert user[1].coded[0].codes.numel() // 8 > 0.15 * 50, "more rows than a tenth of the ids"
    of_run, of_bundle = (figures_of(path, data=data, split="test") for path in (coded_run, bundle.path))
    assert of_run["auc"] == of_bundle["auc"] == result["auc"]
    assert of_run["serving_bytes"] == result["serving_bytes"]
    export_run(coded_run, out=tmp_path / "copy")
    assert Bundle(tmp_path / "copy").checksum == bundle.checksum
    export_run(coded_run, out=tmp_path / "fp32", codec="fp32")
    assert {codec for own in codecs_in(Bundle(tmp_path / "fp32")).values() for codec in own} == {"fp32"}


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ({"codec": "int44"}, "tables.codec: there is no codec 'int44'"),
        ({"codec": "binary32"}, "tables.codec: codec 'binary32' has number 32; that of 'binary' is at most 16"),
        ({"codec": "stepped"}, "tables.codec: codec 'stepped' is made while its method trains"),
        ({"codec": "dedup", "method": "hash", "budget": 0.5}, "'tables' has codec 'dedup' and a budget"),
        ({"overrides": {"user": {"codec": "in4"}}}, "tables.overrides.user.codec: there is no codec 'in4'"),
        ({"codec": 4}, "tables.codec"),
    ],
)
def test_a_codec_that_can_not_be_is_refused_by_its_key(data: Path, tables: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config(data, tables=tables)
    assert told in str(refused.value)


def test_runs_are_fp32_unless_told(run: Path) -> None:
    assert RunFolder(run).read_result()["codec"] == "fp32"


def test_a_search_that_counts_fp32_rows_refuses_a_codec(data: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"have codec 'int4', and this search counts bytes of fp32 rows; leave 'codec' out"
    ):
        field_space(config(data, tables={"overrides": {"item": {"codec": "int4"}}}))


def test_a_run_through_a_codec_is_judged_and_served_under_it(data: Path, run: Path, tmp_path: Path) -> None:
    """It begins with what the plain codec gives, keeps the best of validation, and resumes to the same end."""
    tables = {"dim": 16, "overrides": {"user": {"method": "hash", "num_rows": 20}}}
    sections = {"tables": tables, "train": {"epochs": 2, "straight_through": "int2", "table_lr": 0.2}}
    through = tmp_path / "through"
    result = Trainer(config(data, **sections), through).train(begin_with=run)
    plain = evaluate_bundle(export_run(run, out=tmp_path / "plain", codec="int2"), data, "valid")
    judged = [record for record in RunFolder(through).read_metrics() if record["split"] == "valid"]
    assert [record["step"] for record in judged] == [0, 10, 20]
    assert judged[0]["auc"] == plain["auc"], "it begins where the codec after training ends"
    assert result["valid_auc"] == max(record["auc"] for record in judged)
    bundle = Bundle(through / "bundle")
    assert codecs_in(bundle)["user"] == codecs_in(bundle)["item"] == ["int2"]
    assert (result["codec"], result["serving_bytes"]) == ("int2", Bundle(tmp_path / "plain").tables().nbytes())
    assert figures_of(bundle.path, data=data, split="valid")["auc"] == pytest.approx(result["valid_auc"], abs=1e-6)
    assert figures_of(through, data=data, split="test")["auc"] == pytest.approx(result["auc"], abs=1e-6)

    stopped = tmp_path / "stopped"
    with pytest.raises(InterruptedRunError):
        Trainer(config(data, **sections), stopped, reporter=StopAt(7, signal.SIGTERM)).train(begin_with=run)
    again = Trainer(config(data, **sections), stopped).train(resume=True)
    assert timeless(again) == timeless(result)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"straight_through": "int22"}, "train.straight_through: there is no codec 'int22'; did you mean 'int2'"),
        ({"straight_through": "fp32"}, "train.straight_through is 'fp32': it must be a codec of rows"),
        ({"straight_through": "stepped"}, "train.straight_through: codec 'stepped' is made while its method trains"),
    ],
)
def test_codecs_that_no_run_goes_through(data: Path, train: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(data, train=train)
