"""`torch.export` follows what is served of every method, in every form and under every codec, for any number of ids."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.export import Dim, ExportedProgram
from torchrec import KeyedJaggedTensor

from embank.compression import build_table
from embank.tables import (
    DistinctMethod,
    PackedCollection,
    PackedTable,
    PlainCollection,
    TableCollection,
    pack_collection,
)
from embank.tables.collections.stages import finished
from tests.compression.codecs import NAMES as CODECS
from tests.contracts.forms import DIM, FORMS, NUM, Form
from tests.contracts.specs import NAMES

pytestmark = pytest.mark.slow

CASES = FORMS | {name: Form(method=name) for name in NAMES if not any(form.method == name for form in FORMS.values())}
"""Forms, and of methods that other packages bring the plain one."""
LENGTHS = (0, 1, 2, 5, 4096)


def packed(name: str, *, codec: str = "fp32") -> PackedTable:
    form = CASES[name]
    spec = form.spec(name)
    table = build_table(
        method=form.method,
        num_embeddings=NUM,
        embedding_dim=DIM,
        budget=spec.budget,
        counts=spec.counts,
        options=spec.options,
        seed=1,
        name=name,
    )
    return table.pack(codec=codec).table


def random_ids(length: int) -> torch.Tensor:
    return torch.randint(0, NUM, (length,), generator=torch.Generator().manual_seed(length))


def followed(table: PackedTable, *, length: int) -> ExportedProgram:
    """The program of a table, from some ids, for any number of them."""
    shapes = {"ids_N": {0: Dim("N", min=0)}}
    return torch.export.export(table, (random_ids(length),), dynamic_shapes=shapes)


def assert_same_rows(table: PackedTable, program: ExportedProgram) -> None:
    """To the bit; but a method that combines each distinct row of many ids once adds up in another order then, which a
    program, of any number of ids, does not."""
    module = program.module()
    for length in LENGTHS:
        ids = random_ids(length)
        if isinstance(table.spine, DistinctMethod):
            torch.testing.assert_close(module(ids), table.lookup(ids), rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(module(ids), table.lookup(ids)), f"{length} ids"


@pytest.mark.parametrize("name", CASES)
def test_every_form(name: str) -> None:
    """The empty batch included."""
    table = packed(name)
    assert_same_rows(table, followed(table, length=3))


@pytest.mark.parametrize("method", NAMES)
def test_a_program_does_not_depend_on_the_ids_that_it_was_made_from(method: str) -> None:
    """More of them than are decoded at once."""
    table = packed(next(name for name, form in CASES.items() if form.method == method))
    assert_same_rows(table, followed(table, length=5000))


PLAIN_METHODS = ("full", "tt_rec")
"""Methods of one matrix and of several, of rows and of cores."""


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec != "fp32"])
@pytest.mark.parametrize("method", PLAIN_METHODS)
def test_every_codec_is_followed(method: str, codec: str) -> None:
    table = packed(method, codec=codec)
    assert_same_rows(table, followed(table, length=3))


@pytest.mark.parametrize("method", [method for method in NAMES if method not in PLAIN_METHODS])
def test_every_method_is_followed_in_a_codec(method: str) -> None:
    """Restored from a file's tensors, of which a codec may hold several for a matrix."""
    name = next(name for name, form in CASES.items() if form.method == method)
    table = packed(name, codec="bits_8_4_2")
    other = PackedTable.restore(method, table.manifest(), table.state_dict())
    assert_same_rows(other, followed(other, length=3))


@pytest.fixture(scope="module")
def collection() -> PackedCollection:
    """Tables of several forms; "full" and "mgqe" share a feature, two take means."""
    names = ("full", "robe_signs", "mgqe", "dhe", "optembed_kept")
    specs = [FORMS[name].spec(name) for name in names]
    specs[0] = replace(specs[0], feature_names=["full", "mgqe"], pooling="mean")
    specs[1] = replace(specs[1], pooling="mean")
    return pack_collection(finished(TableCollection(specs, seed=1)))


@pytest.mark.parametrize("single", [(), ("full", "dhe", "mgqe")])
def test_a_collection(collection: PackedCollection, single: tuple[str, ...], tmp_path: Path) -> None:
    """Any batch size, any number of ids in a bag, saved and loaded; also where all bags are empty."""
    plain = PlainCollection(collection, single=single)
    program = torch.export.export(plain, plain.example(), dynamic_shapes=plain.dynamic_shapes())
    torch.export.save(program, tmp_path / "tables.pt2")
    module = torch.export.load(tmp_path / "tables.pt2").module()
    for batch_size, longest in ((1, 3), (2, 3), (7, 3), (500, 3), (3, 0)):
        generator = torch.Generator().manual_seed(batch_size)
        ids, lengths = {}, {}
        for feature in plain.features:
            drawn = torch.randint(0, longest + 1, (batch_size,), generator=generator)
            lengths[feature] = torch.ones_like(drawn) if feature in single else drawn
            ids[feature] = torch.randint(0, NUM, (int(lengths[feature].sum()),), generator=generator)
        features = KeyedJaggedTensor(
            keys=plain.features, values=torch.cat([*ids.values()]), lengths=torch.cat([*lengths.values()])
        )
        needed = {feature: bags for feature, bags in lengths.items() if feature not in single}
        expected = collection(features)
        assert (plain.keys, plain.dims) == (expected.keys(), expected.length_per_key())
        assert torch.equal(plain(ids, needed), expected.values())
        assert torch.equal(module(ids, needed), expected.values()), f"{batch_size} rows"
