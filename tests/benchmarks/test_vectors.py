"""The benchmark of vectors: its sentences, and a line of its table."""

from pathlib import Path

import pytest
import torch
from tests.compression.codecs import random_rows
from tests.scripts import script

from embank.tables import TableCollection, TableSpec, named_codec, save_bundle


def test_sentences_are_cut_at_full_stops() -> None:
    text = (
        " = Robert <unk> = \n \n He had a guest @-@ starring role in 2 @,@ 000 films . Short one . \n"
        " He had a guest @-@ starring role in 2 @,@ 000 films . <unk> was not seen in 2001 . \n"
    )
    expected = ["He had a guest-starring role in 2,000 films .", "[UNK] was not seen in 2001 ."]
    assert script("sentence_vectors").sentences(text) == expected


@pytest.mark.parametrize("dim", [1, 16, 384])
def test_every_codec_of_the_benchmark_is_one(dim: int) -> None:
    names = script("vectors").codecs(dim)
    assert all(named_codec(name).takes_rows for name in names)


def test_a_line_tells_what_a_codec_keeps(tmp_path: Path) -> None:
    vectors = script("vectors")
    rows = random_rows(200, 8)
    cells = dict(zip(vectors.HEAD, next(vectors.lines(rows, ["pca4+int8"], tmp_path, num_queries=50)), strict=True))
    assert cells["codec"] == "`pca4+int8`"
    assert float(cells["share"]) == pytest.approx(named_codec("pca4+int8").nbytes_of(200, 8) / 6400, abs=1e-4)
    assert float(cells["axes"]) == pytest.approx(4 * (4 * 8 + 8) / 6400, abs=1e-4)
    assert 0 < float(cells["recall@10"]) < 1


def test_a_table_of_a_bundle_is_a_source(tmp_path: Path) -> None:
    specs = [TableSpec(name=n, num_embeddings=s, embedding_dim=4, feature_names=[n]) for n, s in (("a", 5), ("b", 9))]
    tables = TableCollection(specs)
    save_bundle(tmp_path / "bundle", tables)
    for source, name in ((f"{tmp_path}/bundle", "b"), (f"{tmp_path}/bundle:a", "a")):
        title, rows = script("vectors").rows_of(source, tmp_path)
        assert title.startswith(f"table {name} of")
        assert torch.equal(rows, tables.weights()[name])
