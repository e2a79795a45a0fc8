"""Widths that product codes can't cut as asked are told, with what they mean and the cure."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from embank.pipelines.cli.app import app
from embank.pipelines.runs.coarse_parts import coarse_parts
from embank.tables import encode
from tests.compression.codecs import random_rows


@pytest.mark.parametrize(
    ("codec", "dim", "told"),
    [
        ("pq", 97, "97 columns can't be cut into 48 parts of one width, so there is one codebook, and 16 centroids"),
        ("pq", 97, "Pad the vectors with zeros to 98 columns, or take another codec"),
        ("opq", 13, "Pad the vectors with zeros to 14 columns"),
        ("pq", 5, "into 2 parts of one width, so there is one codebook"),
        ("pq4", 77, "Pad the vectors with zeros to 80 columns"),
        ("pq16", 194, "so there are 2 codebooks, and 16 centroids stand for 97 columns at a time"),
        ("pca13+pq", 20, "13 columns can't be cut into 6 parts"),
        ("pca13+pq", 20, "Keep 12 columns, or take another codec"),
    ],
)
def test_too_few_parts_are_told(codec: str, dim: int, told: str) -> None:
    said = coarse_parts(codec, num_rows=64, dim=dim)
    assert said is not None
    assert said.startswith(f"codec '{codec}': ")
    assert told in said


@pytest.mark.parametrize(
    ("codec", "dim"),
    [
        *(("pq", dim) for dim in (1, 2, 3, 9, 16)),
        *(("opq", 16), ("pq1", 97), ("pq200", 97), ("pq16", 300), ("pca12+pq", 97), ("pca", 97), ("int4", 97)),
    ],
)
def test_what_comes_out_as_asked_is_not(codec: str, dim: int) -> None:
    assert coarse_parts(codec, num_rows=64, dim=dim) is None


@pytest.mark.parametrize("codec", ["pq", "opq", "pca13+pq", "dedup+pq"])
def test_as_many_rows_as_centroids_are_kept(codec: str) -> None:
    assert coarse_parts(codec, num_rows=16, dim=13) is None
    assert coarse_parts(codec, num_rows=17, dim=13) is not None
    rows = random_rows(16, 13)
    taken = encode(rows, codec=codec).take(torch.arange(16))
    assert torch.allclose(taken, rows, atol=1e-5)


def test_what_is_padded_as_told_is_cut_into_parts_and_keeps_more() -> None:
    rows = random_rows(400, 13)
    wide = encode(torch.nn.functional.pad(rows, (0, 1)), codec="pq")
    assert coarse_parts("pq", num_rows=400, dim=14) is None
    ids = torch.arange(400)
    whole, parts = encode(rows, codec="pq").take(ids), wide.take(ids)[:, :13]
    assert (parts - rows).norm() < (whole - rows).norm()


@pytest.mark.slow
def test_the_command_tells_of_a_prime_width(tmp_path: Path) -> None:
    """It wrote one codebook of the whole width without a word."""
    np.save(tmp_path / "v.npy", random_rows(200, 13).numpy())
    arguments = ["compress", str(tmp_path / "v.npy"), "--codec", "pq", "--out", str(tmp_path / "out"), "--queries", "9"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False, standalone_mode=False)
    assert "codec 'pq': 13 columns can't be cut into 6 parts" in done.stderr
    assert "Pad the vectors with zeros to 14 columns" in done.stderr
