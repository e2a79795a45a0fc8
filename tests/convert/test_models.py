"""Targets of whole models: ONNX and AOTInductor, from ids and numbers to scores."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from embank.ctr_models import MODELS
from embank.pipelines import convert_bundle
from embank.pipelines.convert.cases import IDS, LENGTHS, Original, generated
from embank.pipelines.convert.whole import Whole
from embank.tables import Bundle, ConfigError, TableCollection, TableSpec, pack_collection, save_bundle
from tests.compression.codecs import NAMES as CODECS
from tests.compression.codecs import random_rows
from tests.convert.bundles import HASHED, ONE_EACH, bundle_of_forms, lines_of, trained_bundle

CASES = {
    "one row",
    "two rows",
    "many rows",
    "last ids",
    "unseen ids",
    "equal rows",
    "empty bags",
    "one row of empty bags",
}
LIBRARY = {"onnx": "onnxruntime", "pt2": "torch"}


def reader_of(out: Path) -> dict[str, Any]:
    """The script of at most 20 lines that lies beside what was written, run here."""
    script = (out / "read.py").read_text()
    assert lines_of(script) <= 20
    names: dict[str, Any] = {}
    exec(script, names)
    return names


def checked(report: Any, target: str, *, gives: str) -> None:
    """A second process without embank has answered every case as the bundle does."""
    assert (report["target" if "target" in report else "format"]) == f"embank {target}"
    assert report["compared"] == gives
    assert {case["name"] for case in report["cases"]} >= CASES
    assert report["max_difference"] <= 1e-5 * max(1.0, report["largest_number"]), report
    libraries = set(report["second_process"]["libraries"])
    assert LIBRARY[target] in libraries
    assert libraries.isdisjoint({"embank", "torchrec", "polars", *({"torch"} if target == "onnx" else {"onnx"})})
    assert report["second_process"]["microseconds"]["one row"] > 0


def whole_model(folder: Path, target: str) -> None:
    """Columns of one id, of bags, and of numbers; tables of several methods, coded."""
    bundle, data = trained_bundle(
        folder,
        tables={
            "method": "hash",
            "num_rows": 20,
            "codec": "int4",
            "overrides": {"genre": {"method": "full"}, "item": {"method": "tt_rec", "rank": 2}},
        },
    )
    out = folder / "out"
    report = convert_bundle(bundle, to=target, out=out, data=data).report
    checked(report, target, gives="scores")
    assert report["auc"]["rows"] == 100
    assert abs(report["auc"]["bundle"] - report["auc"]["converted"]) < 1e-3
    original, reader = Original(Bundle(bundle)), reader_of(out)
    opened = reader["load"](out)
    for case in generated(original, seed=1):
        scores = np.asarray(reader["score"](opened, case.inputs))
        assert scores.shape == (case.num_rows,)
        assert np.allclose(scores, original.scores(case), rtol=0, atol=1e-6), case.name


def all_methods(folder: Path, target: str) -> None:
    """One form of each, in one model, each read by a feature with bags; and a table whose ids are hashes of tokens."""
    out = folder / "out"
    bundle = bundle_of_forms(folder, ONE_EACH, others=HASHED[:1])
    checked(convert_bundle(bundle, to=target, out=out).report, target, gives="values")
    original, reader = Original(Bundle(bundle)), reader_of(out)
    opened = reader["load"](out)
    for case in generated(original, seed=1):
        values = np.asarray(reader["score"](opened, case.inputs))
        assert np.allclose(values, original.values(case), rtol=1e-5, atol=1e-5), case.name


@pytest.mark.slow
def test_onnx(tmp_path: Path) -> None:
    whole_model(tmp_path, "onnx")
    text = (tmp_path / "out/model.onnx").read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in text, "where embank lies is nobody's business"
    model = onnx.load(tmp_path / "out/model.onnx", load_external_data=False)
    onnx.checker.check_model(str(tmp_path / "out/model.onnx"))
    facts = json.loads((tmp_path / "out/manifest.json").read_text())
    assert [value.name for value in model.graph.input] == facts["inputs"]
    assert sorted(facts["inputs"]) == ["dense", "ids.genre", "ids.item", "ids.user", "lengths.genre"]
    assert [value.name for value in model.graph.output] == ["score"]


@pytest.mark.slow
def test_tables_stay_coded_in_onnx(tmp_path: Path) -> None:
    """What is written takes the bytes of the coded tables, and some for the graph."""
    specs = [TableSpec(name="item", num_embeddings=20_000, embedding_dim=16, feature_names=["item"])]
    tables = TableCollection(specs, seed=0)
    save_bundle(tmp_path / "bundle", tables, codec="int4")
    report = convert_bundle(tmp_path / "bundle", to="onnx", out=tmp_path / "out").report
    held = pack_collection(tables, codec="int4").nbytes()
    assert report["bytes"]["serving_tables_of_the_bundle"] == held
    assert (tmp_path / "out/model.onnx.data").stat().st_size <= held + 4096
    assert (tmp_path / "out/model.onnx").stat().st_size <= 40_000


@pytest.mark.slow
def test_pt2(tmp_path: Path) -> None:
    """Refused where it was not compiled for the machine; tables are mapped, each once."""
    whole_model(tmp_path, "pt2")
    out = tmp_path / "out"
    facts = json.loads((out / "manifest.json").read_text())
    assert facts["machine"]["torch"] == torch.__version__
    held = Bundle(tmp_path / "run/bundle").tables().nbytes()
    assert (out / "constants.bin").stat().st_size < held + 20_000
    facts["machine"]["instructions"] = "NONE"
    (out / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(RuntimeError, match="compiled for .*'NONE'.*convert the bundle here"):
        reader_of(out)["load"](out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "codecs"),  # the time of ONNX's optimizer grows with the square of the model
    [("pt2", CODECS), *(("onnx", CODECS[part::4]) for part in range(4))],
    ids=["pt2", *(f"onnx-{part}" for part in range(4))],
)
def test_every_codec(target: str, codecs: Sequence[str], tmp_path: Path) -> None:
    """Each holds a table of its own: of 6 columns, whose rows begin amid a byte, and of 16."""
    specs = [
        TableSpec(name=f"{dim}/{codec}", num_embeddings=90, embedding_dim=dim, feature_names=[f"{dim}/{codec}"])
        for codec in codecs
        for dim in (6, 16)
    ]
    by_table = {spec.name: spec.name.split("/")[1] for spec in specs}
    tables = TableCollection(specs, seed=0)
    for number, spec in enumerate(specs):
        tables.set_rows(spec.name, random_rows(90, spec.embedding_dim, seed=number))
    save_bundle(tmp_path / "bundle", tables, codec=by_table)
    checked(convert_bundle(tmp_path / "bundle", to=target, out=tmp_path / "out").report, target, gives="values")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "pt2"])
def test_every_method(target: str, tmp_path: Path) -> None:
    all_methods(tmp_path, target)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_network_is_followed(name: str, tmp_path: Path) -> None:
    """For any number of rows, one included."""
    bundle, _ = trained_bundle(tmp_path, model={"name": name})
    original = Original(Bundle(bundle))
    whole = Whole(original)
    module = whole.program().module()
    for case in generated(original):
        scores = module(*[torch.from_numpy(case.inputs[name]) for name in whole.input_names])
        assert np.allclose(scores.numpy(), original.scores(case), rtol=0, atol=1e-5), case.name


def test_ids_that_no_table_has_are_those_of_the_unknown_value(tmp_path: Path) -> None:
    save_bundle(tmp_path / "bundle", TableCollection(HASHED))
    original = Original(Bundle(tmp_path / "bundle"))
    [case] = [case for case in generated(original) if case.name == "unseen ids"]
    assert max(case.inputs[IDS + "item"]) == 10 > original.last["item"]
    zeros = {name: array if name.startswith(LENGTHS) else np.zeros_like(array) for name, array in case.inputs.items()}
    expected = original.values(case)
    assert np.array_equal(expected[:, 4:], original.values(type(case)(name="", num_rows=5, inputs=zeros))[:, 4:])
    whole = Whole(original)
    given = [torch.from_numpy(case.inputs[name]) for name in whole.input_names]
    assert np.array_equal(whole(*given).numpy(), expected)


@pytest.mark.parametrize("target", ["onnx", "pt2", "torchrec"])
def test_tables_that_pool_by_weights_are_refused(target: str, tmp_path: Path) -> None:
    """These targets are given ids alone, and would leave the weights out."""
    plain = TableSpec(name="plain", num_embeddings=20, embedding_dim=4, feature_names=["a"])
    weighted = replace(plain, name="heavy", feature_names=["b"], weighted=True)
    save_bundle(tmp_path / "bundle", TableCollection([plain, weighted]))
    with pytest.raises(ConfigError, match="table 'heavy' pools by the weights of its ids.*convert --to parquet"):
        convert_bundle(tmp_path / "bundle", to=target, out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert Original(Bundle(tmp_path / "bundle"), tables=["plain"]).features == ["a"]
