"""Faults that made-up files have brought up, each by itself."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torchrec import KeyedJaggedTensor

from embank.ctr_models import Inputs, build_network
from embank.pipelines import apply_delta, make_delta
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.trained import network_of
from embank.tables import Bundle, CheckpointError, TableCollection, TableSpec, Vocabulary, save_bundle
from embank.tables.collections.stages import finished
from embank.tables.ids.vocabulary_index import VocabularyIndex
from embank.tables.serving.bundle import MANIFEST
from embank.tables.storage import json_text
from embank.tables.storage.checksums import CHECKSUMS
from tests.contracts.forms import FORMS
from tests.data.prepared import write_prepared
from tests.deltas.bundles import chain, tables
from tests.fuzz.mutations import reseal


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    save_bundle(tmp_path / "bundle", tables(20))
    return tmp_path / "bundle"


def edit(folder: Path, change: Callable[[Any], object], *, file: str = MANIFEST) -> None:
    """Changes a JSON file, and the checksums with it."""
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    if file != CHECKSUMS:
        reseal(folder)


LISTINGS: dict[str, tuple[Callable[[Any], object], str]] = {
    "text_size": (
        lambda c: c[MANIFEST].update(nbytes="9"),
        r"is damaged: its entry 'manifest.json' is {.*: '9'",
    ),
    "no_sha": (lambda c: c[MANIFEST].update(sha256=None), r"is damaged: its entry 'manifest.json' is {'nbytes'"),
    "outside": (lambda c: c.update({"../x": c[MANIFEST]}), r"'../x' is no file inside of its folder. Copy the bundle"),
    "absolute": (lambda c: c.update({"/etc/passwd": c[MANIFEST]}), r"'/etc/passwd' is no file inside of its folder"),
    "long": (lambda c: c.update({"n" * 300: c[MANIFEST]}), r"'nnn.*' is no file inside of its folder"),
    "surrogate": (lambda c: c.update({"\ud800": c[MANIFEST]}), r"'\\ud800' is no file inside of its folder"),
}


@pytest.mark.parametrize("how", LISTINGS)
def test_listings_of_checksums(how: str, bundle: Path) -> None:
    change, message = LISTINGS[how]
    edit(bundle, change, file=CHECKSUMS)
    with pytest.raises(CheckpointError, match=message):
        Bundle(bundle)


def test_json_of_any_size_is_not_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "MAX_NBYTES", 100)
    with pytest.raises(CheckpointError, match=r"manifest.json' has [\d,]+ bytes, more than any such file"):
        Bundle(bundle)


ENTRIES: dict[str, tuple[Callable[[Any], object], str]] = {
    "key": (lambda t: t["tensors"]["matrices.0.rows"].update(key=[]), "is damaged .*a stored tensor is"),
    "number": (lambda t: t["tensors"]["matrices.0.rows"].update(key=2), "is damaged .*a stored tensor is"),
    "shape": (lambda t: t["tensors"]["matrices.0.rows"].update(shape=[-1]), "is damaged .*a stored tensor is"),
    "lookup": (
        lambda t: t["served"].update(lookups=[1]),
        r"it looks up the matrices \[1\], and has 1; export it",
    ),
    "matrices": (lambda t: t["served"].update(matrices=[]), r"it looks up the matrices \[0\], and has 0; export it"),
    "method": (lambda t: t.update(method=[]), r"is damaged .*of a table \[\] is no str"),
    "dim": (lambda t: t.update(embedding_dim="8"), "is damaged .*of a table '8' is no int"),
    "features": (lambda t: t.update(feature_names="a" * 5000), r"is damaged .*of a table 'a{100,120}\.\.\. is no list"),
    "served": (lambda t: t.update(served="a" * 5000), r"is damaged .*of a table 'a{100,120}\.\.\. is no dict"),
    "facts": (lambda t: t["served"].update(facts="a" * 5000), r"a saved Full has the facts 'a{100,120}\.\.\.; this"),
}


@pytest.mark.parametrize("how", ENTRIES)
def test_tables_in_the_manifest(how: str, bundle: Path) -> None:
    change, message = ENTRIES[how]
    edit(bundle, lambda manifest: change(manifest["tables"][0]))
    with pytest.raises(CheckpointError, match=message):
        Bundle(bundle).tables()


SIZES = [
    ("robe_signs", "spine", "num_chunks"),
    ("dhe", "spine", "num_layers"),
    ("sparse_list8", "matrices", "num_steps"),
    ("dpq", "matrices", "head_bits"),
    ("optembed", "spine", "dim"),
]


@pytest.mark.parametrize(("form", "part", "fact"), SIZES)
def test_sizes_of_nothing_that_is_there(form: str, part: str, fact: str, tmp_path: Path) -> None:
    """They would be made, or gone through, before anything is found not to fit."""
    save_bundle(tmp_path / "b", finished(TableCollection([FORMS[form].spec("t")])))
    for size in (10**6, 10**30, -1, 1.5, [10**9], "x"):

        def change(manifest: Any, size: Any = size) -> None:
            served = manifest["tables"][0]["served"]
            facts = served["facts"] if part == "spine" else served["matrices"][0]["facts"]
            assert fact in facts
            facts[fact] = size

        edit(tmp_path / "b", change)
        message = rf"has {fact} .*, which is no size from 0 to 524,288; export it again"
        with pytest.raises(CheckpointError, match=message):
            Bundle(tmp_path / "b").tables()


def test_rows_that_only_some_ids_miss(tmp_path: Path) -> None:
    """The first and the last id are tried when a table is opened; what lies between shows up later."""
    spec = TableSpec(name="t", num_embeddings=60, embedding_dim=4, feature_names=["t"])
    save_bundle(tmp_path / "b", TableCollection([spec]))
    loaded = Bundle(tmp_path / "b").tables()
    table = next(loaded.packed_tables())[1]
    table.matrices[0]._buffers["rows"] = next(table.matrices[0].buffers())[:0]
    kjt = KeyedJaggedTensor(keys=["t"], values=torch.arange(60), lengths=torch.ones(60, dtype=torch.int32))
    with pytest.raises(CheckpointError, match=r"ids of table 't' can't be looked up: .* copy or export its bundle"):
        loaded(kjt)


class TestVocabularyIndex:
    def index(self, **facts: Any) -> VocabularyIndex:
        made = VocabularyIndex.of([Vocabulary("v", pl.Series([None, *map(str, range(50))]), [0] * 51)])
        return VocabularyIndex.from_json([made.to_json()[0] | facts], made.arrays())

    def test_buckets_that_begin_elsewhere(self) -> None:
        index = self.index()
        index.starts[:] = -(2**31)
        with pytest.raises(CheckpointError, match="begin where no hashes are .* index is damaged. Copy the"):
            index.find("v", index.hashes)

    @pytest.mark.parametrize("missing", [-1, 51, "x", 1.5])
    def test_missing_values_of_no_id(self, missing: Any) -> None:
        with pytest.raises(CheckpointError, match="what is said of the vocabulary of 'v' is damaged"):
            self.index(missing_id=missing)
        assert self.index(missing_id=3).missing_id("v") == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts["config"]["model"].update(hidden_units=[10**9]),
        lambda facts: facts["inputs"].update(dims=[10**9]),
        lambda facts: facts["inputs"].update(num_dense=10**12),
    ],
)
def test_networks_larger_than_their_tensors(change: Callable[[Any], object], tmp_path: Path) -> None:
    """Nothing of that size is made in order to find out that it does not fit."""
    inputs = Inputs(names=("a",), dims=(8,), num_dense=1)
    network = build_network("deepfm", inputs=inputs, hidden_units=(4,))
    facts = {"inputs": asdict(inputs), "config": {"model": {"name": "deepfm", "hidden_units": [4]}}}
    save_bundle(tmp_path / "b", tables(20, names=("a",)), network=network.state_dict(), facts=facts)
    assert network_of(Bundle(tmp_path / "b")).state_dict().keys() == network.state_dict().keys()
    edit(tmp_path / "b", lambda manifest: change(manifest["facts"]))
    with pytest.raises(CheckpointError, match=r"be built: [\d,]+ of something, and its tensors have at most 4,096"):
        network_of(Bundle(tmp_path / "b"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["tables"][0].update(num_rows="9"), "is damaged .*the change of a table is"),
        (lambda m: m["facts"].update(vocabularies=[{"name": 1}]), "says of vocabularies is damaged"),
        (lambda m: m["facts"].update(vocabularies=3), "says of vocabularies is damaged"),
        (lambda m: m["files"].update({"../x": {"how": "same"}}), "it lists other files than it makes. Copy the delta"),
        (lambda m: m["files"]["manifest.json"].update(how="magic"), "is made 'magic'.* Copy the delta again"),
        (lambda m: m.update(to=m["from"]), "the checksums of the bundle that it leads to are not those of its name"),
    ],
)
def test_deltas(change: Callable[[Any], object], message: str, tmp_path: Path) -> None:
    old, new = chain(tmp_path, 1)
    make_delta(old, new, tmp_path / "d")
    edit(tmp_path / "d", change)
    with pytest.raises(CheckpointError, match=message):
        apply_delta(old, tmp_path / "d", tmp_path / "result")
    assert not (tmp_path / "result").exists()


def test_schemas_of_other_types(tmp_path: Path) -> None:
    """Also in a bundle, where nothing else looks at them."""
    write_prepared(tmp_path, rows={"train": 5})
    values = Schema.load(tmp_path).to_json()
    for part, key, wrong in (
        ("categorical", "multivalued", "yes"),
        ("numeric", "name", {}),
        ("splits", "num_rows", 1.5),
    ):
        changed = json.loads(json.dumps(values))
        changed[part][0][key] = wrong
        with pytest.raises(ValueError, match=re.escape(f"{key} is {wrong!r}")):
            Schema.from_json(changed)
    with pytest.raises(TypeError, match="a field is None"):
        Schema.from_json({**values, "numeric": [None]})
