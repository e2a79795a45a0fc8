"""Target `torchrec`: which methods it takes, and how near their rows stay."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchrec import KeyedJaggedTensor

from embank.pipelines import convert_bundle
from embank.pipelines.convert.cases import Original, generated
from embank.tables import Bundle, ConfigError, TableCollection, TableSpec, load_bundle, save_bundle
from embank.tables.serving.export.torchrec import TorchRecTables, _fused, plain_rows, scripted
from tests.contracts.test_export import packed
from tests.convert.bundles import ALL, HASHED, bundle_of_forms, lines_of, trained_bundle

pytestmark = pytest.mark.slow

TAKEN = {
    "full", "hash", "frequency_cut", "uniform_dim", "mde", "adapt", "dedup", "low_precision", "alpt", "autodim"
}  # fmt: skip
REFUSED = {
    "hash_embedding": "it reads 4 rows for an id and combines them",
    "memcom": "it reads 2 rows for an id",
    "robe": "it reads 2 rows for an id",
    "unified": "it reads 2 rows for an id",
    "compositional": "it reads 2 rows for an id",
    "tt_rec": "it reads 3 rows for an id",
    "dhe": "its rows are computed, and it holds none",
    "dpq": "its rows are held by codec 'product'",
    "mgqe": "its rows are held by codec 'product'",
    "optembed": "what it makes of a row depends on the id",
    "deeplight": "its rows are held by codec 'sparse'",
    "pep": "its rows are held by codec 'sparse'",
    "autosrh": "its rows are held by codec 'sparse'",
}


def test_every_method_is_taken_or_refused_by_name() -> None:
    assert {form.method for form in ALL.values() if not form.method.startswith("test_")} == TAKEN | set(REFUSED)
    for method, reason in REFUSED.items():
        name = next(name for name, form in ALL.items() if form.method == method)
        message = rf"table '{name}' \(method '{method}'\) can't be one of torchrec's: {reason}.*take target onnx or pt2"
        with pytest.raises(ConfigError, match=message):
            plain_rows(ALL[name].spec(name), packed(name))


def read(out: Path) -> tuple[Any, dict[str, Any]]:
    script = (out / "read.py").read_text()
    assert lines_of(script) <= 20
    names: dict[str, Any] = {}
    exec(script, names)
    return names["load"](out), names


@pytest.mark.parametrize(("dtype", "most"), [("fp32", 1e-6), ("fp16", 1e-3), ("int8", 1e-2), ("int4", 0.15)])
def test_every_form_that_it_takes(dtype: str, most: float, tmp_path: Path) -> None:
    """Each table by itself, without a second process: lookups of every id, and bags."""
    names = [name for name, form in ALL.items() if form.method in TAKEN or name == "unified_exact"]
    collection = load_bundle(bundle_of_forms(tmp_path, names))
    tables = TorchRecTables(collection, dtype=dtype)
    script = scripted(tables)
    lengths = torch.tensor([0, 1, 2, 97, 100])
    values, sizes = torch.arange(200).repeat(len(names)), lengths.repeat(len(names))
    expected = collection(KeyedJaggedTensor(keys=tables.features, values=values, lengths=sizes)).values()
    got = script(values, sizes)
    assert got.shape == expected.shape
    per_row = (got - expected).abs() / lengths.clamp(min=1)[:, None]
    scale = max(float(pack.lookup(torch.arange(200)).abs().max()) for _, pack in collection.packed_tables())
    assert float(per_row.max()) <= most * scale
    assert not got[0].any()


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_rows_that_are_fbgemms_own_are_kept(kind: str, tmp_path: Path) -> None:
    """To the bit, of widths that are padded, too."""
    specs = [
        TableSpec(name=f"t{dim}", num_embeddings=50, embedding_dim=dim, feature_names=[f"t{dim}"]) for dim in (5, 8, 16)
    ]
    save_bundle(tmp_path / "bundle", TableCollection(specs), codec=f"{kind}_rowwise")
    report = convert_bundle(tmp_path / "bundle", to="torchrec", out=tmp_path / "out", dtype=kind).report
    assert report["max_difference"] == 0
    other = convert_bundle(tmp_path / "bundle", to="torchrec", out=tmp_path / "other", dtype="fp32").report
    assert other["max_difference"] == 0


def test_a_table_of_one_id(tmp_path: Path) -> None:
    spec = TableSpec(name="one", num_embeddings=1, embedding_dim=4, feature_names=["one"])
    save_bundle(tmp_path / "bundle", TableCollection([spec]))
    assert convert_bundle(tmp_path / "bundle", to="torchrec", out=tmp_path / "out").report["max_difference"] == 0


def test_tables_have_any_name(tmp_path: Path) -> None:
    """TorchRec makes attributes of its tables' names."""
    names = ["type", "keys", "user.id", "training"]
    tables = TableCollection([TableSpec(name=n, num_embeddings=50, embedding_dim=8, feature_names=[n]) for n in names])
    save_bundle(tmp_path / "bundle", tables)
    collection = load_bundle(tmp_path / "bundle")
    converted, ids = TorchRecTables(collection, dtype="fp32"), torch.arange(200) % 50
    got = scripted(converted)(ids, torch.ones(200, dtype=torch.int64))
    kjt = KeyedJaggedTensor(keys=names, values=ids, lengths=torch.ones_like(ids))
    assert torch.equal(got, collection(kjt).values())
    assert (converted.features, list(converted.dtypes)) == (names, names)


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_at_the_end_of_fp16_come_back(bits: int) -> None:
    """Half a step below its largest number was minus infinity."""
    rows = torch.tensor([-65510.0, -65505.0, -65504.0, 65504.0, 65510.0])[:, None].expand(5, 8).contiguous()
    back = torch.ops.fbgemm.FusedNBitRowwiseQuantizedSBHalfToFloat(_fused(rows, bits=bits), bits)
    assert float((back - rows).abs().max()) <= 8


@pytest.mark.parametrize("dtype", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("largest", [1e5, 1e-6])
def test_rows_that_fp16_steps_cannot_say_are_refused(dtype: str, largest: float, tmp_path: Path) -> None:
    spec = TableSpec(name="t", num_embeddings=50, embedding_dim=16, feature_names=["t"])
    tables = TableCollection([spec])
    with tables.writing(), torch.no_grad():
        tables.weights()["t"].uniform_(-largest, largest)[3, 2] = largest
    save_bundle(tmp_path / "bundle", tables)
    with pytest.raises(ConfigError, match=r"rows of table 't' reach 1e[+-]0[56].*; take dtype fp32"):
        convert_bundle(tmp_path / "bundle", to="torchrec", out=tmp_path / "out", dtype=dtype)


@pytest.mark.parametrize(("dtype", "top"), [("int8", 255), ("int4", 15)])
@pytest.mark.parametrize("largest", [1.0, 1e-2, 1e-3, 1e-4, 7e-5])
def test_small_numbers_lose_no_more_than_large_ones(dtype: str, top: int, largest: float, tmp_path: Path) -> None:
    """Steps below fp16's normal numbers are coarse: rounded down, they would cut off the end of a row's range. Initial
    rows of large tables are as small as that. Widths are those of whole words, and padded."""
    specs = [
        TableSpec(name=f"t{dim}", num_embeddings=60, embedding_dim=dim, feature_names=[f"t{dim}"]) for dim in (7, 16)
    ]
    tables = TableCollection(specs)
    drawn = torch.Generator().manual_seed(0)
    with tables.writing(), torch.no_grad():
        for rows in tables.weights().values():
            rows.uniform_(-largest, largest, generator=drawn)[3, 2] = largest
            rows[40:] = rows[40:].abs()
            rows[50:] *= 1e-3  # beside the others
            rows[58], rows[59] = largest / 3, 0
    save_bundle(tmp_path / "bundle", tables)
    collection = load_bundle(tmp_path / "bundle")
    script = scripted(TorchRecTables(collection, dtype=dtype))
    ids = torch.arange(60).repeat(2)
    got = script(ids, torch.ones(120, dtype=torch.int64))
    expected = collection(KeyedJaggedTensor(keys=["t7", "t16"], values=ids, lengths=torch.ones_like(ids))).values()
    for own, rows in zip(got.split([7, 16], dim=1), expected.split([7, 16], dim=1), strict=True):
        filled = F.pad(rows, (0, rows.shape[1] % 2))
        steps = (filled.amax(1) - filled.amin(1)) / top
        rounded = rows.abs().amax(1) * 2**-10 / top  # of an offset, which a step makes up for
        assert float(((own - rows).abs().amax(1) - 0.55 * steps - rounded).max()) <= 2**-24
        assert not own[59].any()


def test_a_second_process_reads_it(tmp_path: Path) -> None:
    """A run's bundle: embeddings and weights for each id; bags; the network scores labelled rows by what was read."""
    bundle, data = trained_bundle(tmp_path, tables={"method": "hash", "num_rows": 20, "dim": 8})
    out = tmp_path / "out"
    report = convert_bundle(bundle, to="torchrec", out=out, data=data, dtype="int8").report
    assert report["compared"] == "values"
    assert 0 < report["max_difference"] < 0.05
    assert abs(report["auc"]["bundle"] - report["auc"]["converted"]) < 0.01
    assert "torchrec" in report["second_process"]["libraries"]
    assert "embank" not in report["second_process"]["libraries"]
    facts = json.loads((out / "manifest.json").read_text())
    assert {table["name"]: table["dtype"] for table in facts["tables"]}["first_order/user"] == "fp16"
    assert {table["name"]: table["dtype"] for table in facts["tables"]}["user"] == "int8"
    opened, names = read(out)
    original = Original(Bundle(bundle))
    for case in generated(original, seed=1):
        given = names["score"](opened, case.inputs)
        assert np.abs(given.numpy() - original.values(case)).max() < 0.05


def test_some_tables_and_hashes_of_tokens(tmp_path: Path) -> None:
    save_bundle(tmp_path / "bundle", TableCollection(HASHED))
    report = convert_bundle(tmp_path / "bundle", to="torchrec", out=tmp_path / "out").report
    assert report["max_difference"] == 0
    bundle = bundle_of_forms(tmp_path, ["full", "tt_rec"])
    with pytest.raises(ConfigError, match="table 'tt_rec'"):
        convert_bundle(bundle, to="torchrec", out=tmp_path / "x")
    assert not (tmp_path / "x").exists()
    convert_bundle(bundle, to="torchrec", out=tmp_path / "x", tables=["full"])
