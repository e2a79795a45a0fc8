"""Targets of rows: Parquet and safetensors, of every form of every method."""

import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from embank.pipelines import compress_vectors, convert_bundle, load_model
from embank.pipelines.cli.app import app
from embank.pipelines.convert import targets
from embank.pipelines.convert.parity import _Asked, _parity
from embank.tables import Bundle, CheckpointError, ConfigError, TableCollection, TableSpec, encode, save_bundle
from embank.tables.method.registry import build_method
from embank.tables.serving.export import parquet
from embank.tables.serving.export.decoded import (
    decoded_chunks,
    folder_names,
    refuse_below_fp16,
    refuse_beyond_fp16,
    write_rows,
)
from embank.tables.serving.table import PackedTable
from tests.convert.bundles import (
    ALL,
    HASHED,
    ONE_EACH,
    bundle_of_forms,
    lines_of,
    trained_bundle,
    trained_bundle_of_a_log,
)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of_forms(tmp_path_factory.mktemp("tables"), ONE_EACH)


def entries(folder: Path) -> list[str]:
    """What is in a folder, hidden entries too."""
    return sorted(path.name for path in folder.iterdir())


def expected_rows(bundle: Path) -> dict[str, torch.Tensor]:
    """The slow twin: every row of every table, looked up one by one."""
    return {
        spec.name: torch.cat([pack.lookup(torch.tensor([i])) for i in range(spec.num_embeddings)])
        for spec, pack in Bundle(bundle).tables().packed_tables()
    }


LIBRARY = {"parquet": "pyarrow", "safetensors": "safetensors", "nve": "numpy"}
TARGETS = list(LIBRARY)


def converted(target: str, bundle: Path, out: Path) -> None:
    """Compares each row of each table; by the script of at most 20 lines that lies beside it."""
    done = convert_bundle(bundle, to=target, out=out)
    report = json.loads((out / "parity.json").read_text())
    assert report == json.loads(json.dumps(done.report))
    assert (report["compared"], report["auc"]) == ("rows", None)
    tables = json.loads((out / "manifest.json").read_text())["tables"]
    assert [case["name"] for case in report["cases"]] == [table["name"] for table in tables]
    assert report["max_difference"] <= 1e-6, report
    expected = expected_rows(bundle)
    libraries = set(report["second_process"]["libraries"])  # pyarrow takes pandas where it finds it
    assert LIBRARY[target] in libraries
    assert libraries.isdisjoint({"embank", "torch", "torchrec", "polars"})
    script = (out / "read.py").read_text()
    assert lines_of(script) <= 20
    reader: dict[str, Any] = {}
    exec(script, reader)
    opened = reader["load"](out)
    for table in tables:
        rows = reader["rows"](opened, table["name"], list(range(table["num_embeddings"])))
        read = torch.from_numpy(np.array(rows, dtype=np.float32))
        torch.testing.assert_close(read, expected[table["name"]], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("target", TARGETS)
def test_every_method(target: str, tables: Path, tmp_path: Path) -> None:
    converted(target, tables, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_form_of_every_method_in_a_codec(target: str, tmp_path: Path) -> None:
    converted(target, bundle_of_forms(tmp_path, list(ALL), codec="int4"), tmp_path / "out")


def test_half_precision(tables: Path, tmp_path: Path) -> None:
    convert_bundle(tables, to="safetensors", out=tmp_path / "out", dtype="fp16", tables=["full", "tt_rec"])
    read = load_file(tmp_path / "out/tables.safetensors")
    assert {name: rows.dtype for name, rows in read.items()} == {"full": torch.float16, "tt_rec": torch.float16}
    assert torch.equal(read["full"], expected_rows(tables)["full"].half())


def test_parts_have_a_bound_and_hold_all_rows(tmp_path: Path) -> None:
    """Also where a chunk is larger than a part."""
    spec = TableSpec(name="item", num_embeddings=5000, embedding_dim=24, feature_names=["item"])
    save_bundle(tmp_path / "bundle", TableCollection([spec], seed=0))
    tables = list(Bundle(tmp_path / "bundle").tables().packed_tables())
    (tmp_path / "out").mkdir()
    [facts] = parquet.write_parquet(tmp_path / "out", tables, part_nbytes=100_000)
    files = [tmp_path / "out" / part for part in facts["parts"]]
    assert 5 <= len(files) < 10
    assert all(file.stat().st_size <= 100_000 for file in files)
    read = pq.read_table(files)
    assert read["id"].to_pylist() == list(range(5000))
    expected = torch.cat(list(decoded_chunks(*tables[0])))
    assert np.array_equal(np.array(read["vector"].to_pylist(), dtype=np.float32), expected.numpy())


@pytest.mark.slow
def test_tokens_stand_beside_their_ids(tmp_path: Path) -> None:
    bundle = trained_bundle_of_a_log(tmp_path)
    convert_bundle(bundle, to="parquet", out=tmp_path / "out")
    model = load_model(bundle)
    read = pq.read_table(tmp_path / "out/item").to_pylist()
    assert read[0]["token"] is None
    tokens = [row["token"] for row in read[1:]]
    assert set(tokens) == {f"i{number}" for number in range(20)}
    assert model.ids_of("item", tokens).tolist() == [row["id"] for row in read[1:]]
    assert np.array_equal(model.embed("item", tokens), np.array([row["vector"] for row in read[1:]], np.float32))
    convert_bundle(bundle, to="parquet", out=tmp_path / "bare", tokens=False)
    assert [field.type for field in pq.read_schema(tmp_path / "bare/item/part-00000.parquet")] == [
        pa.int64(),
        pa.list_(pa.field("element", pa.float32())),
    ]


def test_labelled_rows_have_the_same_auc(tmp_path: Path) -> None:
    """Bags are pooled, and the network scores, from what was read."""
    bundle, data = trained_bundle(tmp_path, tables={"method": "tt_rec", "budget": 0.5})
    report = convert_bundle(bundle, to="safetensors", out=tmp_path / "out", data=data).report
    assert report["auc"]["rows"] == 100
    assert abs(report["auc"]["bundle"] - report["auc"]["converted"]) < 1e-9
    assert report["auc"]["max_score_difference"] < 1e-6


def test_a_name_may_be_longer_than_that_of_a_file(tmp_path: Path) -> None:
    names = ["\u8868" * 90 + end for end in "ab"]
    specs = [TableSpec(name=name, num_embeddings=4, embedding_dim=2, feature_names=[name]) for name in names]
    save_bundle(tmp_path / "b", TableCollection(specs))
    convert_bundle(tmp_path / "b", to="parquet", out=tmp_path / "out")
    assert [len(name.encode()) for name in entries(tmp_path / "out") if "\u8868" in name] == [198, 200]


def test_a_name_that_safetensors_keeps_is_refused(tmp_path: Path) -> None:
    specs = [
        TableSpec(name=name, num_embeddings=4, embedding_dim=2, feature_names=[name])
        for name in ("__metadata__", "item")
    ]
    save_bundle(tmp_path / "b", TableCollection(specs))
    with pytest.raises(ConfigError, match="table '__metadata__' has the one name that a safetensors file keeps"):
        convert_bundle(tmp_path / "b", to="safetensors", out=tmp_path / "out")
    convert_bundle(tmp_path / "b", to="safetensors", out=tmp_path / "out", tables=["item"])
    assert list(load_file(tmp_path / "out/tables.safetensors")) == ["item"]


def test_nothing_is_written_over_and_nothing_is_left(tables: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    with pytest.raises(CheckpointError, match="exists already, and a conversion is never written over anything"):
        convert_bundle(tables, to="parquet", out=tmp_path / "out")
    assert entries(tmp_path) == ["out"]
    assert entries(tmp_path / "out") == ["mine"]
    with pytest.raises(ConfigError, match="there is no target 'parket'; did you mean 'parquet'"):
        convert_bundle(tables, to="parket", out=tmp_path / "x")
    with pytest.raises(ConfigError, match="there is no table 'ful'; did you mean 'full'"):
        convert_bundle(tables, to="parquet", out=tmp_path / "x", tables=["ful"])
    with pytest.raises(ConfigError, match="target 'nve' holds no tokens that could be left out"):
        convert_bundle(tables, to="nve", out=tmp_path / "x", tokens=False)
    with pytest.raises(ConfigError, match="target 'parquet' has no dtype 'int8': it keeps what the bundle holds"):
        convert_bundle(tables, to="parquet", out=tmp_path / "x", dtype="int8")
    with pytest.raises(ConfigError, match="tables are taken without a network, so labels tell nothing; leave"):
        convert_bundle(tables, to="parquet", out=tmp_path / "x", data=tmp_path)
    with pytest.raises(ConfigError, match="split 'valid' is of labelled rows; name their prepared folder by --data"):
        convert_bundle(tables, to="parquet", out=tmp_path / "x", split="valid")
    assert entries(tmp_path) == ["out"]
    assert entries(tmp_path / "out") == ["mine"]


def test_hashes_of_tokens_are_refused_by_name(tmp_path: Path) -> None:
    save_bundle(tmp_path / "bundle", TableCollection(HASHED))
    with pytest.raises(ConfigError, match=r"the ids of table 'any' are hashes of tokens, 2\*\*63 of them; name"):
        convert_bundle(tmp_path / "bundle", to="parquet", out=tmp_path / "out")
    assert entries(tmp_path) == ["bundle"]
    convert_bundle(tmp_path / "bundle", to="parquet", out=tmp_path / "out", tables=["item"])


@pytest.mark.parametrize("target", ["safetensors", "nve"])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (lambda rows: rows.index_put((torch.tensor(123_457), torch.tensor(2)), torch.tensor(1e5)), "reach 1e+05, and"),
        (
            lambda rows: rows * 1e-9,
            "at most, and fp16, in which rows or their steps and offsets would be held, is exact",
        ),
    ],
)
def test_rows_that_half_precision_cannot_hold(
    target: str, rows: Callable[[torch.Tensor], torch.Tensor], message: str, tmp_path: Path
) -> None:
    """One row of many, which no sample may have: each is looked at."""
    spec = TableSpec(name="item", num_embeddings=200_000, embedding_dim=4, feature_names=["item"])
    tables = TableCollection([spec])
    with tables.writing(), torch.no_grad():
        tables.weights()["item"].copy_(rows(torch.randn(200_000, 4, generator=torch.Generator().manual_seed(0))))
    save_bundle(tmp_path / "bundle", tables)
    with pytest.raises(ConfigError) as caught:
        convert_bundle(tmp_path / "bundle", to=target, out=tmp_path / "out", dtype="fp16")
    assert str(caught.value).startswith("rows of table 'item' reach ")
    assert message in str(caught.value)
    assert str(caught.value).endswith("; take dtype fp32")
    assert not (tmp_path / "out").exists()


def test_rows_that_are_no_numbers_are_said_to_be_that() -> None:
    """Of whichever chunk, and not as a size that fp16 ends before."""
    spec = TableSpec(name="item", num_embeddings=200_000, embedding_dim=32, feature_names=["item"])
    rows = torch.ones(200_000, 32)
    rows[150_000, 3] = torch.nan  # of the second chunk
    pack = PackedTable.of(build_method(spec).served({"item": rows}), coded=lambda matrix: encode(matrix, codec="fp32"))
    with pytest.raises(ConfigError, match="rows of table 'item' hold NaN, which is no number in any dtype; train"):
        write_rows(io.BytesIO(), spec, pack, dtype=torch.float16, written=lambda count: None)
    for told in (refuse_beyond_fp16, refuse_below_fp16):
        told(spec, 1.0)
    with pytest.raises(ConfigError, match=r"rows of table 'item' reach inf, .*; take dtype fp32"):
        refuse_beyond_fp16(spec, math.inf)


def test_names_of_tables_become_names_of_folders() -> None:
    specs = [
        TableSpec(name=name, num_embeddings=1, embedding_dim=1, feature_names=["f"])
        for name in ("a/b", "a.b", "../up", "größe")
    ]
    assert folder_names(specs) == {"a/b": "a.b", "a.b": "a.b.2", "../up": "up", "größe": "größe"}


def test_a_table_may_be_called_as_a_file_of_the_conversion(tmp_path: Path) -> None:
    names = ["read.py", "manifest.json"]
    specs = [TableSpec(name=name, num_embeddings=3, embedding_dim=2, feature_names=[name]) for name in names]
    save_bundle(tmp_path / "bundle", TableCollection(specs))
    report = convert_bundle(tmp_path / "bundle", to="parquet", out=tmp_path / "out").report
    assert report["max_difference"] == 0
    assert {"read.py", "read.py.2", "manifest.json", "manifest.json.2"} < set(entries(tmp_path / "out"))


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_a_number_that_is_wrong_is_seen_whatever_its_table_holds(scale: float) -> None:
    """Differences are judged in units of their own table, beside which another may hold far larger numbers."""
    large, small = np.full((2, 4), 100.0, np.float32), np.full((2, 4), scale, np.float32)
    asked = [
        _Asked(name=name, table=name, inputs={"ids": np.arange(2)}, expected=rows)
        for name, rows in (("large", large), ("small", small))
    ]
    exact = _parity(asked, [large, small], {}, None, compared="rows")
    wrong = _parity(asked, [large, small * 0.999], {}, None, compared="rows")
    assert (exact.relative, round(wrong.relative, 6)) == (0, 0.001)
    asked = [_Asked(name="a", inputs={}, expected=np.hstack([large, small]))]
    columns = [slice(0, 4), slice(4, 8)]
    side_by_side = np.hstack([large, small * 0.999])
    wrong = _parity(asked, [side_by_side], {}, None, compared="values", columns=columns)
    assert round(wrong.relative, 6) == 0.001


def test_the_page_shows_the_scripts() -> None:
    page = (Path(__file__).parents[2] / "docs/convert.md").read_text()
    for target in targets.TARGETS.values():
        script = (Path(targets.__file__).parent / "readers" / target.reader).read_text()
        assert f"```python\n{script}```\n" in page, target.name
        assert lines_of(script) <= 20


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = bundle_of_forms(tmp_path, ["full"])
    done = CliRunner().invoke(app, ["convert", str(bundle), "--to", "nve", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    printed = done.output + capsys.readouterr().out
    assert "largest difference" in printed
    assert f"{tmp_path / 'out'}: nve; read.py reads it, parity.json has the figures" in printed.replace("\n", "")
    assert entries(tmp_path / "out") == ["manifest.json", "metadata.json", "parity.json", "read.py", "weights"]


def test_a_library_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundle_of_forms(tmp_path, ["full"])
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"target 'onnx': onnxscript is not installed; pip install 'embank\[onnx\]'"):
        convert_bundle(bundle, to="onnx", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.slow
def test_keys_of_compressed_vectors_are_tokens(numbers: bool, tmp_path: Path) -> None:
    keys = [7 * i if numbers else f"page {i}" for i in range(300)]
    vectors = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    pq.write_table(pa.table({"key": keys, "vector": list(vectors)}), tmp_path / "pages.parquet")
    compress_vectors(tmp_path / "pages.parquet", tmp_path / "small", codec="int4_rowwise")
    done = convert_bundle(tmp_path / "small", to="parquet", out=tmp_path / "out")
    assert done.report["max_difference"] == 0
    read = pq.read_table(tmp_path / "out/vectors")
    assert read["token"].to_pylist() == [str(key) for key in keys]
    convert_bundle(tmp_path / "small", to="parquet", out=tmp_path / "plain", tokens=False)
    assert pq.read_table(tmp_path / "plain/vectors").column_names == ["id", "vector"]
