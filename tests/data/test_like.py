"""Folders that are prepared like a prepared folder or a bundle: the same ids and numbers, new values unknown."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from tests.data.prepared import write_prepared
from tests.data.test_formats_published import KDD_ROWS, avazu_rows, criteo_rows, write, write_25m, write_100k
from tests.data.test_preprocessing import COLUMNS, CONFIG, csv_of, rows_of

from embank.pipelines.data.describe import describe_folder
from embank.pipelines.data.loading.integrity import content_of, verify_prepared
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.prepare.like import Likeness
from embank.pipelines.data.prepare.prepare import prepare
from embank.pipelines.data.preprocessing.rules import Preprocessing
from embank.pipelines.data.schema import CategoricalField, NumericField, Schema
from embank.tables import TableCollection, TableSpec, save_bundle
from embank.tables.errors import CheckpointError, ConfigError, DataError, EmbankError


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with every transform, bags, hashed and null-heavy columns; prepared, and as bundles with and without
    tokens."""
    folder = tmp_path_factory.mktemp("first")
    raw = csv_of(folder / "log.csv", rows_of(500))
    prepare({**CONFIG, "hashed": ["page"]}, raw, folder / "data", format="csv")
    prepare({**CONFIG, "group": "user"}, raw, folder / "hashed")
    rules = Preprocessing.of_prepared(folder / "data")
    assert rules is not None
    tables = TableCollection([TableSpec(name="user", num_embeddings=9, embedding_dim=4, feature_names=["user"])])
    save_bundle(folder / "bundle", tables, files=rules.files())
    save_bundle(folder / "index-only", tables, files=rules.files(tokens=False))
    return folder


def assert_same_folder(folder: Path, other: Path) -> None:
    """All but what says what it was prepared like: parts and vocabularies to the byte."""
    assert Schema.load(folder) == Schema.load(other)
    assert content_of(folder, Schema.load(folder)) == content_of(other, Schema.load(other))
    assert (folder / "config.yaml").read_bytes() == (other / "config.yaml").read_bytes()


@pytest.mark.parametrize("name", ["data", "hashed", "bundle"])
def test_the_same_rows_become_the_same_folder(first: Path, tmp_path: Path, name: str) -> None:
    prepare(None, first / "log.csv", tmp_path / "like", like=first / name)
    assert_same_folder(tmp_path / "like", first / ("data" if name == "bundle" else name))
    verify_prepared(tmp_path / "like", Schema.load(tmp_path / "like"))


PUBLISHED: dict[str, Callable[[Path], Path]] = {
    "criteo": lambda folder: write(folder / "train.txt", criteo_rows(60), "\t"),
    "avazu": lambda folder: write(folder / "train.csv", avazu_rows(60), ","),
    "kdd12": lambda folder: write(folder / "training.txt", KDD_ROWS, "\t"),
    "movielens": lambda folder: write_100k(folder / "100k"),
    "movielens-25m": lambda folder: write_25m(folder / "25m"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_formats_become_the_same_folder(tmp_path: Path, name: str) -> None:
    raw, format = PUBLISHED[name](tmp_path), name.partition("-")[0]
    prepare(None, raw, tmp_path / "data", format=format)
    prepare(None, raw, tmp_path / "like", like=tmp_path / "data")
    assert_same_folder(tmp_path / "like", tmp_path / "data")


def test_another_format_may_hold_the_rows(first: Path, tmp_path: Path) -> None:
    frame = pl.read_csv(first / "log.csv", infer_schema=False)
    frame.write_parquet(tmp_path / "log.parquet")
    prepare(None, tmp_path / "log.parquet", tmp_path / "like", like=first / "data")
    assert_same_folder(tmp_path / "like", first / "data")
    likeness = Likeness.load(tmp_path / "like")
    assert likeness is not None
    assert (likeness.format, likeness.kind, likeness.path) == ("parquet", "prepared folder", str(first / "data"))
    frame.write_csv(tmp_path / "log.txt", separator=";")
    prepare({"separator": ";"}, tmp_path / "log.txt", tmp_path / "semicolons", like=first / "data", format="csv")
    assert content_of(tmp_path / "semicolons", Schema.load(tmp_path / "semicolons")) == content_of(
        first / "data", Schema.load(first / "data")
    )


def test_derived_columns_come_from_raw_ones_in_another_format(tmp_path: Path) -> None:
    raw = write(tmp_path / "train.csv", avazu_rows(60), ",")
    prepare(None, raw, tmp_path / "data", format="avazu")
    pl.read_csv(raw, infer_schema=False).write_parquet(tmp_path / "log.parquet")
    prepare(None, tmp_path / "log.parquet", tmp_path / "like", like=tmp_path / "data")
    assert_same_folder(tmp_path / "like", tmp_path / "data")
    schema = prepare(
        None, tmp_path / "log.parquet", tmp_path / "new", like=tmp_path / "data", split="test", labelled=False
    )
    assert (schema.label, schema.source) == (None, "avazu")
    whole = pl.concat([pl.read_parquet(tmp_path / "data" / split) for split in ("train", "valid", "test")])
    assert pl.read_parquet(tmp_path / "new/test").drop("label").equals(whole.drop("label"))


def test_new_values_are_unknown_and_counted(first: Path, tmp_path: Path) -> None:
    empty = dict.fromkeys([*COLUMNS], "")
    known, new = {"click": 1, **empty, "user": "u1", "genres": "a|b"}, {"click": 0, **empty, "user": "nobody"}
    rows = [known, {**new, "genres": "a|unheard|new", "price": "3"}, {**new, "city": "Atlantis"}, {**new, "user": ""}]
    raw = csv_of(tmp_path / "new.csv", rows)
    schema = prepare(None, raw, tmp_path / "like", like=first / "bundle", split="test")
    assert schema.fingerprint == Schema.load(first / "data").fingerprint
    assert [(split.num_rows, split.num_positive) for split in schema.splits] == [(0, 0), (0, 0), (4, 1)]
    likeness = Likeness.load(tmp_path / "like")
    assert likeness is not None
    assert {split: counted["rows"] for split, counted in likeness.splits.items()} == {"test": 4}
    counted = likeness.splits["test"]["features"]
    assert counted["user"] == {"values": 4, "unknown": 2, "missing": 1}
    assert counted["city"] == {"values": 4, "unknown": 1, "missing": 3}
    assert counted["genres"] == {"values": 5, "unknown": 2, "missing": 2}
    assert counted["page"] == {"values": 4, "unknown": None, "missing": 4}
    assert counted["price"] == {"values": 4, "unknown": None, "missing": 3}
    assert likeness.share("test", "user", "unknown") == 0.5
    assert likeness.share("test", "genres", "missing") == 0.5
    table = pq.read_table(tmp_path / "like/test")
    assert table["user"].to_pylist()[1:3] == [0, 0]
    assert [bag.count(0) for bag in table["genres"].to_pylist()] == [0, 2, 0, 0]
    batch = next(iter(Loader(tmp_path / "like", "test", batch_size=9, shuffle=False).epoch(0)))
    assert batch.labels.tolist() == [1, 0, 0, 0]
    text = describe_folder(tmp_path / "like")
    assert f"vocabularies and transforms of bundle '{first / 'bundle'}', fingerprint" in text
    assert "50.00%" in text


@pytest.mark.parametrize("name", ["criteo", "kdd12", "movielens-25m"])
def test_published_formats_without_labels(tmp_path: Path, name: str) -> None:
    raw, format = PUBLISHED[name](tmp_path), name.partition("-")[0]
    prepare(None, raw, tmp_path / "data", format=format)
    if name == "movielens-25m":
        lines = (raw / "ratings.csv").read_text().splitlines()
        (raw / "ratings.csv").write_text("\n".join(",".join(line.split(",")[:2]) for line in lines) + "\n")
    else:
        num_labels = {"criteo": 1, "kdd12": 2}[name]
        lines = [line.split("\t", num_labels)[num_labels] for line in raw.read_text().splitlines()]
        raw = tmp_path / "test.txt"
        raw.write_text("\n".join(lines) + "\n")
    schema = prepare(None, raw, tmp_path / "new", like=tmp_path / "data", split="test", labelled=False)
    assert schema.fingerprint == Schema.load(tmp_path / "data").fingerprint
    likeness = Likeness.load(tmp_path / "new")
    assert likeness is not None
    assert likeness.splits["test"]["rows"] == {"criteo": 60, "kdd12": 160, "movielens-25m": 600}[name]
    assert all((likeness.share("test", feature, "unknown") or 0.0) < 0.2 for feature in likeness.features)
    if name == "criteo":  # split by position, and no row is dropped or multiplied
        whole = pl.concat([pl.read_parquet(tmp_path / "data" / split) for split in ("train", "valid", "test")])
        assert pl.read_parquet(tmp_path / "new/test").drop("label").equals(whole.drop("label"))


def test_a_folder_like_an_index_only_bundle_has_no_vocabularies(first: Path, tmp_path: Path) -> None:
    prepare(None, first / "log.csv", tmp_path / "like", like=first / "index-only")
    assert not (tmp_path / "like/vocab").exists()
    for split in ("train", "valid", "test"):
        name = f"{split}/part-00000.parquet"
        assert (tmp_path / "like" / name).read_bytes() == (first / "data" / name).read_bytes()
    assert "runs can't, and nothing can be trained on it" in describe_folder(tmp_path / "like")
    with pytest.raises(ConfigError, match="no vocabularies: it was prepared like a bundle without tokens"):
        prepare(None, first / "log.csv", tmp_path / "again", like=tmp_path / "like")


def test_a_folder_that_was_prepared_like_another_may_be_given_too(first: Path, tmp_path: Path) -> None:
    prepare(None, first / "log.csv", tmp_path / "like", like=first / "data", split="valid")
    prepare({"split": CONFIG["split"]}, first / "log.csv", tmp_path / "again", like=tmp_path / "like")
    assert_same_folder(tmp_path / "again", first / "data")


def test_label_and_split_may_differ_and_nothing_else(first: Path, tmp_path: Path) -> None:
    def refused(config: dict[str, Any], **arguments: Any) -> str:
        with pytest.raises(EmbankError) as caught:
            prepare(config, first / "log.csv", tmp_path / "like", **{"like": first / "data", **arguments})
        return str(caught.value)

    assert refused({"min_count": 2, "label": "click", "categorical": []}) == (
        "the configuration has 'min_count', 'categorical', which would change ids or features: with --like these are "
        f"those of '{first / 'data'}'. Only label, split, separator, quote, escape may be given"
    )
    assert "is given twice, by --split test" in refused({"split": {"by": "ratio"}}, split="test")
    assert "--split is 'tset'; it is one of train, valid, test" in refused({}, split="tset")
    assert "are for data that is prepared like other" in refused(CONFIG, like=None, split="test")
    turned = prepare(
        {"label": {"positive": "<= 0"}}, first / "log.csv", tmp_path / "turned", like=first / "data", split="train"
    )
    whole = Schema.load(first / "data")
    assert turned.splits[0].num_positive == 500 - sum(split.num_positive for split in whole.splits)


def test_a_label_of_another_column_has_its_own_rules_alone(tmp_path: Path) -> None:
    """`rating` is positive from 4 on and negative to 2: of clicks and of percentages this says nothing."""
    frame = pl.DataFrame({"rating": [row % 5 + 1 for row in range(300)], "item": [f"i{row % 7}" for row in range(300)]})
    frame.write_parquet(tmp_path / "ratings.parquet")
    label = {"column": "rating", "positive": ">= 4", "negative": "<= 2"}
    config = {"label": label, "categorical": ["item"], "split": {"by": "hash"}}
    prepare(config, tmp_path / "ratings.parquet", tmp_path / "data", format="parquet")
    percent = pl.Series("percent", [row % 100 for row in range(300)])
    frame.drop("rating").with_columns(percent, click=(percent > 50).cast(pl.Int64)).write_parquet(
        tmp_path / "CLICKS.PARQUET"
    )

    def counts(name: str, label: Any) -> tuple[int, int]:
        schema = prepare(
            {"label": label}, tmp_path / "CLICKS.PARQUET", tmp_path / name, like=tmp_path / "data", split="test"
        )
        return schema.splits[2].num_rows, schema.splits[2].num_positive

    assert counts("clicks", "click") == (300, 147)
    assert counts("percents", {"column": "percent", "positive": ">= 30"}) == (300, 210)
    for leaking in ("item", {"column": "item", "positive": ["i1"]}):
        with pytest.raises(ConfigError, match=r"the label column 'item' is a feature of '.*data', which leaks the"):
            counts("leaking", leaking)


def test_rows_without_labels_are_said_to_be_so(first: Path, tmp_path: Path) -> None:
    rows = [{name: cell for name, cell in row.items() if name != "click"} for row in rows_of(20)]
    raw = csv_of(tmp_path / "new.csv", rows)
    with pytest.raises(DataError, match=r"no column 'click', which '.*data' was made of.*say --unlabelled"):
        prepare(None, raw, tmp_path / "like", like=first / "data", split="test")
    schema = prepare(None, raw, tmp_path / "like", like=first / "data", split="test", labelled=False)
    assert Schema.load(tmp_path / "like") == schema
    assert schema.label is None
    batch = next(iter(Loader(tmp_path / "like", "test", batch_size=99, shuffle=False).epoch(0)))
    assert set(batch.labels.tolist()) == {-1}


def test_what_is_nothing_to_prepare_like_is_refused(first: Path, tmp_path: Path) -> None:
    def refused(like: Path) -> str:
        with pytest.raises(EmbankError) as caught:
            prepare(None, first / "log.csv", tmp_path / "out", like=like)
        return str(caught.value)

    write_prepared(tmp_path / "generated", rows={"train": 9, "valid": 9, "test": 9})
    assert "its rows were generated, so there are no rules for raw rows" in refused(tmp_path / "generated")
    assert "holds no run, no bundle and no prepared folder" in refused(tmp_path / "nothing")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/environment.json").write_text("{}")
    assert "is not complete, so it has no bundle with its rules" in refused(tmp_path / "run")
    tables = TableCollection([TableSpec(name="user", num_embeddings=9, embedding_dim=4, feature_names=["user"])])
    save_bundle(tmp_path / "tables", tables)
    assert "has no preprocess.json: it holds tables only" in refused(tmp_path / "tables")
    shutil.copytree(first / "data", tmp_path / "damaged")
    vocabulary = tmp_path / "damaged/vocab/city.parquet"
    vocabulary.write_bytes(vocabulary.read_bytes()[:-1] + b"?")
    assert "city.parquet" in refused(tmp_path / "damaged")
    shutil.copytree(first / "data", tmp_path / "edited")  # its rows would be read by other rules than its ids
    config = tmp_path / "edited/config.yaml"
    config.write_text(config.read_text().replace("-999", "-998"))
    assert "config.yaml" in refused(tmp_path / "edited")
    shutil.copytree(first / "bundle", tmp_path / "bitten")
    index = tmp_path / "bitten/vocabulary.safetensors"
    index.write_bytes(index.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match="vocabulary.safetensors"):
        prepare(None, first / "log.csv", tmp_path / "out", like=tmp_path / "bitten")


def test_profiles_of_the_training_part_are_no_part_of_the_fingerprint(first: Path, tmp_path: Path) -> None:
    schema = Schema.load(first / "data")
    train = pq.read_table(first / "data/train")
    rows = rows_of(500)[:400]
    fields = _fields(schema)
    user, genres, price = (fields[name].training for name in ("user", "genres", "price"))
    assert user is not None
    assert genres is not None
    assert price is not None
    assert user.missing == sum(row["user"] == "" for row in rows) / 400
    counts = np.bincount(train["user"].to_numpy())
    np.testing.assert_allclose(user.shares, counts[:32] / counts.sum())
    assert user.unknown == user.shares[0] == 0
    empty = [not [m for m in str(row["genres"]).split("|") if m.strip() not in ("", "NULL")] for row in rows]
    assert genres.missing == sum(empty) / 400
    written = train["price"].to_numpy()
    bins = np.searchsorted(price.edges, written.astype(np.float64), side="right")
    np.testing.assert_allclose(price.shares, np.bincount(bins, minlength=len(price.edges) + 1) / 400)
    assert fields["price_missing"].training is None
    shutil.copytree(first / "data", tmp_path / "old")  # as an earlier version wrote it
    values = json.loads((tmp_path / "old/schema.json").read_text())
    for field in (*values["categorical"], *values["numeric"]):
        del field["training"]
    (tmp_path / "old/schema.json").write_text(json.dumps(values))
    (tmp_path / "old/checksums.json").unlink()
    old = Schema.load(tmp_path / "old")
    assert old.fingerprint == schema.fingerprint
    assert all(field.training is None for field in _fields(old).values())


def _fields(schema: Schema) -> dict[str, CategoricalField | NumericField]:
    fields: list[CategoricalField | NumericField] = [*schema.categorical, *schema.numeric]
    return {field.name: field for field in fields}
