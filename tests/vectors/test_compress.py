"""Vectors in the form of codecs: chosen, written, read back, told of."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from embank.pipelines import compress_vectors, load_vectors
from embank.pipelines.vectors.encoding import encoded
from embank.pipelines.vectors.neighbours import Queries, depth_of, nearest_of, recalls
from embank.tables import (
    BudgetError,
    CheckpointError,
    ConfigError,
    DataError,
    TableCollection,
    TableSpec,
    encode,
    load_bundle,
    named_codec,
    save_bundle,
)
from tests.compression.codecs import NAMES, random_rows
from tests.pages import embank

pytestmark = pytest.mark.slow

BLOCKS = [name for name in NAMES if named_codec(name).cls.rows_per_block(6) and name != "fp32"]


def low_rank(num_rows: int, dim: int, *, rank: int, noise: float = 0.1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(num_rows, rank, generator=generator) @ torch.randn(rank, dim, generator=generator)
    return rows + noise * torch.randn(num_rows, dim, generator=generator)


@pytest.mark.parametrize("dim", [1, 3, 6, 16, 70])
@pytest.mark.parametrize("codec", BLOCKS)
def test_blocks_are_coded_as_the_whole(codec: str, dim: int, tmp_path: Path) -> None:
    rows = random_rows(1031, dim)
    whole, blocks = encode(rows, codec=codec), encoded(rows, codec, tmp_path / "blocks", numbers=640 * dim)
    assert list((tmp_path / "blocks").iterdir()), "it was one block"
    assert dict(whole.named_buffers()).keys() == dict(blocks.named_buffers()).keys()
    for name, buffer in whole.named_buffers():
        assert torch.equal(buffer, getattr(blocks, name)), name
    assert torch.equal(whole.take(torch.arange(1031)), blocks.take(torch.arange(1031)))


def test_codecs_of_blocks_are_those_that_code_rows_alone() -> None:
    assert {"fp16", "bf16", "int8", "int6", "int4", "int3", "int2", "binary", "binary3"} <= set(BLOCKS)
    assert not {"pq", "opq", "pca", "lowrank", "dedup", "fp8_e4m3", "bits_8_4_2"} & set(BLOCKS)


def slow_recall(rows: torch.Tensor, coded: torch.Tensor, query: int, *, metric: str, depth: int) -> float:
    """By sorting, one query at a time; no two vectors may be equally near."""

    def order(candidates: torch.Tensor) -> list[int]:
        scores = candidates.double() @ rows[query].double()
        scores = scores / candidates.double().norm(dim=1) if metric == "cosine" else scores
        return [i for i in scores.argsort(descending=True).tolist() if i != query][:depth]

    return len(set(order(rows)) & set(order(coded))) / depth


def test_recall_is_that_of_sorting() -> None:
    rows = random_rows(150, 5)
    coded = encode(rows, codec="int3").take(torch.arange(150))
    own = torch.tensor([3, 77, 149])
    queries = Queries(rows_QD=rows[own], own_Q=own)
    told = recalls(rows, nearest_of(rows, queries), nearest_of(coded, queries))
    for metric, by_depth in told.items():
        assert list(by_depth) == [1, 10, 100]
        for depth, recall in by_depth.items():
            expected = [slow_recall(rows, coded, int(q), metric=metric, depth=depth) for q in own]
            assert recall == pytest.approx(sum(expected) / 3), (metric, depth)


def test_of_equal_vectors_any_is_found() -> None:
    rows = random_rows(10, 4).repeat_interleave(20, dim=0)  # each twenty times
    queries = Queries(rows_QD=rows[::20], own_Q=torch.arange(0, 200, 20))
    other = rows.view(10, 20, 4).flip(1).reshape(200, 4)
    told = recalls(rows, nearest_of(rows, queries), nearest_of(other, queries))
    assert told["cosine"][1] == told["cosine"][10] == told["inner_product"][10] == 1.0
    assert depth_of(1) == 0


@pytest.mark.parametrize("are_numbers", [False, True])
def test_a_folder_gives_back_what_its_codec_holds(are_numbers: bool, tmp_path: Path) -> None:
    rows = random_rows(300, 16)
    keys = [7 * i for i in range(300)] if are_numbers else [f"doc {i}" for i in range(300)]
    pl.DataFrame({"vector": rows.numpy(), "key": keys}).write_parquet(tmp_path / "v.parquet")
    made = compress_vectors(tmp_path / "v.parquet", tmp_path / "out", codec="int4", num_queries=50)
    stored, coded = load_vectors(tmp_path / "out"), encode(rows, codec="int4")
    assert torch.equal(stored.take(torch.arange(300)), coded.take(torch.arange(300)))
    assert torch.equal(stored.lookup([keys[5], keys[299], keys[5]]), coded.take(torch.tensor([5, 299, 5])))
    assert stored.keys.to_list() == keys
    held = sum(t.numel() * t.element_size() for t in load_file(tmp_path / "out/tables.safetensors").values())
    assert made.chosen.nbytes == stored.nbytes() == coded.nbytes() == held == named_codec("int4").nbytes_of(300, 16)
    told = json.loads((tmp_path / "out/report.json").read_text())
    assert told["chosen"]["nbytes"] == held
    assert set(told["chosen"]["test"]) == {"cosine", "inner_product"}
    assert list(told["chosen"]["test"]["cosine"]) == ["1", "10", "100"]
    assert (tmp_path / "out/tradeoff.png").stat().st_size > 10_000
    assert not (tmp_path / "out/scratch").exists()
    table = load_bundle(tmp_path / "out")
    assert [spec.num_embeddings for spec in table.specs] == [300]
    with pytest.raises(DataError, match="there is no key"):
        stored.lookup([3] if are_numbers else ["doc 300"])
    with pytest.raises(DataError, match=r"are whole numbers, and '3'" if are_numbers else "are text, and 3"):
        stored.lookup(["3"] if are_numbers else [3])
    for wrong in ("doc", b"doc", 5, None):
        with pytest.raises(DataError, match=r"are asked for by .*(doc|5|None).*; give a list of keys"):
            stored.lookup(wrong)
    with pytest.raises(DataError, match="and key 1 of those asked for is missing"):
        stored.lookup(pl.Series([*stored.keys[:1], None]))
    with pytest.raises(DataError, match="there is no row 300"):
        stored.take([0, 300])
    assert stored.lookup([]).shape == stored.take([]).shape == (0, 16)
    for rows in (torch.arange(300) == 7, [0.9, 1.7], np.array([1.0])):
        with pytest.raises(DataError, match="are asked for by (bool|float32|float64) numbers; give whole ones"):
            stored.take(rows)
    for rows in ([2**70], ["a"], [None], None, slice(0, 2), "abc"):
        with pytest.raises(DataError, match=r"are asked for by .*; give whole numbers, 0 to 299"):
            stored.take(rows)
    with pytest.raises(DataError, match="there is no row beyond int64"):
        stored.take(np.array([2**63 + 1], dtype=np.uint64))
    for asked in ([["a"]], [True], [1.0], [b"a"], [object()], ["\ud800"]):
        with pytest.raises(DataError, match=r"^the keys (of|that are asked for of) '[^\n]*$"):
            stored.lookup(asked)
    assert torch.equal(stored.lookup(pl.Series(keys[:2])), stored.take([0, 1]))
    for asked in (pa.array(keys[:2]), pa.chunked_array([keys[:1], keys[1:2]]), pa.array(keys[:2]).dictionary_encode()):
        if not (are_numbers and isinstance(asked, pa.DictionaryArray)):
            assert torch.equal(stored.lookup(asked), stored.take([0, 1]))
    assert stored.lookup(pa.chunked_array([], type=pa.string())).shape == (0, 16)
    with pytest.raises(DataError, match="and key 1 of those asked for is missing"):
        stored.lookup(pa.array([keys[0], None]))
    with pytest.raises(DataError, match=rf"the keys of '[^']+' are {'whole numbers' if are_numbers else 'text'}, and "):
        stored.lookup(pa.array([b"a"]))
    for wrong in (np.array(keys[0]), torch.tensor(7), np.array(None), pa.scalar(keys[0])):
        with pytest.raises(DataError, match=r"are asked for by .*(doc 0|0|7|None).*; give a list of keys"):
            stored.lookup(wrong)
    for asked in ([keys[0], "doc" if are_numbers else 3], [2**130]):
        with pytest.raises(DataError, match=r"are of several types, or beyond 64 bits: .*; give all as text, or all"):
            stored.lookup(asked)


@pytest.mark.parametrize("budget", [None, 0.5])
def test_no_codec_at_all_is_refused(budget: float | None, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", low_rank(20, 4, rank=2).numpy())
    with pytest.raises(ConfigError, match="no codec is given"):
        compress_vectors(tmp_path / "v.npy", tmp_path / "out", codec=[], budget=budget)


def test_a_budget_takes_the_best_on_validation_among_those_that_fit(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", low_rank(600, 32, rank=4).numpy())
    codecs = ["int8", "int4", "int2", "pca4+int8", "binary1"]
    made = compress_vectors(tmp_path / "v.npy", tmp_path / "out", codec=codecs, budget=0.1, num_queries=100)
    by_codec = {trial.codec: trial for trial in made.trials}
    assert list(by_codec) == codecs
    fitting = [trial for trial in made.trials if trial.share <= 0.1]
    assert {trial.codec for trial in fitting} == {"int2", "pca4+int8", "binary1"}
    assert made.codec == max(fitting, key=lambda trial: trial.valid["cosine"][10]).codec == "pca4+int8"
    assert by_codec["int8"].lost < by_codec["int4"].lost < by_codec["int2"].lost
    page = (tmp_path / "out/report.md").read_text()
    assert "**pca4+int8**" in page
    assert "take at most 0.1 of the fp32 bytes" in page
    with pytest.raises(BudgetError, match=r"fits into budget 0\.01: the smallest, 'pca4\+int8', takes 3,192 bytes"):
        compress_vectors(tmp_path / "v.npy", tmp_path / "none", codec=codecs, budget=0.01)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "v.npy"]


def test_of_many_vectors_some_are_tried(tmp_path: Path) -> None:
    """Bytes are exact all the same; the chosen codec is compared on all."""
    rows = low_rank(500, 8, rank=2)
    np.save(tmp_path / "v.npy", rows.double().numpy())
    made = compress_vectors(
        tmp_path / "v.npy", tmp_path / "out", codec="int8,pca2,dedup20", budget=0.3, sample_rows=200, num_queries=40
    )
    assert {trial.num_rows for trial in made.trials} == {200}
    assert made.chosen.num_rows == 500
    sizes = {trial.codec: trial.nbytes for trial in made.trials}
    assert (sizes["int8"], sizes["pca2"]) == (
        named_codec("int8").nbytes_of(500, 8),
        named_codec("pca2").nbytes_of(500, 8),
    )
    assert made.chosen.nbytes == encode(rows, codec=made.codec).nbytes()
    assert "tried on 200 of the vectors" in (tmp_path / "out/report.md").read_text()


def test_a_codec_that_cannot_hold_the_vectors_is_told_of(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", random_rows(40, 4).numpy() * 1e6)
    made = compress_vectors(tmp_path / "v.npy", tmp_path / "out", codec="fp16,bf16", budget=0.5)
    assert made.codec == "bf16"
    assert "holds numbers up to 65504" in made.refused["fp16"]
    with pytest.raises(ConfigError, match="holds numbers up to 65504"):
        compress_vectors(tmp_path / "v.npy", tmp_path / "other", codec="fp16")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("codec", ["fp32", "int4", "pq", "opq", "pca", "dedup", "sparse", "binary", "fp8_e4m3"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 1)])
def test_few_vectors_are_held(codec: str, shape: tuple[int, int], tmp_path: Path) -> None:
    rows = random_rows(*shape)
    np.save(tmp_path / "v.npy", rows.numpy())
    made = compress_vectors(tmp_path / "v.npy", tmp_path / "out", codec=codec)
    assert torch.equal(
        load_vectors(tmp_path / "out").take(range(shape[0])), encode(rows, codec=codec).take(torch.arange(shape[0]))
    )
    assert made.num_queries == shape[0] // 2


def test_vectors_whose_lengths_vanish_are_refused(tmp_path: Path) -> None:
    """Else all neighbours are equally near, and the report says that all are kept."""
    rows = random_rows(40, 6)
    for factor, told in (
        (1e-30, r"rows.npy', the array: numbers reach .*e-30 at most.*scale them up"),
        (1e30, r"rows.npy', the array, row \d+: number \d is .*e\+\d\d, .* beyond fp32; scale"),
    ):
        np.save(tmp_path / "rows.npy", (rows * factor).numpy())
        with pytest.raises(DataError, match=told):
            compress_vectors(tmp_path / "rows.npy", tmp_path / "out", codec="fp32")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.npy"]


def test_a_codec_that_keeps_nothing_is_refused(tmp_path: Path) -> None:
    """Its fp16 steps and weights are 0, or the size of the rows."""
    np.save(tmp_path / "rows.npy", (random_rows(40, 6) * 1e-9).numpy())
    for codec in ("int8", "int2", "binary", "fp16", "bits_8_4_2"):
        with pytest.raises(ConfigError, match=rf"codec '{codec}' keeps nothing of vectors whose numbers reach .*e-09"):
            compress_vectors(tmp_path / "rows.npy", tmp_path / "out", codec=codec)
    made = compress_vectors(tmp_path / "rows.npy", tmp_path / "out", codec=["int8", "fp8_e4m3"], budget=0.5)
    assert made.codec == "fp8_e4m3"
    assert made.chosen.lost < 0.1
    assert "keeps nothing" in made.refused["int8"]


@pytest.mark.parametrize("num_rows", [1, 2, 3, 11])
def test_of_few_vectors_the_codec_is_taken_that_loses_least(num_rows: int, tmp_path: Path) -> None:
    """All are among each other's ten nearest, whatever the codec."""
    np.save(tmp_path / "rows.npy", random_rows(num_rows, 16).numpy())
    made = compress_vectors(tmp_path / "rows.npy", tmp_path / "out", codec="auto", budget=0.3)
    fitting = [trial for trial in made.trials if trial.share <= 0.3]
    assert made.chosen.lost == min(trial.lost for trial in fitting) < 0.05
    assert "so few vectors" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("rows", [torch.zeros(30, 16), torch.full((30, 16), 0.25)])
def test_equal_vectors_are_held_exactly_in_the_fewest_bytes(rows: torch.Tensor, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", rows.numpy())
    made = compress_vectors(tmp_path / "rows.npy", tmp_path / "out", codec=["fp16", "int8", "int2"], budget=0.6)
    assert (made.codec, made.chosen.lost, made.chosen.cosine) == ("int2", 0.0, 1.0)
    assert torch.equal(load_vectors(tmp_path / "out").take(range(30)), rows)


def test_what_is_wrong_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", random_rows(20, 4).numpy())
    file, out = tmp_path / "v.npy", tmp_path / "out"
    for options, told in (
        ({"codec": "int5"}, "there is no codec 'int5'"),
        ({"codec": "int8,int4"}, "is several; give one, or a budget"),
        ({}, "'auto' is several"),
        ({"codec": "product"}, "codec 'product' is made while its method trains"),
        ({"codec": "auto,int8", "budget": 0.5}, "'auto' stands for several"),
        ({"budget": 0.0}, "budget 0.0 is no share"),
        ({"budget": 1.5}, "budget 1.5 is no share"),
        ({"codec": "int8", "metric": "cosin"}, "did you mean 'cosine'"),
        ({"codec": "int8", "num_queries": 0}, "number of queries is 0"),
    ):
        with pytest.raises(ConfigError, match=told):
            compress_vectors(file, out, **options)
    out.mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        compress_vectors(file, out, codec="int8")
    save_bundle(
        tmp_path / "b", TableCollection([TableSpec(name="a", num_embeddings=4, embedding_dim=4, feature_names=["a"])])
    )
    with pytest.raises(CheckpointError, match="not one that embank compress wrote"):
        load_vectors(tmp_path / "b")
    compress_vectors(file, tmp_path / "plain", codec="int8")
    with pytest.raises(ConfigError, match="have no keys; take them by row"):
        load_vectors(tmp_path / "plain").lookup(["a"])


def test_the_command_says_what_was_chosen(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", low_rank(200, 16, rank=4).numpy())
    said = embank("compress", tmp_path / "v.npy", "--budget", "0.2", "--out", tmp_path / "out", "--queries", "50")
    assert "pca4+int4" in said
    assert "200 vectors of 16 in" in said
    assert "table    method" in embank("inspect", tmp_path / "out")
