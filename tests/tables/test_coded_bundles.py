"""Collections and bundles whose rows are held by codecs."""

from pathlib import Path

import pytest
import torch

from embank.compression.methods.compositional import CompositionalConfig
from embank.tables import (
    Bundle,
    ConfigError,
    TableCollection,
    TableSpec,
    load_bundle,
    pack_collection,
    save_bundle,
)
from embank.tables.serving.recoding import recode_collection


def plain(name: str, num: int = 300, dim: int = 8) -> TableSpec:
    return TableSpec(name=name, num_embeddings=num, embedding_dim=dim, feature_names=[name])


@pytest.mark.parametrize("codec", ["int3", "pca4+int8", "dedup", {"a": "int4", "c": "binary"}])
def test_a_coded_bundle_loads_to_the_bit(codec: str | dict[str, str], tmp_path: Path) -> None:
    tables = TableCollection([plain("a"), plain("b"), plain("c")], seed=1)
    packed = pack_collection(tables, codec=codec)
    save_bundle(tmp_path / "bundle", tables, codec=codec)
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.nbytes() == packed.nbytes()
    for (_, one), (_, other) in zip(packed.packed_tables(), loaded.packed_tables(), strict=True):
        assert torch.equal(one.lookup(torch.arange(300)), other.lookup(torch.arange(300)))
        assert one.manifest() == other.manifest()
    if isinstance(codec, dict):
        held = [entry.served["matrices"][0]["codec"] for entry in Bundle(tmp_path / "bundle").entries]
        assert held == ["int4", "fp32", "binary"]


def test_rows_that_tables_share_are_coded_and_counted_once(tmp_path: Path) -> None:
    options = CompositionalConfig(table="pool", num_rows=100)
    specs = [
        TableSpec(
            name=n, num_embeddings=300, embedding_dim=8, feature_names=[n], method="compositional", options=options
        )
        for n in ("a", "b")
    ]
    tables = TableCollection(specs, seed=1)
    packed, single = pack_collection(tables, codec="int4"), pack_collection(TableCollection(specs[:1]), codec="int4")
    assert packed.nbytes() < 2 * single.nbytes()
    save_bundle(tmp_path / "bundle", tables, codec="int4")
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.nbytes() == packed.nbytes()
    save_bundle(tmp_path / "plain", tables)
    assert recode_collection(load_bundle(tmp_path / "plain"), codec="int4").nbytes() == packed.nbytes()
    mixed = pack_collection(tables, codec={"a": "int4", "b": "int8"})
    assert mixed.nbytes() > packed.nbytes()


def test_a_table_whose_rows_a_codec_can_not_hold_is_named() -> None:
    tables = TableCollection([plain("a"), plain("b")], seed=1)
    packed = pack_collection(tables)
    list(packed.packed_tables())[1][1].coded[0].rows.mul_(1e7)
    with pytest.raises(ConfigError, match="table 'b': rows reach .* more than steps and offsets in fp16 hold"):
        recode_collection(packed, codec="int4")
    assert recode_collection(packed, codec="fp32").nbytes() == packed.nbytes()


@pytest.mark.parametrize(
    ("codec", "told"),
    [
        ({"aa": "int4"}, "codec of table 'aa': there is no such table; did you mean 'a'?"),
        ({"a": "int44"}, "there is no codec 'int44'"),
        ("stepped", "codec 'stepped' is made while its method trains"),
    ],
)
def test_codecs_that_can_not_be_are_refused(codec: str | dict[str, str], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        save_bundle(tmp_path / "bundle", TableCollection([plain("a")]), codec=codec)
    assert told in str(refused.value)
    assert not (tmp_path / "bundle").exists()
