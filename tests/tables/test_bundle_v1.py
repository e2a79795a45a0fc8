"""Bundles of format version 1, in which every method had a packed class of its own: tables in each of their forms, as
the embank of that version trained and wrote them, and the rows that it gave for all ids."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchrec import KeyedJaggedTensor

from embank.tables import load_bundle
from tests.contracts.forms import FORMS, NUM

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / "data/bundles_v1"
BUNDLES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
PRODUCTS = {"dhe", "tt_rec", "uniform_dim", "mde", "autodim", "unified"}
"""Methods with matrix products, whose sums another machine may take in another order."""


@pytest.mark.parametrize("name", BUNDLES)
def test_rows_are_as_they_were(name: str) -> None:
    expected = load_file(FOLDER / f"{name}.safetensors")
    tables = load_bundle(FOLDER / name)
    assert set(tables.keys) == set(expected)
    ids, lengths = torch.arange(NUM).repeat(len(expected)), torch.ones(NUM * len(expected), dtype=torch.int32)
    rows = tables(KeyedJaggedTensor(keys=tables.keys, values=ids, lengths=lengths))
    for key in tables.keys:
        if FORMS[key].method in PRODUCTS:
            torch.testing.assert_close(rows[key], expected[key], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(rows[key], expected[key]), key


@pytest.mark.parametrize("name", BUNDLES)
def test_bytes_are_as_they_were(name: str) -> None:
    """What is loaded holds what the file holds, nothing more."""
    in_file = load_file(FOLDER / name / "tables.safetensors")
    assert load_bundle(FOLDER / name).nbytes() == sum(t.numel() * t.element_size() for t in in_file.values())


def test_every_form_is_there() -> None:
    assert {key for name in BUNDLES for key in load_file(FOLDER / f"{name}.safetensors")} == set(FORMS)
