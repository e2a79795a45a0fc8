"""What is served of every method, held by every codec."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from embank.compression import build_table
from embank.compression.build import Table
from embank.tables import Coded, PackedCollection, PackedTable, TableSpec, named_codec
from embank.tables.serving.codecs.base import MIN_NUMBERS
from embank.tables.serving.recoding import recode_collection
from tests.compression.codecs import NAMES as CODECS
from tests.contracts.forms import DIM, FORMS, NUM, Form
from tests.contracts.specs import NAMES

LOSSLESS = {"fp32", "sparse"}
NEAR = {"fp16": 0.002, "bf16": 0.02, "fp8_e4m3": 0.15, "int8": 0.03, "int6": 0.1, "power_of_two": 0.02}
NEAR |= {"int8_rowwise": 0.01}
OURS = {"fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "int8", "int6", "int4", "int3", "int2", "bits_8_4_2", "pq", "binary"}
OURS |= {"int8_rowwise", "int4_rowwise", "int2_rowwise"}
"""Codecs that tell their bytes before there are rows."""
NEAR |= dict.fromkeys(LOSSLESS, 0.0)
"""Largest difference of a row's number from what is served without a codec, as a share of the largest number."""
WIDE = ["fp16", "fp8_e4m3", "int8", "int3", "binary", "sparse", "pca3+int8"]
OTHERS = [name for name in CODECS if name not in (*WIDE, "opq")]
"""Codecs that wide rows are tried on."""


def form_of(method: str) -> Form:
    return next((form for form in FORMS.values() if form.method == method), Form(method=method))


@pytest.mark.slow
@pytest.mark.parametrize("method", NAMES)
def test_every_codec_holds_the_rows_of_a_method(method: str, tmp_path: Path) -> None:
    spec = form_of(method).spec(method)
    table = build_table(
        method=method,
        num_embeddings=NUM,
        embedding_dim=DIM,
        budget=spec.budget,
        counts=spec.counts,
        options=spec.options,
        seed=1,
        name=method,
    )
    for codec in CODECS:
        assert_held(table, spec, codec, tmp_path)
        if codec in NEAR:
            found, expected = (table.pack(codec=own).table.lookup(torch.arange(NUM)) for own in (codec, "fp32"))
            torch.testing.assert_close(found, expected, rtol=0, atol=NEAR[codec] * float(expected.abs().max()) + 1e-9)


@pytest.mark.parametrize("codecs", [WIDE, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["few", "others"])
@pytest.mark.parametrize("method", NAMES)
def test_every_codec_holds_wide_rows_of_a_method(method: str, codecs: list[str], tmp_path: Path) -> None:
    """Rows of 2,048 numbers; `opq`, which turns them by as many square, is tried on rows without a method."""
    spec = TableSpec(name=method, num_embeddings=7, embedding_dim=2048, feature_names=[method], method=method)
    table = build_table(method=method, num_embeddings=7, embedding_dim=2048, seed=1, name=method)
    for codec in codecs:
        assert_held(table, spec, codec, tmp_path)


def assert_held(table: Table, spec: TableSpec, codec: str, tmp_path: Path) -> None:
    """Its bytes are those that are held, told beforehand and written; from a file it is the same to the bit."""
    ids = torch.arange(spec.num_embeddings)
    plain, packed = table.pack().table, table.pack(codec=codec).table
    found = packed.lookup(ids)
    assert found.shape == (spec.num_embeddings, spec.embedding_dim), codec
    assert bool(found.isfinite().all()), codec
    if codec in LOSSLESS:
        torch.testing.assert_close(found, plain.lookup(ids), rtol=0, atol=1e-9)
    (_, again), *_ = recode_collection(PackedCollection([spec], [plain]), codec=codec).packed_tables()
    assert torch.equal(again.lookup(ids), found), f"{codec}: of what is served, as of the trained rows"
    assert again.manifest() == packed.manifest(), codec
    state = {name: tensor for name, tensor in packed.state_dict().items() if isinstance(tensor, torch.Tensor)}
    file = tmp_path / f"{codec}.safetensors"
    save_file({name: tensor.clone() for name, tensor in state.items()}, file)
    written = load_file(file)
    assert packed.nbytes() == sum(t.numel() * t.element_size() for t in written.values()), codec
    other = PackedTable.restore(spec.method, packed.manifest(), written)
    assert torch.equal(other.lookup(ids), found), codec
    for own, coded in zip(plain.coded, packed.coded, strict=True):
        assert_bytes_told(own, coded, codec=codec)


def assert_bytes_told(plain: Coded, coded: Coded, *, codec: str) -> None:
    rows = getattr(plain, "rows", None)
    if rows is None or codec in ("sparse", "dedup", "dedup20+int4", "pca2+dedup+fp16"):
        return  # coded by the method, or in as many bytes as the rows themselves decide
    if type(coded).nbytes_of.__func__ is Coded.nbytes_of.__func__:
        assert codec not in OURS
        return  # an author's codec, which does not tell
    wanted = codec if rows.numel() >= MIN_NUMBERS else "fp32"
    assert coded.nbytes() == named_codec(wanted).nbytes_of(*rows.shape), codec


def test_small_matrices_stay_as_they_are() -> None:
    few = build_table(method="full", num_embeddings=7, embedding_dim=9).pack(codec="int4").table
    many = build_table(method="full", num_embeddings=8, embedding_dim=8).pack(codec="int4").table
    assert [m["codec"] for m in few.manifest()["matrices"]] == ["fp32"]
    assert [m["codec"] for m in many.manifest()["matrices"]] == ["int4"]
    assert many.nbytes() == 32 + 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "held", "wanted"),
    [
        ("mgqe", "centroids", "product_coded"),
        ("dpq_bytes", "centroids", "product_coded"),
        ("sparse_dense", "values", "sparse_coded"),
        ("sparse_bitmap", "values", "sparse_coded"),
        ("sparse_list8", "values", "sparse_coded"),
    ],
)
def test_what_methods_code_themselves_has_its_fp32_numbers_coded(form: str, held: str, wanted: str) -> None:
    """And is followed by an exporter; the codes and places are those of the plain form."""
    spec = FORMS[form].spec(form)
    table = build_table(
        method=spec.method,
        num_embeddings=NUM,
        embedding_dim=DIM,
        budget=spec.budget,
        counts=spec.counts,
        options=spec.options,
        name=form,
    )
    (plain,), coded_table = table.pack().table.coded, table.pack(codec="int8").table
    (coded,) = coded_table.coded
    assert coded_table.manifest()["matrices"][0]["codec"] == wanted
    numbers = getattr(plain, held)
    shape = (numbers.numel() // numbers.shape[-1], numbers.shape[-1]) if numbers.dim() > 1 else (len(numbers), 1)
    assert plain.nbytes() - coded.nbytes() == 4 * numbers.numel() - named_codec("int8").nbytes_of(*shape)
    ids = torch.arange(NUM)
    rows, expected = coded.take(ids), plain.take(ids)
    assert bool((rows[expected == 0] == 0).all()), "what is not held is 0"
    torch.testing.assert_close(rows, expected, rtol=0, atol=0.01 * float(expected.abs().max()))
    program = torch.export.export(coded_table, (ids[:3],), dynamic_shapes={"ids_N": {0: torch.export.Dim("N", min=0)}})
    assert torch.equal(program.module()(ids), coded_table.lookup(ids))
    assert torch.equal(program.module()(ids[:0]), coded_table.lookup(ids[:0]))
